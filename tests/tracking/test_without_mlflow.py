"""A run with `tracking.uri: none`: MLflow is not imported, no store is made, and all commands use the folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_main import arguments
from tests.commands import left_with
from tests.conftest import CONFIGS, ROOT, TINY

SHORT = ("rounds=3", "tracking.uri=none", "data.max_train_examples=150", "evaluation.max_examples=50")
CODE = """
import os, sys
from raysim.cli import main as cli
codes = []
for command in (sys.argv[1:], ["resume", "out"]):
    try:
        cli.main(command)
    except SystemExit as end:
        codes.append(end.code)
    if os.path.exists("out/summary.json") and len(codes) == 1:
        os.remove("out/summary.json")
print(codes, sorted({"mlflow", "sqlalchemy", "alembic"} & {name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.slow
def test_neither_a_run_nor_its_resuming_imports_mlflow_or_makes_a_store(tmp_path: Path) -> None:
    overrides = [part for override in (*TINY, *SHORT) for part in ("--set", override)]
    run = ("run", str(CONFIGS / "digits.yaml"), *overrides, "--output", "out")
    done = subprocess.run(
        [sys.executable, "-c", CODE, *run],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
    )
    assert done.stdout.splitlines()[-1] == "[0, 0] []", done.stderr
    assert done.stdout.count("global test accuracy") == 2
    assert "MLflow" not in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "summary.json").is_file()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("none") / "out"
    assert left_with(*arguments(*SHORT), "--output", str(folder)) == 0
    return folder


@pytest.mark.slow
def test_a_run_without_mlflow_has_all_files_and_no_id(finished: Path) -> None:
    for name in ("run.json", "summary.json"):
        content = json.loads((finished / name).read_text())
        assert (content["run_id"], content["tracking_uri"], content["experiment_id"]) == ("", "none", "")
    names = {path.name for path in finished.iterdir()}
    assert {
        "config.yaml",
        "rounds.parquet",
        "clients.parquet",
        "model.safetensors",
        "partition.png",
        "report.html",
        "devices.parquet",
        "plan.json",
        "budgets.json",
    } <= names


@pytest.mark.slow
def test_a_run_without_mlflow_is_reported_compared_replayed_and_resumed_by_its_folder(
    finished: Path, tmp_path: Path, capsys
) -> None:
    other = tmp_path / "other"
    assert left_with(*arguments(*SHORT, "seed=1"), "--output", str(other)) == 0
    capsys.readouterr()
    assert left_with("report", str(finished), "--output", str(tmp_path / "page.html")) == 0
    assert "MLflow run" not in (tmp_path / "page.html").read_text()
    capsys.readouterr()
    assert left_with("compare", str(finished), str(other), "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["seeds"] == [0, 1]
    assert left_with("replay", str(finished), "--json") == 0
    replayed = json.loads(capsys.readouterr().out)
    summary = json.loads((finished / "summary.json").read_text())
    assert replayed["simulated_s"] == summary["simulated_s"]
    assert left_with("resume", str(finished), "--json") == 0
    assert json.loads(capsys.readouterr().out) == summary


def test_a_run_without_mlflow_is_not_moved_to_a_store(finished: Path, capsys) -> None:
    noted = json.loads((finished / "run.json").read_text())
    (finished / "run.json").write_text(json.dumps(noted | {"finished": False}))
    try:
        assert left_with("resume", str(finished), "--tracking-uri", "http://127.0.0.1:9") == 2
    finally:
        (finished / "run.json").write_text(json.dumps(noted))
    said = capsys.readouterr().err
    assert said == "raysim: --tracking-uri='http://127.0.0.1:9' is not allowed: the run has tracking.uri='none'\n"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("tracking.client_runs=true",), "tracking: client_runs=True has no effect with uri='none', without MLflow"),
        (("tracking.register_model=mine",), "tracking: register_model='mine' has no effect with uri='none', without"),
    ],
)
def test_settings_of_mlflow_alone_are_refused(overrides, message, capsys) -> None:
    assert left_with(*arguments(*SHORT, *overrides), "--dry-run") == 2
    assert capsys.readouterr().err.startswith(f"raysim: {message}")
