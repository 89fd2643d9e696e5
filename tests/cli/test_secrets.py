"""No secret of a URI is written into a run, or shown in a message, whatever setting or argument holds it."""

import json

import pytest

from tests.commands import left_with
from tests.conftest import CONFIGS

SECRET = "http://me:hush@host:8265"


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit", "CONFIG", "--address", SECRET],
        ["submit", "CONFIG", "--address", "http://127.0.0.1:1", "--set", f"data.root={SECRET}"],
        ["run", "CONFIG", "--set", f"executor.address={SECRET}", "--set", "executor.kind=ray"],
        ["run", "CONFIG", "--set", f"model.weights={SECRET}"],
        ["run", "CONFIG", "--set", f"tracking.uri={SECRET}"],
        ["run", "CONFIG", "--set", f"data.name={SECRET}"],
        ["run", "CONFIG", "--set", f"data.options.url={SECRET}"],
        ["run", "CONFIG", "--set", f"no.such={SECRET}"],
        ["run", "CONFIG", "--set", f"rounds={SECRET}"],
        ["run", SECRET],
        ["run", "CONFIG", "--output", "s3://id:hush@bucket/x"],
        ["report", SECRET],
        ["compare", SECRET],
        ["replay", SECRET],
        ["devices", SECRET],
    ],
    ids=" ".join,
)
def test_a_secret_is_refused_and_not_shown(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = left_with(*(CONFIGS / "digits.yaml" if each == "CONFIG" else each for each in arguments))
    shown = capsys.readouterr()
    assert code == 2
    assert "hush" not in shown.err + shown.out
    assert list(tmp_path.rglob("run.json")) == []


def test_a_log_line_hides_the_secrets_of_its_uris(capsys):
    from raysim.core.log import info

    info(json.dumps({"store": "postgresql://me:hush@host/runs", "page": "http://host:5000/#/runs?token=hush"}))
    shown = capsys.readouterr().err
    assert "postgresql://me:...@host/runs" in shown
    assert "hush" not in shown
