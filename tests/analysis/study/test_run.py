"""A comparison's table has the figures of single runs; one split, one parent run, and failures stop no other run."""

import csv
import errno
import io
import json
import os
import resource
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow.tracking import MlflowClient
from rich.console import Console
from safetensors.torch import load_file

from raysim.analysis.comparison import compare
from raysim.analysis.study import plan, table, writer
from raysim.analysis.study.one_run import digests_of, run_one
from raysim.analysis.study.settings import ComparisonSettings
from raysim.analysis.tables import terminal
from raysim.config import loader
from raysim.config.metric import ACCURACY
from raysim.core import signals, tensors
from raysim.core.errors import SettingError
from raysim.experiment.resume import find
from raysim.methods.table import METHODS
from raysim.simulation.build import build_scenario
from tests.commands import left_with
from tests.conftest import CONFIGS, ROOT, TINY
from tests.scripts import loaded

JOB = loaded(ROOT / "jobs" / "compare_methods.py")

COMPARISON = {
    "base": str(CONFIGS / "digits.yaml"),
    "set": dict(loader.parse_override(override) for override in TINY) | {"rounds": 3},
    "methods": [
        "fedavg",
        {"name": "heterofl", "set": {"training.learning_rate": 0.1}},
        {"name": "autoflip", "label": "autoflip+", "set": {"method.options": {"exploration_epochs": 2}}},
    ],
    "seeds": [0, 1],
}

GRID = {"grid": {"training.learning_rate": [0.1, 0.4]}, "rounds": 2, "seeds": [7]}


def compared(folder: Path, *options: str, **changes) -> SimpleNamespace:
    """Run the job as its user does, but for a process of its own."""
    folder.mkdir(exist_ok=True)
    config = folder / "comparison.yaml"
    config.write_text(yaml.safe_dump(COMPARISON | changes), encoding="utf-8")
    uri = f"sqlite:///{folder}/store/mlflow.db"
    given = [str(config), "--set", f"tracking.uri={uri}", "--output", str(folder / "out"), *options]
    code = left_with(*given, command=JOB.compare, kept=JOB.KEPT)
    return SimpleNamespace(code=code, out=folder / "out", uri=uri)


def content_of(done: SimpleNamespace) -> dict:
    return json.loads((done.out / "comparison.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    done = compared(tmp_path_factory.mktemp("compared"))
    assert done.code == 0
    return done


@pytest.mark.slow
def test_each_run_is_the_run_that_its_config_describes(finished):
    for figures in content_of(finished)["runs"]:
        folder = finished.out / "runs" / f"{figures['label']}-seed{figures['seed']}"
        settings = loader.load(folder / "config.yaml")
        assert (settings.method.name, settings.seed) == (figures["method"], figures["seed"])
        alone = run_one(build_scenario(settings))
        assert alone.params_sha256 == figures["params_sha256"]
        totals = alone.reports[-1].totals
        assert figures["total_bytes"] == totals.down_bytes + totals.up_bytes
        for name in ("train_flops", "simulated_s", "preparation_s"):
            assert figures[name] == getattr(totals, name)
        assert (figures["accuracy"], figures["best_accuracy"]) == (totals.primary, totals.best_primary)
        assert figures["accuracy_last10"] is None, "of three evaluations"
        assert figures["evaluations"]["accuracy"] == alone.scores
        assert pq.read_table(folder / "clients.parquet")["round"].to_pylist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
        if figures["label"] != "autoflip+":
            assert tensors.digest(load_file(folder / "model.safetensors")) == figures["params_sha256"]


@pytest.mark.slow
def test_the_table_has_means_and_sample_deviations(finished):
    content = content_of(finished)
    assert [row["label"] for row in content["rows"]] == ["fedavg", "heterofl", "autoflip+"]
    dense = [figures["simulated_s"] for figures in content["runs"] if figures["label"] == "fedavg"]
    for row in content["rows"]:
        own = [figures for figures in content["runs"] if figures["label"] == row["label"]]
        for name in ("accuracy", "best_accuracy", "bytes_percent_of_fedavg", "simulated_s"):
            values = [figures[name] for figures in own]
            assert row[name]["mean"] == pytest.approx(np.mean(values))
            assert row[name]["std"] == pytest.approx(np.std(values, ddof=1))
        percent = [100 * figures["simulated_s"] / seconds for figures, seconds in zip(own, dense, strict=True)]
        assert row["simulated_percent_of_fedavg"]["mean"] == pytest.approx(np.mean(percent))
    fedavg, heterofl, autoflip = content["rows"]
    for name in ("bytes_percent_of_fedavg", "flops_percent_of_fedavg", "simulated_percent_of_fedavg"):
        assert fedavg[name]["mean"] == 100
        assert heterofl[name]["mean"] < 65
    assert autoflip["preparation_s"]["mean"] > 0
    assert autoflip["flops_percent_of_fedavg"]["mean"] > 100


@pytest.mark.slow
def test_the_table_is_kept_as_markdown_and_csv(finished):
    rows = content_of(finished)["rows"]
    lines = (finished.out / "comparison.md").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("| heterofl | ") and line.endswith("| learning_rate 0.1 |") for line in lines)
    with (finished.out / "comparison.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert [float(row["accuracy_mean"]) for row in read] == [row["accuracy"]["mean"] for row in rows]


@pytest.mark.slow
def test_mlflow_has_a_parent_with_the_table_and_a_child_for_each_run(finished):
    content, client = content_of(finished), MlflowClient(finished.uri)
    runs = client.search_runs([content["experiment_id"]])
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == content["run_id"]]
    assert len(runs) == 7
    assert len(children) == 6
    parent = client.get_run(content["run_id"])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {"comparison.md", "comparison.csv", "comparison.json"} <= {
        item.path for item in client.list_artifacts(content["run_id"])
    }
    rows = {row["label"]: row for row in content["rows"]}
    assert parent.data.metrics["accuracy/heterofl"] == rows["heterofl"]["accuracy"]["mean"]
    assert "accuracy/autoflip-plus" in parent.data.metrics
    assert parent.data.params["comparison.split_seed"] == "0"
    figures = {(run["label"], run["seed"]): run for run in content["runs"]}
    child = next(run for run in children if run.info.run_name == "heterofl seed 1")
    history = client.get_metric_history(child.info.run_id, "accuracy/global")
    assert [point.step for point in history] == [1, 2, 3]
    assert history[-1].value == figures["heterofl", 1]["accuracy"]


@pytest.mark.slow
def test_all_runs_share_one_split(finished):
    client, content = MlflowClient(finished.uri), content_of(finished)
    runs = client.search_runs([content["experiment_id"]])
    for what in ("data", "partition", "test_rows"):
        assert {run.data.tags[f"{what}_sha256"] for run in runs} == {content["split"][what]}


@pytest.mark.slow
def test_a_run_of_a_comparison_is_not_resumed(finished):
    with pytest.raises(SettingError, match="belongs to a comparison, which is run as a whole"):
        find(str(next((finished.out / "runs").iterdir())))


def test_the_split_has_a_seed_of_its_own():
    shared = ("data.max_train_examples=500", "evaluation.max_examples=50")
    runs = plan.plan(settings_with(*shared)).runs[:2]
    first, second = (build_scenario(run.settings) for run in runs)
    assert digests_of(first) == digests_of(second)
    assert (first.workload.seed, second.workload.seed) == (0, 1)
    assert tensors.digest(first.workload.model.state_dict()) != tensors.digest(second.workload.model.state_dict())
    data = runs[1].settings.data.model_copy(update={"split_seed": None})
    other = digests_of(build_scenario(runs[1].settings.model_copy(update={"data": data})))
    assert all(other[what] != digests_of(second)[what] for what in ("data", "partition", "test_rows"))


def settings_with(*overrides: str) -> ComparisonSettings:
    changed = dict(loader.parse_override(override) for override in overrides)
    base = loader.read_yaml(CONFIGS / "digits.yaml")
    entries = [{"name": entry} if isinstance(entry, str) else entry for entry in COMPARISON["methods"]]
    content = COMPARISON | {"base": base, "set": COMPARISON["set"] | changed, "methods": entries}
    return ComparisonSettings.model_validate(content)


@pytest.mark.slow
def test_a_run_that_fails_leaves_the_others_and_exit_code_1(tmp_path, capsys):
    wild = {"name": "random", "set": {"training.learning_rate": 1e6, "training.clip_norm": None}}
    done = compared(tmp_path, methods=["fedavg", wild, "magnitude"], seeds=[0])
    captured = capsys.readouterr()
    assert done.code == signals.FAILED
    assert "raysim: the run failed: 1 of 3 runs failed (random seed 0: round 1, client " in captured.err
    assert "Traceback" not in captured.err
    assert all(name in captured.out for name in ("fedavg", "magnitude", "0 of 1", "open in MLflow"))
    content = content_of(done)
    assert [len(row["seeds"]) for row in content["rows"]] == [1, 0, 1]
    assert "training diverged" in content["rows"][1]["failed"]["0"]
    client = MlflowClient(done.uri)
    statuses = {run.info.run_name: run.info.status for run in client.search_runs([content["experiment_id"]])}
    assert statuses.pop("random seed 0") == "FAILED"
    assert statuses.pop("fedavg seed 0") == statuses.pop("magnitude seed 0") == "FINISHED"
    assert list(statuses.values()) == ["FAILED"]
    for name in (str(done.out), content["run_id"]):
        rows = {row["label"]: row for row in compare.compare([name], done.uri).table}
        assert [rows[label]["states"] for label in ("fedavg", "random", "magnitude")] == [[""], ["failed"], [""]]


@pytest.mark.slow
def test_a_full_disk_is_one_message(tmp_path, capsys, monkeypatch):
    """A limit on the size of files stands for the disk: the system call fails alike."""
    limits, add = resource.getrlimit(resource.RLIMIT_FSIZE), writer.ComparisonWriter.add

    def on_a_full_disk(*given):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        return add(*given)

    monkeypatch.setattr(writer.ComparisonWriter, "add", on_a_full_disk)
    try:
        done = compared(tmp_path, methods=["fedavg"], seeds=[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    *_, last = capsys.readouterr().err.splitlines()
    assert done.code == signals.FAILED
    assert last.startswith("raysim: ")
    assert "unexpected" not in last, "neither the files nor the store can be written"


def test_a_disk_that_fails_is_one_line_of_any_command(capsys):
    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/table.csv")

    assert left_with(command=click.command()(fail), kept="the runs are kept") == signals.FAILED
    assert capsys.readouterr().err == "raysim: '/data/table.csv': No space left on device; the runs are kept\n"


@pytest.mark.slow
def test_columns_against_fedavg_are_absent_where_nobody_knows_it_and_a_note_says_why(tmp_path):
    done = compared(tmp_path, "--set", "selection.rule=oort", methods=["fedavg", "heterofl"], seeds=[0])
    text = (done.out / "comparison.md").read_text(encoding="utf-8")
    assert "% FedAvg" not in text
    assert "Nothing is in per cent of FedAvg: selection.rule='oort' may select clients by losses" in text


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, ["--methods", "fedavg,hetrofl"], "--methods='fedavg,hetrofl': 'hetrofl' is not in the file; it has: he"),
        ({}, ["--seeds", "0,x"], "--seeds='0,x' is not allowed; allowed: whole numbers, as in 0,1,2"),
        ({}, ["--seeds", "1,1"], "seeds: 1 is given twice"),
        ({}, ["--seeds", "-1"], "seeds=[-1] is not allowed"),
        ({}, ["--set", "seed=3"], "--set 'seed' is not allowed in a comparison; it has --seeds"),
        ({}, ["--set", "training.epochs=0"], "training.epochs=0 is not allowed"),
        (
            {}, ["--set", "executor.kind=ray", "--set", "executor.num_actors=clients"],
            "executor.num_actors='clients' is not allowed in a comparison; allowed: how many runs to execute at once",
        ),
        (
            {}, ["--set", "executor.kind=ray", "--set", "executor.device=cuda"],
            "executor.device='cuda' is not allowed in a comparison with executor.kind='ray'; allowed: 'in-process'",
        ),
        (
            {}, ["--set", "executor.kind=ray", "--set", "executor.client_timeout_s=9"],
            "executor.client_timeout_s=9 has no effect in a comparison; allowed: null",
        ),
        (
            {}, ["--set", "tracking.client_runs=true"],
            "tracking.client_runs=True has no effect in a comparison; allowed: false",
        ),
        (
            {}, ["--set", "tracking.also=[tensorboard]"],
            "tracking.also=['tensorboard'] has no effect in a comparison, whose runs leave no folder; allowed: []",
        ),
        ({}, ["--set", "tracking.uri=none"], "tracking.uri='none' is not allowed; allowed: sqlite:///FILE"),
        ({"methods": []}, [], "methods is empty, which is not allowed; allowed: at least one, all different"),
        ({"methods": ["fedavg", "fedavg"]}, [], "methods: 'fedavg' is given twice"),
        ({"methods": ["fedvag"]}, [], "methods: 'fedvag': method.name='fedvag' is unknown; known: fedavg"),
        ({"methods": [{"nme": "fedavg"}]}, [], "methods.0.name is missing"),
        ({"methods": ["dapperfl"]}, [], "methods: 'dapperfl': training.epochs=1 is not allowed"),
        (
            {"methods": [{"name": "fedavg", "set": {"data.heldout_share": 0.5}}]}, [],
            "methods: 'fedavg': set: 'data.heldout_share' is not allowed, since rows must be comparable",
        ),
        (
            {"methods": [{"name": "fedavg", "label": "honest", "set": {"method": {"name": "scaffold"}}}]}, [],
            "methods: 'honest': set: 'method.name' is not allowed, since rows must be comparable",
        ),
        ({}, ["--set", "method={name: heterofl}"], "--set 'method.name' is not allowed in a comparison; it has"),
        ({"set": {"method": {"name": "random"}}}, [], "set 'method.name' is not allowed in a comparison"),
        ({}, ["--set", "method=random"], "methods: 'fedavg': method='random' is not allowed; allowed: settings"),
        (
            {"methods": [{"name": "heterofl", "label": "fedavg"}]}, [],
            "methods: 'fedavg': label='fedavg' is the name of another method; allowed: 'heterofl' or a label of your",
        ),
        ({"metods": ["fedavg"]}, [], "metods=['fedavg'] is not a setting; did you mean methods?"),
        ({"base": "none.yaml"}, [], "CONFIG="),
        ({"base": 3}, [], "base=3 is not allowed"),
        ({"tune": GRID}, [], "data.validation_share=0.0 is not allowed with tune"),
        ({"tune": GRID | {"grid": {}}}, [], "tune.grid is empty, which is not allowed"),
        ({"tune": GRID | {"grid": {"rounds": [3]}}}, [], "tune: grid: 'rounds' is not allowed, since rows must be"),
        ({"tune": GRID | {"grid": {"training.epochs": []}}}, [], "tune.grid.training.epochs is empty"),
        (
            {"tune": GRID | {"grid": {f"training.{key}": list(range(1, 61)) for key in ("epochs", "batch_size")}}},
            ["--set", "data.validation_share=0.2"], "methods, tune.grid and tune.seeds make 10800 runs; allowed: at",
        ),
        ({"seeds": list(range(4000))}, [], "methods and seeds make 12000 runs; allowed: at most 10,000"),
        (
            {"tune": GRID | {"grid": {"training": [{"epochs": 1}]}}}, ["--set", "data.validation_share=0.2"],
            "tune: grid: 'training' is not allowed, since set has 'training.epochs'; allowed: one of them",
        ),
        ({"base": "~nobody-at-all/c.yaml"}, [], "base: '~nobody-at-all/c.yaml': ~nobody-at-all is the home of no"),
        ({"tune": GRID | {"seeds": []}}, [], "tune.seeds is empty"),
        ({"tune": GRID | {"grid": {"training.epochs": [1, 1]}}}, [], "tune.grid.training.epochs: 1 is given twice"),
        ({"tune": GRID | {"round": 3}}, [], "tune.round=3 is not a setting; did you mean tune.rounds?"),
        (
            {"tune": GRID | {"grid": {"training.epochs": [1, 0]}}}, ["--set", "data.validation_share=0.2"],
            "methods: 'fedavg, epochs 0': training.epochs=0 is not allowed",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_written(tmp_path, capsys, changes, options, message):
    done = compared(tmp_path, *options, **changes)
    captured = capsys.readouterr()
    assert done.code == signals.BAD_INPUT
    assert captured.err.startswith(f"raysim: {message}")
    assert captured.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comparison.yaml"]


@pytest.mark.slow
def test_a_folder_that_holds_a_comparison_is_refused(finished, capsys):
    before = (finished.out / "comparison.json").read_bytes()
    assert compared(finished.out.parent).code == signals.BAD_INPUT
    assert "holds a comparison already" in capsys.readouterr().err
    assert (finished.out / "comparison.json").read_bytes() == before


@pytest.mark.slow
def test_what_is_written_down_repeats_the_comparison(finished):
    again = plan.load(finished.out / "comparison.yaml")
    assert again.settings.set["tracking.uri"] == finished.uri
    assert [run.settings.training.learning_rate for run in again.runs] == [0.2, 0.2, 0.1, 0.1, 0.2, 0.2]


def test_a_setting_given_on_the_command_line_replaces_that_of_every_row(tmp_path):
    path = tmp_path / "comparison.yaml"
    path.write_text(yaml.safe_dump(COMPARISON), encoding="utf-8")
    runs = plan.load(path, ("training.learning_rate=0.3",)).runs
    assert {run.settings.training.learning_rate for run in runs} == {0.3}


def test_a_whole_section_leaves_a_row_its_name(tmp_path):
    own = {"name": "random", "set": {"method": {"fill": "zero"}, "training": {"epochs": 3, "learning_rate": 0.3}}}
    config = tmp_path / "comparison.yaml"
    config.write_text(yaml.safe_dump(COMPARISON | {"methods": ["fedavg", own]}), encoding="utf-8")
    run = plan.load(config).runs[-1]
    assert (run.settings.method.name, run.settings.method.fill, run.settings.training.epochs) == ("random", "zero", 3)
    (*_, run) = plan.load(config, ["training.epochs=2"]).runs
    assert (run.settings.training.epochs, run.settings.training.learning_rate) == (2, 0.3)
    (*_, run) = plan.load(config, ["method={normalization: static}"]).runs
    assert (run.settings.method.name, run.settings.method.normalization) == ("random", "static")


def test_a_row_may_not_be_built_with_settings_that_do_not_fit():
    with pytest.raises(SettingError, match=r"methods: 'heterofl': method\.normalization='group' has no effect"):
        plan.plan(settings_with("method.normalization=group"))


@pytest.mark.ray
@pytest.mark.long
def test_spread_over_ray_the_runs_are_the_same(finished, tmp_path, local_ray):
    on_ray = ("--set", "executor.kind=ray", "--set", "executor.num_actors=2", "--methods", "fedavg,heterofl")
    done = compared(tmp_path, *on_ray)
    assert done.code == 0

    def digests(done: SimpleNamespace) -> dict:
        return {(run["label"], run["seed"]): run["params_sha256"] for run in content_of(done)["runs"]}

    assert digests(done).items() <= digests(finished).items()
    assert len(digests(done)) == 4


def test_the_parts_of_the_table_fit_into_120_columns():
    value = {"mean": 0.987654, "std": 0.012345}
    cost = {"mean": 1234.56, "std": None}
    row = {"label": "feddropout", "method": "feddropout", "seeds": [0, 1], "failed": {2: "diverged"}}
    row |= {"set": {"training.learning_rate": 0.05}}
    row |= {name: value if "accuracy" in name else cost for name in table.averaged_of(ACCURACY)}
    row |= {"points": -1.25, "points_low": -3.0, "points_high": 0.5, "points_are_all": True}
    shared = {"percent": 51.2, "is_all": False}
    reached = {"accuracy": 0.8, "reached": 2, "of": 2} | dict.fromkeys(("rounds", *table.UNITS), cost | shared)
    row |= {"targets": [reached]}
    console = Console(width=120, record=True, file=io.StringIO())
    for part in terminal.rich_tables(table.columns_of([row]), [False], console.width):
        console.print(part)
    printed = console.export_text()
    for part in (
        "feddropout",
        "98.8 ± 1.2",
        "-1.2 [-3.0, +0.5]",
        "1234.6",
        "2 of 3",
        "learning_rate 0.05",
        "to 80 %",
        "(2 of 2)",
        "1,235 (51 %*)",
    ):
        assert part in printed
    assert "\u2026" not in printed


def test_the_committed_comparison_has_every_method():
    comparison = plan.load(CONFIGS / "compare_digits.yaml")
    assert [entry.name for entry in comparison.settings.methods] == [
        name for name, method in METHODS.items() if not method.needs_adapters
    ]
    assert comparison.settings.seeds == [0, 1, 2]
    assert comparison.base.executor.kind == "in-process"
