"""docs/report.md: its Python code runs, and its table lists the contents of a run."""

import re
import time

import pytest

import raysim
from raysim.executors import in_process
from raysim.experiment import run as experiment
from tests.conftest import ROOT, tiny_settings
from tests.stores import store_in

PAGE = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
(CODE,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_lines_of_python_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = tiny_settings(f"tracking.uri={store_in(tmp_path)}")
    prepared = experiment.prepare(settings, tmp_path / "runs" / "first")
    summary = experiment.run(prepared, in_process.InProcessRunner(), time.monotonic())
    capsys.readouterr()
    exec(compile(CODE, "docs/report.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"finished ca-hfp {summary['accuracy']}"
    selected = set(raysim.load("runs/first").clients["tier"].tolist())
    assert selected == {line.split(" ")[0] for line in lines if line.split(" ")[0] in selected}
    assert int(lines[-1]) >= summary["full_model"]["parameters"]
    assert len(CODE.splitlines()) <= 12


def test_the_table_names_what_a_run_has():
    first_cells = re.findall(r"^\| (`.*?`) \|", PAGE, re.MULTILINE)
    names = [name for cell in first_cells for name in re.findall(r"`(\w+)", cell)]
    assert {"settings", "rounds", "params", "folder"} <= set(names)
    assert [name for name in names if not hasattr(raysim.RunReader, name)] == []
