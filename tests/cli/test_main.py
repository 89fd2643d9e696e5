"""Bad input is tried in this process, since a new one takes seconds to import what it needs."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import yaml
from torch import nn

from raysim.config import loader
from raysim.core import signals, tensors
from raysim.models import zoo
from raysim.simulation import checkpoint
from tests.commands import left_with
from tests.conftest import CONFIGS, ROOT, TINY, tiny_settings

DIGITS = CONFIGS / "digits.yaml"
CNN_ONLY = "model.options={}"


def arguments(*overrides: str) -> list[str]:
    return ["run", str(DIGITS), *(part for override in (*TINY, *overrides) for part in ("--set", override))]


@pytest.fixture
def refusal(capsys, tmp_path):
    """Returns the message with which a run is refused, once it is clear that nothing was started."""

    def refuse(*overrides: str, config: Path = DIGITS) -> str:
        store, output = tmp_path / "store" / "x.db", tmp_path / "run"
        given = arguments(f"tracking.uri=sqlite:///{store}", *overrides)
        given[1] = str(config)
        assert left_with(*given, "--output", str(output)) == signals.BAD_INPUT
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("raysim: ")
        assert "Traceback" not in captured.err
        assert not store.parent.exists()
        assert not output.exists() or list(output.iterdir()) == []
        return captured.err.removeprefix("raysim: ").rstrip("\n")

    return refuse


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["traning.epochs=1"], "traning={'epochs': 1} is not a setting; did you mean training?"),
        (
            ["training.learningrate=1"],
            "training.learningrate=1 is not a setting; did you mean training.learning_rate?",
        ),
        (["rounds=many"], "rounds='many' is not allowed; allowed: a valid integer"),
        (
            ["population.tiers.0.keep_ratio=1.5"],
            "population.tiers.0.keep_ratio=1.5 is not allowed; allowed: less than",
        ),
        (
            ["training.optimizer=sdg"],
            "training.optimizer='sdg' is not allowed; allowed: 'sgd', 'adam' or 'adamw'; nearest: 'sgd'",
        ),
        (["method.name=fedvag"], "method.name='fedvag' is unknown; known: fedavg, "),
        (["model.name=resnet3"], "model.name='resnet3' is unknown; known: resnet32, "),
        (["data.name=digit"], "data.name='digit' is unknown; known: digits, "),
        (["data.partition.name=idd"], "data.partition.name='idd' is unknown; known: iid, "),
        (["method.score=exakt"], "method.score='exakt' is unknown; known: exact, "),
        (["method.estimator=fishr"], "method.estimator='fishr' is unknown; known: fisher, "),
        (["method.fill=zeros"], "method.fill='zeros' is unknown; known: zero, "),
        (
            ["model.options.chanels=[4, 8]"],
            "model.options.chanels=[4, 8] is unknown; model.name='cnn' takes: channels, ",
        ),
        (
            ["model.options.channels=[4]"],
            "model.options={'channels': [4], 'hidden': 16} is not allowed for model.name='cnn'",
        ),
        pytest.param(
            ["model.options.hidden=0"],
            "model.options.hidden=0 is not allowed; allowed: a whole number from 1",
        ),
        (
            ["method.name=fedavg", "method.fill=zero"],
            "method.fill='zero' has no effect with method.name='fedavg'; options it reads: normalization, ",
        ),
        (
            ["method.name=magnitude", "method.warmup_rounds=1"],
            "method.warmup_rounds=1 has no effect with method.name='magnitude'; options it reads: fill, ",
        ),
        (["method.fill_gamma=0.3"], "method.fill_gamma=0.3 has no effect with method.fill='global'"),
        (
            ["method.estimator=variation", "training.optimizer=adam"],
            "method.estimator='variation' is not allowed with training.optimizer='adam'; allowed: ",
        ),
        (["data.partition.name=iid"], "data.partition.alpha=0.5 has no effect with name='iid'; allowed: null"),
        (["data.root=/data"], "data.root='/data' has no effect with data.name='digits'; allowed: null"),
        (["data.name=mnist"], "data.root=null is not allowed with data.name='mnist'; give the folder"),
        (["data.name=mnist", "data.root=/none"], "data.root='/none': MNIST cannot be read from /none/MNIST/raw"),
        (["population.clients=288"], "population.clients=288 is too many for 1437 training rows"),
        (["data.max_train_examples=9"], "data.max_train_examples=9 is not allowed; allowed: 10"),
        (["selection.clients_per_round=7"], "selection.clients_per_round=7 is more than population.clients=6"),
        (["selection.clients_per_round=0"], "selection.clients_per_round=0 is not allowed; allowed: greater than"),
        (["population.tiers.0.share=0.3"], "population: the tiers' shares add up to 1.1, they must add up to 1"),
        (["executor.num_actors=2"], "executor.num_actors=2 has no effect with executor.kind='in-process'"),
        (
            ["tracking.uri=ftp://host"],
            "tracking.uri='ftp://host' is not allowed; allowed: sqlite:///FILE, postgresql://..., http://..., "
            "https://..., none",
        ),
        (["tracking.also=[tensorbord]"], "tracking.also='tensorbord' is unknown; known: tensorboard"),
        (["tracking.uri=runs/mlflow.db"], "tracking.uri='runs/mlflow.db' is not allowed; allowed: sqlite:///FILE, "),
        (
            ["model.name=vgg16", CNN_ONLY],
            "model.name='vgg16' needs images of at least 32 x 32 pixels, the data's have 8 x 8",
        ),
        (["model.name=lenet", CNN_ONLY], "model.name='lenet' needs images of at least 12 x 12 pixels"),
        (["seed"], "--set 'seed' is not of the form name=value"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_bad_settings_are_refused_in_one_line(refusal, overrides, message):
    refused = refusal(*overrides)
    assert refused.startswith(message)
    assert "\n" not in refused


def test_a_missing_experiment_file_is_refused(refusal, tmp_path):
    path = tmp_path / "none.yaml"
    assert refusal(config=path) == f"CONFIG={str(path)!r} cannot be read: No such file or directory"


def test_an_experiment_file_that_is_not_yaml_is_refused(refusal, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("rounds: [1", encoding="utf-8")
    assert refusal(config=path).startswith(f"CONFIG={str(path)!r} is not YAML: ")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["run"], "Missing argument 'CONFIG'"),
        (["run", str(DIGITS), "--rounds", "3"], "No such option '--rounds'"),
        (["rum"], "No such command 'rum'"),
        (["run", str(DIGITS), "--set"], "Option '--set' requires an argument"),
    ],
    ids=["no file", "unknown option", "unknown command", "no value"],
)
def test_a_wrong_command_line_is_refused(capsys, parts, message):
    assert left_with(*parts) == signals.BAD_INPUT
    assert message in capsys.readouterr().err


def test_batch_norm_refuses_batches_of_one_row_where_it_sees_one_value_per_channel(refusal, monkeypatch):
    def flat(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_classes))

    monkeypatch.setitem(zoo.MODELS, "flat", zoo.ModelEntry(flat))
    model = ("model.name=flat", CNN_ONLY)
    refused = refusal(*model, "training.batch_size=1")
    assert refused.startswith("training.batch_size=1 is not allowed: the model's BatchNorm cannot train on one row")
    assert refused.endswith("allowed: 2 or more")
    poor = ("population.clients=700", "data.partition.min_examples=2", "data.heldout_share=0.1")
    refused = refusal(*model, *poor)
    assert "has 1 training row, so data.partition.min_examples is not allowed" in refused
    assert refused.endswith("allowed: 3 or more, so that 2 rows remain for training")


@pytest.mark.slow
def test_batch_norm_over_pixels_trains_on_one_row(capsys):
    assert left_with(*arguments("model.name=resnet32", CNN_ONLY, "training.batch_size=1"), "--dry-run") == 0
    assert "ca-hfp on digits with resnet32" in capsys.readouterr().out


def test_an_output_folder_that_holds_a_run_is_refused(capsys, tmp_path):
    store, output = tmp_path / "x.db", tmp_path / "run"
    output.mkdir()
    (output / "config.yaml").write_text("seed: 3\n", encoding="utf-8")
    assert left_with(*arguments(f"tracking.uri=sqlite:///{store}"), "--output", str(output)) == signals.BAD_INPUT
    assert f"--output={str(output)!r} holds a run already; give a folder without one" in capsys.readouterr().err
    assert (output / "config.yaml").read_text(encoding="utf-8") == "seed: 3\n"
    assert not store.exists()


def test_an_output_that_cannot_be_a_folder_is_refused(capsys, tmp_path):
    store, output = tmp_path / "x.db", tmp_path / "file"
    output.touch()
    assert left_with(*arguments(f"tracking.uri=sqlite:///{store}"), "--output", str(output)) == signals.BAD_INPUT
    assert f"--output={str(output)!r} cannot be made: File exists" in capsys.readouterr().err
    assert not store.exists()


def test_a_store_that_cannot_be_opened_is_refused(capsys, tmp_path):
    (tmp_path / "file").touch()
    uri = f"sqlite:///{tmp_path}/file/x.db"
    assert left_with(*arguments(f"tracking.uri={uri}"), "--output", str(tmp_path / "run")) == signals.BAD_INPUT
    refused = capsys.readouterr().err
    assert refused.startswith(f"raysim: tracking.uri={uri!r} cannot be opened: ")
    assert "Traceback" not in refused
    assert list((tmp_path / "run").iterdir()) == []


def test_the_printed_settings_are_complete_and_load_again(capsys, tmp_path):
    assert left_with(*arguments("training.learning_rate=1e-3", "seed=5"), "--print-config") == 0
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed, encoding="utf-8")
    assert loader.load(tmp_path / "printed.yaml") == tiny_settings("training.learning_rate=0.001", "seed=5")
    assert yaml.safe_load(printed)["evaluation"]["every"] == 1


def test_a_dry_run_prints_a_table(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert left_with(*arguments(), "--dry-run") == 0
    printed = capsys.readouterr().out
    macs = "the full model over a batch of 16: 367 k multiply-accumulates"
    for part in ("microcontroller", "fast-phone", "2 rounds of 3 from 6 clients", "against FedAvg in the same", macs):
        assert part in printed
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_as_json_is_one_object(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert left_with(*arguments(), "--dry-run", "--json") == 0
    forecast = json.loads(capsys.readouterr().out)
    assert (forecast["method"], forecast["model"], forecast["clients"]) == ("ca-hfp", "cnn", 6)
    assert [tier["tier"] for tier in forecast["tiers"]] == [
        "microcontroller",
        "single-board",
        "slow-phone",
        "fast-phone",
    ]
    macs = [tier["forward_macs_per_batch"] for tier in forecast["tiers"]]
    by_hand = 16 * (4 * 9 * 64 + 8 * 4 * 9 * 64 + 128 * 16 + 16 * 10)
    assert macs == sorted(macs)
    assert (macs[-1], forecast["forward_macs_per_batch"], forecast["batch_size"]) == (by_hand, by_hand, 16)
    assert forecast["simulated_s"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_bad_settings(capsys):
    assert left_with(*arguments("method.name=fedvag"), "--dry-run") == signals.BAD_INPUT
    assert "method.name='fedvag' is unknown" in capsys.readouterr().err


def test_the_schema_printed_is_the_committed_one(capsys):
    assert left_with("schema") == 0
    assert capsys.readouterr().out == (CONFIGS / "schema.json").read_text(encoding="utf-8")


def ran(store: Path, folder: Path, *overrides: str) -> SimpleNamespace:
    out, err = io.StringIO(), io.StringIO()
    given = arguments(f"tracking.uri=sqlite:///{store}", *overrides)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = left_with(*given, "--json", "--output", str(folder))
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue(), folder=folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store") / "x.db"


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory) -> SimpleNamespace:
    return ran(store, tmp_path_factory.mktemp("finished") / "run")


@pytest.mark.slow
def test_a_run_ends_with_its_summary_as_json(finished):
    assert finished.code == 0
    summary = json.loads(finished.out.splitlines()[-1])
    assert summary.keys() >= {
        "run_id",
        "method",
        "rounds",
        "accuracy",
        "best_accuracy",
        "pruning_ratio_mean",
        "simulated_s",
        "wall_s",
        "up_bytes",
        "down_bytes",
        "train_flops",
        "params_sha256",
        "output_dir",
    }
    assert (summary["method"], summary["rounds"]) == ("ca-hfp", 2)
    assert summary["output_dir"] == str(finished.folder)
    assert 0 < summary["accuracy"] <= summary["best_accuracy"] <= 1
    assert summary == json.loads((finished.folder / "summary.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_run_reports_its_rounds_on_standard_error(finished):
    lines = [line for line in finished.err.splitlines() if line.startswith("round ")]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]


@pytest.mark.slow
def test_a_run_leaves_its_files(finished):
    summary = json.loads(finished.out.splitlines()[-1])
    content = json.loads((finished.folder / "run.json").read_text(encoding="utf-8"))
    assert content["run_id"] == summary["run_id"]
    settings = loader.load(finished.folder / "config.yaml")
    assert settings == tiny_settings(f"tracking.uri={settings.tracking.uri}", "training.pack=1")
    saved = checkpoint.saved_in(finished.folder / "checkpoints")
    assert [path.name for path in saved] == ["round_000001.safetensors", "round_000002.safetensors"]
    assert tensors.digest(checkpoint.load(saved[-1]).params) == summary["params_sha256"]
    assert pq.read_table(finished.folder / "clients" / "round_000001.parquet").num_rows == 3
    assert pq.read_table(finished.folder / "clients.parquet")["round"].to_pylist() == [1, 1, 1, 2, 2, 2]


@pytest.mark.slow
def test_a_second_run_into_the_same_folder_is_refused(finished, store):
    before = (finished.folder / "run.json").read_bytes()
    again = ran(store, finished.folder)
    assert again.code == signals.BAD_INPUT
    assert "holds a run already" in again.err
    assert (finished.folder / "run.json").read_bytes() == before


def mlflow_run(store: Path, folder: Path):
    from mlflow.tracking import MlflowClient

    content = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return MlflowClient(f"sqlite:///{store}").get_run(content["run_id"])


@pytest.mark.slow
def test_a_finished_run_is_marked_so(finished, store):
    assert mlflow_run(store, finished.folder).info.status == "FINISHED"


@pytest.mark.slow
def test_a_run_that_diverges_at_once_fails_and_names_round_and_client(store, tmp_path):
    failed = ran(store, tmp_path / "run", "training.learning_rate=1e6", "training.clip_norm=null")
    assert failed.code == signals.FAILED
    assert failed.out == ""
    clients = [f"raysim: the run failed: round 1, client {client}: training diverged" for client in range(6)]
    assert any(failed.err.startswith(start) for start in clients)
    assert "Traceback" not in failed.err
    run = mlflow_run(store, failed.folder)
    assert run.info.status == "FAILED"
    assert run.data.tags["failure"].startswith("round 1, client ")
    assert not (failed.folder / "summary.json").exists()


@pytest.mark.slow
def test_a_run_that_diverges_later_keeps_the_rounds_before(store, tmp_path):
    # one step a round: the loss of a step is taken before it, so the first round always looks well
    one_step = ("training.batch_size=2000", "training.epochs=1", "training.momentum=0", "rounds=30")
    wild = ("training.learning_rate=1e25", "training.clip_norm=null", "method.name=fedavg")
    failed = ran(store, tmp_path / "run", *one_step, *wild)
    assert failed.code == signals.FAILED
    message = next(line for line in failed.err.splitlines() if line.startswith("raysim: "))
    round = int(message.split("round ")[1].split(",")[0])
    assert 1 < round <= 30
    saved = checkpoint.saved_in(failed.folder / "checkpoints")
    assert saved[-1].name == f"round_{round - 1:06d}.safetensors"
    assert checkpoint.load(saved[-1]).round == round - 1
    assert set(pq.read_table(failed.folder / "clients.parquet")["round"].to_pylist()) == set(range(1, round))
    assert mlflow_run(store, failed.folder).info.status == "FAILED"


def started(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, timeout=60)


@pytest.mark.slow
def test_the_package_runs_as_a_module():
    process = started("-m", "raysim", "run", "--help")
    assert process.returncode == 0
    for option in ("CONFIG", "--set", "--output", "--json", "--print-config", "--dry-run"):
        assert option in process.stdout
    assert process.stderr == ""


@pytest.mark.slow
def test_the_job_takes_the_arguments_of_run():
    process = started("jobs/train.py", "jobs/configs/digits.yaml", "--set", "seed=3", "--print-config")
    assert process.returncode == 0
    assert yaml.safe_load(process.stdout) == loader.load(DIGITS, ("seed=3",)).model_dump()


KEPT = """
from raysim.cli.main import command_line

class Kept:
    def __del__(self):
        print("taken apart")

kept = Kept()
command_line(["run", "nowhere.yaml"])
"""


@pytest.mark.slow
def test_a_process_ends_without_taking_apart_what_it_holds():
    """That takes Python seconds once PyTorch, MLflow and Plotly are there."""
    done = subprocess.run([sys.executable, "-c", KEPT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("raysim: ")
    assert done.stdout == ""


ENDING = """
import click
from raysim.cli.main import command_line

@click.command()
def ending():
    {0}

command_line([], ending)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ends", "code", "said"),
    [
        ("raise SystemExit('told')", 1, "told"),
        ("raise SystemExit(3)", 3, ""),
        ("import sys; sys.stdout.close()", 0, ""),
    ],
)
def test_a_process_ends_with_the_code_of_whatever_ended_it(ends, code, said):
    done = started("-c", ENDING.format(ends))
    assert (done.returncode, done.stderr.strip()) == (code, said)
