"""Files by path and by URI; a whole run in an S3 store; the folders to which a Ray job may write."""

import doctest
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysim.core import errors
from raysim.core.errors import RunFailedError, SettingError
from raysim.core.storage import defaults, local
from raysim.core.storage.local import storage_path
from raysim.core.storage.path import StoragePath
from raysim.experiment.resume import find
from raysim.simulation import checkpoint, records
from raysim.tracking import mlflow_writer
from tests.cli.test_main import arguments
from tests.commands import left_with
from tests.conftest import tiny_settings
from tests.experiment.test_resume import FOUR, Stopping, curves, played, resumed
from tests.servers import Server, s3_server
from tests.stores import store_in


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoragePath:
    """A folder in a new bucket."""
    from pyarrow import fs

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    endpoint = s3.url.removeprefix("http://").partition("/")[0]
    name = tmp_path.name.replace("_", "-")
    options = f"region=us-east-1&scheme=http&endpoint_override={endpoint}"
    found, path = fs.FileSystem.from_uri(f"s3://{name}?{options}&allow_bucket_creation=true")
    found.create_dir(path)
    return storage_path(f"s3://{name}/runs?{options}")


def test_the_examples_hold() -> None:
    assert doctest.testmod(local).failed == 0
    assert doctest.testmod(errors).failed == 0


@pytest.mark.parametrize(
    "uri",
    [
        "s3://id:hush@bucket/runs", "abfs://box@account/runs?client_id=1&client_secret=hush", "abfs://a@b/c?sig=hush",
        "abfs://a@b/c?account_key=hush", "s3://bucket/runs?region=x&session_token=hush",
    ],
)  # fmt: skip
def test_a_secret_in_the_uri_of_an_output_is_refused_and_not_shown(uri: str) -> None:
    with pytest.raises(SettingError, match="it holds a secret") as refused:
        storage_path(uri)
    assert "hush" not in str(refused.value)
    assert repr(uri.replace("hush", "...")) in str(refused.value)


def test_a_file_uri_with_a_host_is_refused() -> None:
    assert str(storage_path("file://localhost/runs/one")) == "/runs/one"
    with pytest.raises(SettingError, match=r"'file://runs/one' is not allowed: .*, here 'runs'; allowed: file:///"):
        storage_path("file://runs/one")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["path", "file URI", "s3", "mock"])
def test_files_appear_whole_or_not_at_all(kind: str, tmp_path: Path, request) -> None:
    """The same methods everywhere; `mock` represents file systems that have folders and rename files."""
    given = {"path": tmp_path / "a b", "file URI": f"file://{tmp_path}/a%20b", "mock": "mock:///a"}
    folder = request.getfixturevalue("bucket") if kind == "s3" else storage_path(given[kind])
    assert (kind in ("path", "file URI")) == (folder.path is not None)
    assert not folder.is_folder()
    assert folder.children() == []
    folder.make()
    file = folder / "one.txt"
    assert not file.is_file()
    assert file.write_text("first") == file
    assert file.write_text("second").read_text() == "second"
    assert file.is_file()
    assert folder.is_folder()

    def fails(partial: Path) -> None:
        partial.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        file.write(fails)
    assert file.read_text() == "second"
    (folder / "deep" / "er").write_all({name: name.encode() for name in ("x", "y")})
    assert [child.name for child in (folder / "deep" / "er").children()] == ["x", "y"]
    assert "one.txt" in [child.name for child in folder.children()]
    with (folder / "deep" / "er" / "x").fetched() as path:
        assert path.read_bytes() == b"x"
    assert (folder / "deep" / "er" / "x").parent.parent == folder / "deep"
    if kind != "mock":  # its files are in one process
        assert pickle.loads(pickle.dumps(file)).read_text() == "second"
    file.remove()
    file.remove()
    assert not file.is_file()


@pytest.mark.slow
def test_a_run_in_an_object_store_is_stopped_and_goes_on_there(bucket: StoragePath, tmp_path: Path) -> None:
    """Scaffold, for its memory of single clients; with the same bits as on this machine's disk."""
    store = f"tracking.uri={store_in(tmp_path)}"
    settings = tiny_settings(*FOUR, "method.name=scaffold", store)
    whole = played(tmp_path / "whole", settings)
    folder = bucket / "one"
    with pytest.raises(RunFailedError):
        played(folder, settings, Stopping(2))
    assert len((folder / "checkpoints" / "clients").children()) > 0
    newest = checkpoint.saved_in(folder / "checkpoints")[-1]
    newest.write_bytes(newest.read()[:-9])
    summary = resumed(folder)
    assert summary["params_sha256"] == whole["params_sha256"]
    assert summary["simulated_s"] == whole["simulated_s"]
    assert curves(summary) == curves(whole)
    ours, theirs = (records.read(place / "clients.parquet") for place in (folder, storage_path(tmp_path / "whole")))
    assert {name: column.tolist() for name, column in ours.items() if name != "accuracy"} == {
        name: column.tolist() for name, column in theirs.items() if name != "accuracy"
    }
    assert find(summary["run_id"], whole["tracking_uri"]).folder == folder
    assert left_with("replay", str(folder), "--json") == 0
    with pytest.raises(SettingError, match="holds a run already"):
        played(folder, settings)


def test_paths_below_a_root_stay_below_it() -> None:
    root = storage_path("mock://?options=1")
    assert [str(root), str(root / "one" / "two"), str((root / "one").parent)] == [
        "mock:///?options=1",
        "mock:///one/two?options=1",
        "mock:///?options=1",
    ]
    assert (root / "one.txt").name == "one.txt"


def test_a_locked_folder_cannot_be_locked_again(tmp_path: Path) -> None:
    folder = storage_path(tmp_path)
    with folder.locked(), pytest.raises(BlockingIOError), folder.locked():
        pass
    with folder.locked():
        pass


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_refused(bucket: StoragePath, tmp_path: Path, capsys) -> None:
    uri = str(bucket).replace("s3://", "s3://no-such-")
    store = f"tracking.uri={store_in(tmp_path)}"
    assert left_with(*arguments(store), "--output", uri) == 2
    told = capsys.readouterr().err
    assert told.splitlines()[-1].startswith(f"raysim: --output={uri!r} cannot be written: ")


def test_in_a_job_what_would_be_deleted_is_refused_and_the_default_is_kept(monkeypatch, capsys, tmp_path) -> None:
    assert defaults.default_folder() == Path("runs")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert defaults.default_folder() == tmp_path / "raysim" / "runs"
    assert mlflow_writer.resolve_uri(None) == f"sqlite:///{tmp_path}/raysim/runs/mlflow.db"
    assert mlflow_writer.resolve_uri(f"sqlite:///{tmp_path}/x.db") == f"sqlite:///{tmp_path}/x.db"
    assert left_with(*arguments(), "--output", "runs/here") == 2
    assert capsys.readouterr().err == (
        "raysim: --output='runs/here' is not allowed in a job, since its working folder is deleted; "
        "allowed: an absolute path or a URI, as s3://BUCKET/FOLDER\n"
    )
    for given in (["tracking.uri=sqlite:///runs/x.db"], []):
        if not given:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/x.db")
        assert left_with(*arguments(*given), "--output", str(tmp_path / "out")) == 2
        assert "tracking.uri='sqlite:///runs/x.db' is not allowed in a job" in capsys.readouterr().err
    assert not os.path.exists("runs/x.db")
