"""`raysim.load` reads the values that a run wrote, finished or not, from a folder, an object store or MLflow."""

import gc
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient

import raysim
from raysim.config import loader
from raysim.core import tensors
from raysim.core.errors import RunFailedError, SettingError
from raysim.core.storage.local import storage_path
from raysim.pruning.plan import ChannelPlan
from raysim.tracking.run_reader import RunReader
from tests.conftest import ROOT, tiny_settings
from tests.experiment.test_resume import Stopping, played
from tests.stores import store_in

SMALL = ("rounds=3", "data.max_train_examples=150", "evaluation.max_examples=50")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return store_in(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, store: str) -> dict[str, Any]:
    """The summary of a finished run with solved budgets."""
    settings = tiny_settings(*SMALL, f"tracking.uri={store}", "budget={rule: solved, deadline_s: 20}")
    return played(tmp_path_factory.mktemp("finished") / "out", settings)


@pytest.fixture
def failed(tmp_path: Path, store: str) -> Path:
    """The folder of a run that failed in round 3."""
    with pytest.raises(RunFailedError):
        played(tmp_path / "out", tiny_settings(*SMALL, f"tracking.uri={store}"), Stopping(2))
    return tmp_path / "out"


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which readers make their temporary folders."""
    folder = tmp_path / "copies"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)


def numbers(columns: dict[str, Any]) -> dict[str, Any]:
    return {name: column for name, column in columns.items() if column.dtype.kind in "iuf"}


@pytest.mark.slow
def test_everything_a_finished_run_wrote_is_read(finished: dict[str, Any]) -> None:
    folder = Path(finished["output_dir"])
    run = raysim.load(folder)
    assert (run.state, run.run_id, run.summary) == ("finished", finished["run_id"], finished)
    assert run.settings == loader.load(folder / "config.yaml")
    assert run.settings_text == (folder / "config.yaml").read_text()
    assert run.metadata == json.loads((folder / "run.json").read_text())
    assert run.digests == {what: run.metadata[f"{what}_sha256"] for what in ("data", "partition")}
    assert run.folder == storage_path(folder)
    assert run.report_path == folder / "report.html"
    for name in ("rounds", "clients", "channels", "partition"):
        table = pq.read_table(folder / f"{name}.parquet")
        assert run.column_names(name) == table.column_names
        for column, values in run.table(name).items():
            np.testing.assert_array_equal(values, table[column].to_numpy(), err_msg=column)
    assert run.table("method") == {}
    assert run.rounds["round"].tolist() == [1, 2, 3]
    assert len(run.devices.device_of) == run.settings.population.clients
    assert run.plan.num_units == ChannelPlan.load(folder / "plan.json").num_units
    assert sum(run.channel_groups.values()) == run.plan.num_units == run.channels["unit"].max() + 1
    assert run.budgets.deadline_s == 20
    assert tensors.digest(run.params()) == finished["params_sha256"]
    assert repr(run) == f"raysim.load({str(folder)!r})"


def test_by_its_id_a_run_is_the_same_and_only_what_is_used_is_copied(
    finished: dict[str, Any], store: str, copies: Path
) -> None:
    by_folder = raysim.load(finished["output_dir"])
    with raysim.load(finished["run_id"], store) as run:
        assert not files_in(copies)
        assert run.summary == finished
        assert files_in(copies) == {"summary.json"}
        assert same(numbers(run.rounds), numbers(by_folder.rounds))
        assert run.rounds is run.rounds
        assert files_in(copies) == {"summary.json", "rounds.parquet"}
        assert (run.state, run.mlflow_status, run.folder) == ("finished", "FINISHED", by_folder.folder)
        assert tensors.digest(run.params()) == finished["params_sha256"]
    assert not list(copies.iterdir())
    assert run.rounds["round"].tolist() == [1, 2, 3], "what was read stays"
    with pytest.raises(SettingError, match="cannot be read: it was closed"):
        _ = run.clients


@pytest.mark.slow
def test_without_a_context_the_copies_go_with_the_reader(finished: dict[str, Any], store: str, copies: Path) -> None:
    run = raysim.load(finished["run_id"], store)
    _ = run.clients
    assert files_in(copies) == {"clients.parquet", "summary.json"}
    del run
    gc.collect()
    assert not list(copies.iterdir())


def test_a_run_in_an_object_store_is_copied_file_by_file(finished: dict[str, Any], copies: Path) -> None:
    there, folder = storage_path("mock:///read/run"), Path(finished["output_dir"])
    for name in ("config.yaml", "summary.json", "rounds.parquet", "devices.parquet"):
        (there / name).write_bytes((folder / name).read_bytes())
    with raysim.load(str(there)) as run:
        assert same(numbers(run.rounds), numbers(raysim.load(folder).rounds))
        assert run.devices.tiers == raysim.load(folder).devices.tiers
        assert files_in(copies) == {"rounds.parquet", "devices.parquet", "summary.json"}
        assert run.clients == {}
    assert not list(copies.iterdir())


@pytest.mark.slow
def test_a_run_that_failed_has_the_rounds_of_its_parts_which_go_before_an_older_table(failed: Path) -> None:
    run = raysim.load(failed)
    assert (run.state, run.summary, run.partition) == ("failed", {}, {})
    assert run.table("partition", ["label"]) == {}
    assert run.rounds["round"].tolist() == [1, 2, 3]
    assert set(run.clients["round"]) == set(run.channels["round"]) == {1, 2, 3}
    with pytest.raises(
        SettingError, match=r"has no final model: model.safetensors is missing; allowed: a finished run"
    ):
        run.params()
    assert (failed / "rounds.parquet").is_file(), "merged when it failed"
    (failed / "rounds" / "round_000003.parquet").unlink()
    assert raysim.load(failed).rounds["round"].tolist() == [1, 2]
    shutil.rmtree(failed / "rounds")
    assert raysim.load(failed).rounds["round"].tolist() == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "content", "state"),
    [
        ("summary.json", {"state": "stopped early", "failure": ""}, "stopped early"),
        ("summary.json", {"failure": "diverged"}, "failed"),
        ("run.json", {"state": "stopped"}, "stopped"),
        ("run.json", {"state": None}, "unfinished"),
    ],
)
def test_the_state_is_that_of_the_summary_or_else_of_run_json(
    failed: Path, file: str, content: dict[str, Any], state: str
) -> None:
    before = json.loads((failed / file).read_text()) if (failed / file).is_file() else {}
    (failed / file).write_text(json.dumps(before | content))
    assert raysim.load(failed).state == state


@pytest.mark.slow
def test_by_its_id_an_unfinished_run_is_read_from_its_folder_and_else_from_what_mlflow_has(
    failed: Path, store: str, tmp_path: Path
) -> None:
    run_id = json.loads((failed / "run.json").read_text())["run_id"]
    part = failed / "rounds" / "round_000003.parquet"
    part.unlink()
    run = raysim.load(run_id, store)
    assert (run.folder, run.rounds["round"].tolist()) == (storage_path(failed), [1, 2])
    failed.rename(tmp_path / "moved")
    run = raysim.load(run_id, store)
    assert (run.folder, run.state, run.mlflow_status) == (None, "failed", "FAILED")
    assert run.rounds["round"].tolist() == [1, 2, 3], "as it was uploaded"


@pytest.mark.slow
def test_a_run_whose_rounds_cannot_be_reached_says_where_they_are(failed: Path, store: str, tmp_path: Path) -> None:
    client = MlflowClient(store)
    run_id = client.create_run("0").info.run_id
    metadata = json.loads((failed / "run.json").read_text())
    (failed / "run.json").write_text(json.dumps(metadata | {"run_id": run_id, "state": None}))
    for name in ("config.yaml", "run.json"):
        client.log_artifact(run_id, str(failed / name))
    assert raysim.load(run_id, store).state == "running"
    assert raysim.load(run_id, store).rounds["round"].tolist() == [1, 2, 3]
    failed.rename(tmp_path / "moved")
    run = raysim.load(run_id, store)
    assert (run.settings.rounds, run.rounds) == (3, {})
    with pytest.raises(SettingError, match=f"RUN='{run_id}' has not finished, and {failed}, where its rounds are, "):
        _ = run.clients


@pytest.mark.slow
def test_a_resumed_run_out_of_reach_has_the_rounds_of_its_metrics_not_those_before_it_was_resumed(
    failed: Path, store: str, tmp_path: Path
) -> None:
    run_id = json.loads((failed / "run.json").read_text())["run_id"]
    whole = raysim.load(failed).rounds
    failed.rename(tmp_path / "moved")
    client = MlflowClient(store)
    client.update_run(run_id, status="RUNNING")
    client.log_metric(run_id, "clock/simulated_s", 100.0, step=3)
    client.log_metric(run_id, "accuracy/global", 0.5, step=3)
    run = raysim.load(run_id, store)
    assert run.rounds["round"].tolist() == [1, 2, 3]
    assert run.rounds["accuracy"].tolist() == [*whole["accuracy"][:2], 0.5]
    assert run.frame("rounds", ["simulated_s"])["simulated_s"].tolist() == [*whole["simulated_s"][:2], 100.0]
    for table in ("clients", "channels"):
        with pytest.raises(SettingError, match="where its rounds are, cannot be reached"):
            run.table(table)


def test_tables_are_frames_and_some_of_their_columns(finished: dict[str, Any]) -> None:
    run = raysim.load(finished["output_dir"])
    frame = run.frame("clients")
    assert len(frame) == len(run.clients["client"])
    assert frame["tier"].tolist() == run.clients["tier"].tolist()
    some = run.table("clients", ("client", "round"))
    assert some.keys() == {"client", "round"}
    assert run.frame("clients", ("client",)).columns.tolist() == ["client"]
    with pytest.raises(SettingError, match="table='round' is unknown; known: rounds, "):
        run.table("round")
    with pytest.raises(SettingError, match="column of rounds='acuracy' is unknown; known: accuracy, "):
        run.table("rounds", ("round", "acuracy"))


def test_what_is_no_run_is_refused(tmp_path: Path, finished: dict[str, Any], store: str) -> None:
    with pytest.raises(SettingError, match="is neither a folder nor the id of a run in MLflow"):
        raysim.load(tmp_path / "nothing")
    with pytest.raises(SettingError, match=r"RUN='0{32}' cannot be read from tracking\.uri="):
        raysim.load("0" * 32, store)
    with pytest.raises(SettingError, match=r"RUN='0{32}' is no folder, and tracking\.uri=.*names no existing"):
        raysim.load("0" * 32, f"sqlite:///{tmp_path}/none.db")
    foreign = MlflowClient(store).create_run("0").info.run_id
    with pytest.raises(SettingError, match=r"is not a run of raysim.*config\.yaml is not among its artifacts"):
        raysim.load(foreign, store)


def cut_off(content: bytes) -> bytes:
    return content[: len(content) // 2]


def empty(_: bytes) -> bytes:
    return b""


def without(key: str) -> Callable[[bytes], bytes]:
    def dropped(content: bytes) -> bytes:
        return json.dumps(_without(json.loads(content), key)).encode()

    return dropped


def _without(content: Any, key: str) -> Any:
    if isinstance(content, list):
        return [_without(each, key) for each in content]
    if not isinstance(content, dict):
        return content
    return {name: _without(value, key) for name, value in content.items() if name != key}


def with_value(key: str, value: Any) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(json.loads(content) | {key: value}).encode()


def fewer_columns(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pq.read_table(pa.BufferReader(content)).select([0]), sink)
    return sink.getvalue().to_pybytes()


DAMAGED: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("config.yaml", lambda _: b"population: {clients: ", "settings"),
    ("config.yaml", lambda _: b"\xff\xfe", "settings_text"),
    ("config.yaml", empty, "settings"),
    ("run.json", cut_off, "metadata"),
    ("summary.json", cut_off, "summary"),
    ("summary.json", with_value("split", None), "digests"),
    ("summary.json", lambda _: b"[]", "state"),
    ("plan.json", cut_off, "channel_groups"),
    ("plan.json", without("name"), "channel_groups"),
    ("plan.json", with_value("groups", None), "channel_groups"),
    ("plan.json", cut_off, "plan"),
    ("plan.json", without("shapes"), "plan"),
    ("plan.json", without("slots"), "plan"),
    ("plan.json", lambda _: b"{}", "plan"),
    ("budgets.json", cut_off, "budgets"),
    ("budgets.json", without("ladder"), "budgets"),
    ("budgets.json", without("keep_ratios"), "budgets"),
    ("budgets.json", with_value("ladder", None), "budgets"),
    ("devices.parquet", cut_off, "devices"),
    ("devices.parquet", fewer_columns, "devices"),
    ("rounds.parquet", cut_off, "rounds"),
    ("clients.parquet", empty, "clients"),
    ("channels.parquet", cut_off, "channels"),
    ("partition.parquet", cut_off, "partition"),
    ("model.safetensors", cut_off, "params"),
    ("model.safetensors", empty, "params"),
]
"""A file of a run, how it is damaged, and the attribute that reads it."""


@pytest.mark.parametrize(("file", "harm", "attribute"), DAMAGED)
def test_a_damaged_file_is_a_message_that_names_run_and_file(
    finished: dict[str, Any], tmp_path: Path, file: str, harm: Callable[[bytes], bytes], attribute: str
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(finished["output_dir"], damaged, ignore=shutil.ignore_patterns("checkpoints"))
    (damaged / file).write_bytes(harm((damaged / file).read_bytes()))
    refused = message_of(raysim.load(damaged), attribute)
    assert refused.startswith(f"RUN='{damaged}'")
    assert file in refused


@pytest.mark.parametrize(
    ("file", "attribute"), [("config.yaml", "settings"), ("plan.json", "plan"), ("model.safetensors", "params")]
)
def test_a_damaged_file_in_mlflow_is_named_without_its_copy(
    finished: dict[str, Any], store: str, copies: Path, file: str, attribute: str
) -> None:
    with raysim.load(finished["run_id"], store) as run:
        copy = run.file(file)
        copy.write_bytes(b"{" + bytes(20))
        refused = message_of(run, attribute)
    assert refused.startswith(f"RUN='{finished['run_id']}'")
    assert file in refused
    assert str(copies) not in refused


def message_of(run: RunReader, attribute: str) -> str:
    """The message with which a run refuses to read an attribute."""
    read = run.params if attribute == "params" else partial(getattr, run, attribute)
    with pytest.raises(SettingError) as refused:
        read()
    return str(refused.value)


@pytest.mark.slow
def test_a_folder_is_read_without_mlflow_ray_or_plotly(finished: dict[str, Any]) -> None:
    code = f"""
import sys
import raysim
run = raysim.load({finished["output_dir"]!r})
run.rounds, run.clients, run.summary, run.settings, run.devices, run.plan, run.budgets, run.params(), run.state
print(*sorted({{"mlflow", "ray", "plotly", "matplotlib", "torchvision", "scipy"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "\n"
