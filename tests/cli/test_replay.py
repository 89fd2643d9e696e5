"""`raysim replay` as a user types it."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from raysim.analysis.replay import finished_run
from raysim.core import signals
from tests.commands import left_with
from tests.conftest import CONFIGS, ROOT, TINY
from tests.stores import store_in

DIGITS = CONFIGS / "digits.yaml"
TIER = {"name": "fast", "share": 1.0, "flops_per_s": 1e9, "down_bytes_per_s": 1e6, "up_bytes_per_s": 1e6}
NOT_ASKED = {"wall_s", "params_sha256", "output_dir", "tracking_uri", "experiment_id", "run_id", "files_sha256"}
"""What a run's summary tells of training, of its files and of the machines it ran on."""


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    return store_in(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def finished(uri, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    overrides = (*TINY, f"tracking.uri={uri}", "evaluation.targets=[0.05]", "method.name=random")
    given = [part for override in overrides for part in ("--set", override)]
    assert left_with("run", DIGITS, *given, "--output", folder) == 0
    return folder


def replayed(capsys, *parts: object) -> dict:
    capsys.readouterr()
    assert left_with("replay", *parts, "--json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    return json.loads(lines[0])


def refusal(capsys, *parts: object) -> str:
    capsys.readouterr()
    assert left_with("replay", *parts) == signals.BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err.removeprefix("raysim: ").rstrip("\n")


def devices_file(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_replay_has_the_keys_of_a_run(capsys, finished):
    summary = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    told = replayed(capsys, finished)
    assert summary.keys() - NOT_ASKED <= told.keys()
    assert told["replayed_from"] == {"run": str(finished), "run_id": summary["run_id"]}
    assert (told["exact"], told["unknown"], told["flagged_rounds"], told["flagged_client_rounds"]) == (
        True,
        [],
        [],
        0,
    )
    for key in summary.keys() - NOT_ASKED - {"targets", "costs"}:
        assert told[key] == summary[key], key


def test_a_run_leaves_no_store_behind_for_the_next_one_in_this_process(finished):
    assert not os.environ.get("MLFLOW_TRACKING_URI")


@pytest.mark.slow
def test_a_run_is_found_by_its_id_in_mlflow(capsys, finished, uri, monkeypatch):
    by_folder = replayed(capsys, finished)
    run_id = by_folder["replayed_from"]["run_id"]
    by_id = replayed(capsys, run_id, "--tracking-uri", uri)
    assert by_id.pop("replayed_from") == {"run": run_id, "run_id": run_id}
    assert {name: value for name, value in by_folder.items() if name != "replayed_from"} == by_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert replayed(capsys, run_id)["simulated_s"] == by_id["simulated_s"]


def test_other_devices_come_from_a_population_section_or_a_whole_experiment(capsys, finished, tmp_path):
    told = replayed(capsys, finished, "--devices", devices_file(tmp_path, {"tiers": [TIER]}))
    assert told["simulated_s"] < told["recorded"]["simulated_s"]
    whole = {"rounds": 3, "population": {"clients": 6, "tiers": [TIER]}}
    again = replayed(capsys, finished, "--devices", devices_file(tmp_path, whole))
    assert again == told
    assert not told["exact"]
    assert told["flagged_client_rounds"] > 0
    assert told["targets"][0]["known"] is False
    (tier,) = told["tiers"]
    assert (tier["tier"], len(tier["was"])) == ("fast", len(replayed(capsys, finished)["tiers"]))
    assert tier["replayed_s"] < tier["recorded_s"]


def test_a_person_reads_before_and_after_and_what_is_not_known(capsys, finished, tmp_path):
    capsys.readouterr()
    assert (
        left_with("replay", finished, "--devices", devices_file(tmp_path, {"tiers": [TIER]}), "--deadline", 60) == 0
    )
    printed = capsys.readouterr().out
    for part in (
        "recorded",
        "replayed",
        "simulated time",
        "energy of the devices",
        "not counted",
        "in the run",
        "fast",
        "accuracy 0.05",
        "not known",
        "mean seconds of a client's work",
        "their devices' keep_ratio differs, they would have trained another",
    ):
        assert part in printed
    assert left_with("replay", finished) == 0
    assert "exact: " in capsys.readouterr().out


def test_a_run_that_is_not_there_is_refused(capsys, finished, uri, tmp_path):
    nowhere = finished.parent / "rum"
    refused = refusal(capsys, nowhere)
    assert refused.startswith(f"RUN={str(nowhere)!r} is neither a folder nor the id of a run in MLflow; nearest")
    assert refused.endswith(f"nearest folder: {str(finished)!r}")
    assert refusal(capsys, finished / "summary.json").endswith(f"; nearest folder: {str(finished)!r}")
    assert refusal(capsys, "/none/at/all").endswith("is neither a folder nor the id of a run in MLflow")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no run: config.yaml is missing" in refusal(capsys, empty)
    unknown = "0" * 32
    assert refusal(capsys, unknown, "--tracking-uri", uri).startswith(
        f"RUN='{unknown}' cannot be read from tracking.uri="
    )
    missing = f"sqlite:///{tmp_path}/none.db"
    assert refusal(capsys, unknown, "--tracking-uri", missing).endswith("names no existing SQLite file")
    assert not (tmp_path / "none.db").exists()
    assert refusal(capsys, unknown, "--tracking-uri", "ftp://x").startswith("tracking.uri='ftp://x' is not allowed")


def copied(finished: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copied"
    folder.mkdir()
    for name in finished_run.FILES:
        (folder / name).write_bytes((finished / name).read_bytes())
    return folder


@pytest.mark.parametrize("name", ["summary.json", "clients.parquet", "rounds.parquet"])
def test_a_run_that_has_not_finished_is_refused(capsys, finished, tmp_path, name):
    folder = copied(finished, tmp_path)
    (folder / name).unlink()
    assert (
        refusal(capsys, folder) == f"RUN={str(folder)!r} has not finished: {name} is missing; allowed: a finished run"
    )


@pytest.mark.parametrize("name", ["budgets.json", "devices.parquet"])
def test_a_run_of_a_version_that_wrote_fewer_files_is_refused(capsys, finished, tmp_path, name):
    folder = copied(finished, tmp_path)
    (folder / name).unlink()
    assert refusal(capsys, folder) == f"RUN={str(folder)!r}: {name} is missing; a run of this version writes it"


@pytest.mark.parametrize("name", ["summary.json", "clients.parquet", "devices.parquet"])
def test_records_that_cannot_be_read_are_refused(capsys, finished, tmp_path, name):
    folder = copied(finished, tmp_path)
    (folder / name).write_text("nothing of the kind", encoding="utf-8")
    assert refusal(capsys, folder).startswith(f"RUN={str(folder)!r} cannot be read: ")


def test_records_of_a_version_that_told_less_are_refused(capsys, finished, tmp_path):
    folder = copied(finished, tmp_path)
    (folder / "summary.json").write_text("{}", encoding="utf-8")
    assert "summary.json has no 'full_model'" in refusal(capsys, folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"tiers": [TIER], "clients": 7}, "clients=7 is not allowed; allowed: the run's 6"),
        ({"tiers": [TIER | {"flops": 1}]}, "tiers.0.flops=1 is not a setting; did you mean tiers.0.flops_per_s?"),
        ({"tiers": [TIER | {"flops_per_s": -1}]}, "tiers.0.flops_per_s=-1 is not allowed; allowed: greater than 0"),
        ({"tiers": [TIER | {"share": 0.5}]}, "the tiers' shares add up to 0.5, they must add up to 1"),
        ({"devices": {"preset": "phones"}}, "preset='phones' "),
        ({"devices": {"path": "none.csv"}}, "none.csv"),
        ({"tires": [TIER]}, "is not a setting; did you mean tiers?"),
        ({"population": 3}, "population=3 is not allowed"),
        ([1], "holds no settings"),
    ],
    ids=["clients", "name", "value", "shares", "preset", "table", "section", "population", "list"],
)
def test_devices_that_are_not_allowed_are_refused(capsys, finished, tmp_path, content, message):
    refused = refusal(capsys, finished, "--devices", devices_file(tmp_path, content))
    assert message in refused
    assert refused.startswith(f"--devices={str(tmp_path / 'other.yaml')!r}")
    missing = tmp_path / "none.yaml"
    assert refusal(capsys, finished, "--devices", missing).startswith(f"--devices={str(missing)!r} cannot be read")


def test_a_deadline_has_to_be_above_zero_and_have_an_effect(capsys, finished, tmp_path):
    assert refusal(capsys, finished, "--deadline", 0) == "--deadline=0 is not allowed; allowed: seconds above 0"
    assert refusal(capsys, finished, "--deadline", "nan").startswith("--deadline=nan is not allowed")
    folder = copied(finished, tmp_path)
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    settings["clock"]["mode"] = "over-selection"
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    refused = refusal(capsys, folder, "--deadline", 5)
    assert refused.startswith("--deadline=5 has no effect on a run with clock.mode='over-selection'; allowed: ")


@pytest.mark.slow
def test_the_files_that_told_the_devices_of_a_run_are_not_read_again(capsys, uri, tmp_path, monkeypatch):
    """The run is dealt two devices from a file; then the file is changed, and removed."""
    table = tmp_path / "devices.csv"
    names = ("name", "flops_per_s", "down_bytes_per_s", "up_bytes_per_s")
    slow = ("\n".join(f"d{each},{each}e7,1e5,1e5" for each in (1, 2)), "\n".join(["d,1e3,1e2,1e2"] * 2))
    table.write_text(f"{','.join(names)}\n{slow[0]}\n", encoding="utf-8")
    overrides = (*TINY, f"tracking.uri={uri}", f"population.devices={{path: {table}}}", "population.tiers=null")
    given = [part for override in overrides for part in ("--set", override)]
    assert left_with("run", DIGITS, *given, "--output", tmp_path / "run") == 0
    other = {"population": {"clients": 6, "devices": {"path": str(table)}}}
    others = devices_file(tmp_path, other)
    before = replayed(capsys, tmp_path / "run", "--deadline", 1e6)
    assert before["exact"]
    assert replayed(capsys, tmp_path / "run", "--devices", others)["exact"]
    table.write_text(f"{','.join(names)}\n{slow[1]}\n", encoding="utf-8")
    assert replayed(capsys, tmp_path / "run", "--deadline", 1e6) == before
    slower = replayed(capsys, tmp_path / "run", "--devices", others)
    assert slower["simulated_s"] > 100 * before["simulated_s"]
    table.unlink()
    assert replayed(capsys, tmp_path / "run", "--deadline", 1e6) == before
    faster = devices_file(tmp_path, {"tiers": [TIER]})
    assert replayed(capsys, tmp_path / "run", "--devices", faster)["simulated_s"] < before["simulated_s"]


@pytest.mark.slow
def test_the_command_works_in_a_process_of_its_own(finished, tmp_path):
    command = [sys.executable, "-m", "raysim", "replay", str(finished), "--deadline", "0.001", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["flagged_rounds"] == [1, 2]
    assert told["fates"] == {"late": 6}
    assert told["simulated_s"] == 0.002


@pytest.mark.slow
def test_the_page_runs_as_it_stands(capsys, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "replay.md").read_text(encoding="utf-8")
    for name, content in re.findall(r"^```\w+ (\S+\.\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    commands = re.findall(r"^```sh\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)
    assert len(commands) == 4
    for command in commands:
        program, verb, *rest = shlex.split(command)
        assert program == "raysim"
        tiny = [part for override in TINY for part in ("--set", override)] if verb == "run" else []
        assert left_with(verb, *rest, *tiny) == 0
    assert "replayed" in capsys.readouterr().out
