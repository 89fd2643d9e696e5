"""docs/resume.md: its commands run, however the run has ended in between."""

import json
import re
import shlex

import pytest

from raysim.config import loader
from raysim.simulation import checkpoint
from tests.commands import left_with
from tests.conftest import ROOT, tiny_settings

PAGE = (ROOT / "docs" / "resume.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(command)[1:] for command in re.findall(r"^```sh\n(.*)\n```$", PAGE, re.MULTILINE)]


@pytest.mark.slow
def test_the_commands_run_and_the_table_holds(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = tiny_settings("rounds=3", "data.max_train_examples=150", "evaluation.max_examples=50")
    (tmp_path / "my_run.yaml").write_text(loader.to_yaml(settings), encoding="utf-8")
    run, resume = COMMANDS
    assert left_with(*run) == 0
    capsys.readouterr()
    assert left_with(*resume) == 0
    told = json.loads(capsys.readouterr().out)
    folder = tmp_path / "runs" / "first"
    assert json.loads((folder / "summary.json").read_text()) == told

    for torn in (1, 2):  # as if it had been stopped before its last rounds, and not been told
        (folder / "summary.json").unlink()
        checkpoint.saved_in(folder / "checkpoints")[-torn].remove()
        assert left_with(*resume) == 0
        shown = capsys.readouterr()
        again = json.loads(shown.out)
        assert again["params_sha256"] == told["params_sha256"]
        assert "resuming after round" in shown.err
    assert "s3://bucket/runs?region=eu-west-1" in PAGE
