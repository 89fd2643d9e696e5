"""Sweeps: drawn settings, trials that are stopped early, files; an interrupted sweep resumes to the same figures."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from raysim.analysis.comparison import compare
from raysim.analysis.study.one_run import run_one
from raysim.analysis.sweep import metrics, plan, trial, tuning
from raysim.analysis.sweep.journal import Entry, Journal
from raysim.analysis.sweep.search import Domain, configurations
from raysim.config import loader
from raysim.config.metric import ACCURACY
from raysim.core import tensors
from raysim.core.errors import RunFailedError, SettingError
from raysim.core.storage.local import storage_path
from raysim.executors import in_process
from raysim.executors.ray import cluster as connection
from raysim.experiment.resume import find
from raysim.report import write
from raysim.simulation import records
from raysim.simulation.build import build_scenario
from tests.commands import left_with
from tests.conftest import CONFIGS, ROOT, TINY, tiny_settings
from tests.stores import store_in

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

SWEEP = {
    "base": str(CONFIGS / "digits.yaml"),
    "set": dict(loader.parse_override(override) for override in TINY) | {"rounds": 4},
    "search": {"training.learning_rate": {"grid": [0.2, 1.0e-6, 0.1, 1.0e-5]}},
    "seeds": [0, 1],
    "asha": {"grace_rounds": 2, "reduction_factor": 2},
    "concurrent": 1,
}
PATIENCE_S = 300
MEASURED = ("wall_s", "costs")
"""What two runs of the same may tell differently of themselves."""


def configured(folder: Path, **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = SWEEP | changes
    uri = {"tracking.uri": store_in(folder / "store")}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(content | {"set": content["set"] | uri}), encoding="utf-8")
    return path


def started(config: Path, *options: str) -> subprocess.Popen:
    """Start a sweep as its user does, in a process group of its own, as a terminal would."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, str(ROOT / "jobs" / "sweep.py"), str(config), *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def done(config: Path, *options: str) -> tuple[int, str, str]:
    process = started(config, *options)
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def lines_of(folder: Path) -> list[dict]:
    journal = folder / "journal.jsonl"
    lines = journal.read_text(encoding="utf-8").splitlines(keepends=True) if journal.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_for_lines(process: subprocess.Popen, folder: Path, count: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while len(lines_of(folder)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)


def test_what_is_drawn_lies_where_it_may_and_depends_on_seed_name_and_place_alone():
    search = {
        "training.learning_rate": Domain(loguniform=[1e-3, 1e-1]), "training.momentum": Domain(uniform=[0.0, 0.9]),
        "training.epochs": Domain(randint=[1, 3]), "model.name": Domain(choice=["cnn", "mlp"]),
    }  # fmt: skip
    drawn = configurations(search, 200, 7)
    columns = {name: [each[name] for each in drawn] for name in search}
    rates = np.log10(columns["training.learning_rate"])
    assert rates.min() >= -3
    assert rates.max() <= -1
    assert np.histogram(rates, 4, (-3, -1))[0].min() > 30
    assert set(columns["training.epochs"]) == {1, 2, 3}
    assert set(columns["model.name"]) == {"cnn", "mlp"}
    assert configurations(search, 200, 7) == drawn
    assert configurations(search, 200, 8) != drawn
    fewer = configurations({"training.learning_rate": search["training.learning_rate"]}, 200, 7)
    assert [each["training.learning_rate"] for each in fewer] == columns["training.learning_rate"]


def test_every_point_of_the_grids_is_drawn_for_and_what_repeats_is_left_out():
    search = {"a": Domain(grid=[1, 2]), "b": Domain(grid=["x", "y", "z"]), "c": Domain(randint=[0, 10**6])}
    drawn = configurations(search, 2, 0)
    assert [(each["a"], each["b"]) for each in drawn] == [(a, b) for a in (1, 2) for b in "xyz"] * 2
    assert len({each["c"] for each in drawn}) == 12
    assert len(configurations({"a": Domain(choice=[1, 2])}, 50, 0)) == 2


def test_all_trials_share_one_split_and_the_seeds():
    sweep = plan.plan(settings_with(search={"training.learning_rate": {"loguniform": [0.01, 1.0]}}, samples=3))
    assert [trial.values["training.learning_rate"] for trial in sweep.trials] == [
        run.training.learning_rate for trial in sweep.trials for run in trial.runs[:1]
    ]
    assert {tuple(run.seed for run in trial.runs) for trial in sweep.trials} == {(0, 1)}
    assert {run.split_seed for trial in sweep.trials for run in trial.runs} == {0}


def settings_with(**changes) -> plan.SweepSettings:
    content = SWEEP | {"base": loader.read_yaml(CONFIGS / "digits.yaml")} | changes
    return loader.validated(content, plan.SweepSettings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": {}}, "search={} is not allowed; allowed: at least one setting"),
        (
            {"search": {"training.learning_rte": {"uniform": [0.1, 0.2]}}},
            r"search: trial 0 \(training.learning_rte=0\.1\d*\): training.learning_rte=.* is not a setting; did you "
            "mean training.learning_rate",
        ),
        (
            {"search": {"training.epochs": {"unifrm": [1, 2]}}},
            "search: training.epochs: unifrm=.* is not a setting; did you mean uniform",
        ),
        ({"search": {"training.epochs": {"grid": [1], "choice": [2]}}}, "choice, grid is given; allowed: one of"),
        ({"search": {"training.epochs": {"uniform": [2, 1]}}}, r"uniform=\[2.0, 1.0\] is not allowed"),
        ({"search": {"training.epochs": {"loguniform": [0, 1]}}}, "loguniform=.* is not allowed; allowed: numbers"),
        ({"search": {"training.epochs": {"uniform": [1, 2]}}}, "trial 0 .*training.epochs=1.* is not allowed"),
        ({"search": {"training.epochs": {"grid": []}}}, "search: training.epochs: grid=.* is not allowed"),
        ({"search": {"method.name": {"grid": ["fedavg", "fedvag"]}}}, "trial 1 .*method.name='fedvag' is unknown"),
        ({"search": {"seed": {"grid": [1]}}}, "search: 'seed' is not allowed: it is set by seeds"),
        ({"search": {"executor.num_actors": {"grid": [1]}}}, "it decides where a run is executed"),
        ({"search": {"rounds": {"grid": [1]}}}, "search: 'rounds' is not allowed"),
        (
            {"search": {"data": {"choice": [{"heldout_share": 0.1}, {"split_seed": 1}]}}},
            "search: 'data.split_seed' is not allowed: it is set by base",
        ),
        ({"set": SWEEP["set"] | {"seed": 3}}, "set: 'seed' is not allowed in a sweep: it is set by seeds"),
        (
            {"search": {"training": {"grid": [{"epochs": 1}]}, "training.learning_rate": {"grid": [0.1]}}},
            "search: 'training' is not allowed: search has 'training.learning_rate' already",
        ),
        (
            {"search": {"training.epochs": {"grid": [1]}}, "set": {"training": {"epochs": 3}}},
            "search: 'training.epochs' is not allowed: set has it already",
        ),
        (
            {"search": {"training": {"grid": [{"batch_size": 8}]}}, "set": {"training.epochs": 3}},
            "search: 'training' is not allowed: set has it already",
        ),
        ({"search": {"training.epochs": {"grid": [1]}}}, "'training.epochs' is not allowed: set has it already"),
        ({"samples": 3}, "samples=3 has no effect where every setting has a grid"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\] is not allowed"),
        ({"asha": {"grace_rounds": 9}}, "asha.grace_rounds=9 is more than rounds=4; allowed: 1 to 4"),
        ({"asha": {"grace_rounds": 1, "reduction_factor": 1}}, "asha.reduction_factor=1 is not allowed"),
        ({"mode": "best"}, "mode='best' is not allowed"),
        ({"set": SWEEP["set"] | {"executor.kind": "ray"}}, "executor.num_actors=None is not allowed in a sweep"),
        ({"set": SWEEP["set"] | {"tracking.client_runs": True}}, "client_runs=True has no effect in a sweep"),
        ({"set": SWEEP["set"] | {"tracking.also": ["tensorbord"]}}, "tracking.also='tensorbord' is unknown"),
        ({"metrc": "x"}, "metrc='x' is not a setting; did you mean metric"),
        (
            {"set": SWEEP["set"] | {"executor.kind": "ray", "executor.num_actors": 1, "executor.device": "cuda"}},
            "executor.device='cuda' is not allowed in a sweep with executor.kind='ray'",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_starts(changes, message):
    kept_apart = {"set": {**SWEEP["set"]}}
    if "already" not in message:
        kept_apart["set"].pop("training.epochs")
    with pytest.raises(SettingError, match=message):
        plan.plan(settings_with(**(kept_apart | changes)))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, ("--output",), "--output={!r} holds a sweep already; give a folder without one, or --resume"),
        (
            {"search": {"training.learning_rate": {"grid": [0.3]}}}, ("--resume",),
            "--resume={!r} cannot be resumed with other settings: search has changed; allowed to change: concurrent, "
            "address",
        ),
        ({"metric": "acuracy/global"}, (), "metric='acuracy/global' is not one that trial 0 will have; nearest: ac"),
        (
            {
                "metric": "accuracy/submodel_mean", "asha": None, "samples": 9,
                "search": {"evaluation.client_share": {"choice": [0, 0.5]}},
            },
            (), "metric='accuracy/submodel_mean' is not one that trial ",
        ),
        ({"metric": "energy/total_j"}, (), "metric='energy/total_j' is not one that trial 0 will have;"),
        ({"set": SWEEP["set"] | {"data.root": "none", "data.name": "mnist"}}, (), "data.root='none'"),
    ],
    ids=["in use", "another space", "no such metric", "not all have it", "no watts", "no such data"],
)  # fmt: skip
def test_bad_input_is_one_message_and_code_2_before_ray_starts(tmp_path, capsys, changes, options, message):
    sys.path.insert(0, str(ROOT / "jobs"))
    from sweep import sweep

    folder = tmp_path / "out"
    folder.mkdir()
    if options:
        (folder / "sweep.yaml").write_text(loader.to_yaml(plan.load(configured(tmp_path)).settings))
    where = [options[0], str(folder)] if options else ["--output", str(folder)]
    assert left_with(configured(tmp_path, **changes), *where, command=sweep) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("raysim: " + message.format(str(folder)))
    assert "starting Ray" not in told
    assert not (folder / "trials").exists()


@pytest.mark.ray
def test_a_trial_on_a_gpu_asks_ray_for_one_and_a_cluster_without_is_refused(local_ray, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    sweep = plan.plan(settings_with(set=SWEEP["set"] | {"executor.device": "cuda"}))
    assert tuning.resources_of(sweep) == {"cpu": 1, "gpu": 1}
    with pytest.raises(SettingError, match="the cluster has no GPU"):
        tuning.at_once(sweep)


def test_a_cluster_that_cannot_be_reached_leaves_sigterm_as_it_was():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SettingError, match=r"executor.address='nonsense' cannot be reached"):
        connection.connect(None, "nonsense")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.ray
@pytest.mark.long
def test_a_sweep_that_is_terminated_while_ray_starts_says_so(tmp_path):
    process = started(configured(tmp_path), "--output", str(tmp_path / "out"))
    for line in process.stderr:
        if line == "starting Ray\n":
            break
    time.sleep(1)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 143, err
    assert err.splitlines()[-1] == "raysim: interrupted; no trial has begun"


def test_a_journal_is_read_as_it_was_written_but_for_a_line_that_was_cut_off(tmp_path):
    journal = Journal(tmp_path, 3)
    journal.add(Entry(0, 1, 0.5, 0.5))
    journal.add(Entry(0, ended="finished"))
    journal.add(Entry(1, 1, 0.9, 0.9))
    journal.add(Entry(1, ended="failed", failure="lost"))
    with (tmp_path / "journal.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"trial": 2, "rou')
    again = Journal(tmp_path, 3)
    assert again.entries == journal.entries
    assert again.unfinished == [1, 2]
    assert (again.best("max"), again.best("min")) == (0, 0)
    again.add(Entry(2, 1, 0.7, 0.7))
    assert Journal(tmp_path, 3).entries == again.entries


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A sweep that was not interrupted; its folder has `out`, `store` and what it printed."""
    folder = tmp_path_factory.mktemp("sweep")
    code, out, err = done(configured(folder), "--output", str(folder / "out"), "--json")
    (folder / "stderr").write_text(err, encoding="utf-8")
    (folder / "stdout").write_text(out, encoding="utf-8")
    assert code == 0, err
    return folder


def content_of(folder: Path) -> dict:
    return json.loads((folder / "stdout").read_text(encoding="utf-8").splitlines()[-1])


@pytest.mark.ray
@pytest.mark.slow
def test_asha_gives_up_what_is_worse_and_the_table_says_so(whole):
    content = content_of(whole)
    states = [(trial["state"], trial["rounds"]) for trial in content["trials"]]
    assert states[0] == ("finished", 4)
    assert states[1] == states[3] == ("stopped early", 2)
    assert content["best"]["trial"] in (0, 2)
    told = (whole / "stderr").read_text(encoding="utf-8").splitlines()
    assert told[:4] == [
        "4 trials of training.learning_rate on digits with cnn, 4 rounds, seeds 0, 1",
        f"files in {whole / 'out'}",
        "starting Ray",
        "trials at a time: 1",
    ]
    assert [line[:10] for line in told[4:8]] == [f"{place}/4  trial" for place in range(1, 5)]
    best = content["best"]
    rate = best["values"]["training.learning_rate"]
    assert told[8:] == [f"the best is trial {best['trial']}: learning_rate {rate}; writing its reports and models"]
    compared = compare.compare([str(whole / "out")])
    by_rate = {row["settings"]["training.learning_rate"]: row for row in compared.table}
    assert by_rate["1e-06"]["states"] == ["stopped early"] * 2
    assert not by_rate["1e-06"]["is_whole"]
    assert by_rate["0.2"]["seeds"] == [0, 1]
    first = content["trials"][0]
    assert by_rate["0.2"]["accuracy"]["mean"] == pytest.approx(first["value"], rel=1e-12)
    assert not (whole / "out" / ".tune").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_what_trials_may_be_held_against_each_other_by_is_what_rounds_have(whole):
    folder = whole / "out" / "trials" / "000" / "seed-0"
    table = pq.read_table(folder / "rounds.parquet").to_pandas()
    rounds = table[[name for name in table if "/" in name and not name.startswith("width_")]]
    settings = loader.load(folder / "config.yaml")
    found = metrics.comparable_metrics(settings)
    assert set(found) == set(rounds) - {"pruning_ratio/min", "pruning_ratio/max"}
    assert len(set(found)) == len(found)
    lacking = {name for name in found if rounds[name].isna().any()}
    assert lacking
    assert all("/tier/" in name for name in lacking)
    unscored = settings.model_copy(update={"evaluation": settings.evaluation.model_copy(update={"client_share": 0})})
    known = {*map(ACCURACY.recorded, metrics.OF_SUBMODELS)}
    of_submodels = {name for name in found if name in known or name.startswith("accuracy/tier/")}
    assert set(found) - set(metrics.comparable_metrics(unscored)) == of_submodels


def tier_metric(folder: Path, seed: int) -> Iterator[tuple[int, float, float]]:
    """What a trial reaches by `accuracy/tier/b`, and what the round itself has had of that, NaN if none."""
    tier = "keep_ratio: 1.0, flops_per_s: 1e9, down_bytes_per_s: 1e6, up_bytes_per_s: 1e6}"
    settings = tiny_settings(
        f"population.tiers=[{{name: a, share: 0.7, {tier}, {{name: b, share: 0.3, {tier}]",
        "data.split_seed=0",
        "selection.clients_per_round=1",
        "rounds=6",
        f"seed={seed}",
    )
    place = storage_path(folder)
    for result in trial.results([(settings, place, in_process.InProcessRunner())], "accuracy/tier/b"):
        own = records.logged(place / "rounds", result.round).metrics.get("accuracy/tier/b", math.nan)
        yield result.round, result.value, own


@pytest.mark.slow
def test_a_trial_stands_with_the_last_value_of_a_tier_that_few_rounds_have(tmp_path):
    folder = tmp_path / "trials" / "000" / "seed-4"
    reached = list(tier_metric(folder, seed=4))
    assert [round for round, _, _ in reached] == [4, 5, 6]  # nobody of the tier took part before
    assert math.isnan(reached[2][2])
    assert [value for _, value, _ in reached] == [reached[0][2], reached[1][2], reached[1][2]]
    with pytest.raises(SettingError, match=f"belongs to a trial of a sweep.* CONFIG --resume {tmp_path}`"):
        find(str(folder))


@pytest.mark.slow
def test_a_trial_whose_tier_never_takes_part_fails_at_its_end(tmp_path):
    with pytest.raises(RunFailedError, match=r"round 6: none of the rounds .* has had metric='accuracy/tier/b'"):
        list(tier_metric(tmp_path, seed=5))


@pytest.mark.ray
@pytest.mark.slow
def test_each_run_of_a_trial_is_the_run_that_its_config_describes(whole):
    for seed in (0, 1):
        folder = whole / "out" / "trials" / "000" / f"seed-{seed}"
        alone = run_one(build_scenario(loader.load(folder / "config.yaml")))
        assert tensors.digest(load_file(folder / "model.safetensors")) == alone.params_sha256
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        assert summary["accuracy"] == alone.scores[-1]


@pytest.mark.ray
@pytest.mark.slow
def test_mlflow_has_a_parent_with_the_tables_and_a_child_for_each_run(whole, tmp_path):
    content, uri = content_of(whole), f"sqlite:///{whole}/store/mlflow.db"
    client = MlflowClient(uri)
    runs = client.search_runs([content["experiment_id"]])
    children = {
        run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == content["run_id"]
    }
    assert set(children) == {f"trial {trial} seed {seed}" for trial in range(4) for seed in (0, 1)}
    assert len(runs) == 9
    parent = client.get_run(content["run_id"])
    assert (parent.info.status, parent.data.tags["kind"]) == ("FINISHED", "sweep")
    assert parent.data.metrics["trials/stopped_early"] >= 2
    assert parent.data.tags["best_trial"].startswith(f"trial {content['best']['trial']}: learning_rate")
    assert {*compare.FILES, "sweep.yaml", "trials.json"} <= {
        item.path for item in client.list_artifacts(content["run_id"])
    }
    best = content["best"]["trial"]
    for name in (f"trial {best} seed 0", f"trial {best} seed 1"):
        ended = children[name]
        kept = {item.path for item in client.list_artifacts(ended.info.run_id)}
        assert {"report.html", "partition.png"} <= kept
        assert "`mlflow.pytorch.load_model('models:/digits/" in ended.data.tags["mlflow.note.content"]
        version = client.search_model_versions(f"run_id = '{ended.info.run_id}'")
        assert [each.name for each in version] == ["digits"]
        points = client.get_metric_history(ended.info.run_id, "accuracy/global")
        assert [point.step for point in points] == [1, 2, 3, 4]
    assert len(list((whole / "out").glob("trials/*/*/report.html"))) == 2
    for name, rounds, state in (("trial 0 seed 1", 4, None), ("trial 1 seed 0", 2, "stopped early")):
        child = children[name]
        assert (child.info.status, child.data.tags.get("state")) == ("FINISHED", state)
        points = client.get_metric_history(child.info.run_id, "accuracy/global")
        assert [point.step for point in points] == list(range(1, rounds + 1))
        kept = {item.path for item in client.list_artifacts(child.info.run_id)}
        assert {"config.yaml", "rounds.parquet", "clients.parquet", "summary.json"} <= kept
        assert ("model.safetensors" in kept) == (state is None)
        page = write.of_named(child.info.run_id, str(tmp_path / "page.html"), uri).read_text()
        assert "under the same clock mode, deadline, availability and batteries" in page
        assert "of the parameters, mean over clients" in page
    assert children["trial 2 seed 0"].data.params["training.learning_rate"] == "0.1"
    by_folder, by_parent = (
        [{key: value for key, value in row.items() if key != "runs"} for row in compared.table]
        for compared in (
            compare.compare([str(whole / "out")]),
            compare.compare([content["run_id"]], uri),
        )
    )
    assert by_folder == by_parent


@pytest.mark.ray
@pytest.mark.long
def test_a_sweep_that_is_interrupted_and_killed_goes_on_to_the_same_figures(whole, tmp_path):
    config, out = configured(tmp_path), tmp_path / "out"
    process = started(config, "--output", str(out))
    wait_for_lines(process, out, 2)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "stopping: all results so far are kept; Ctrl-C again stops at once" in err
    goes_on = f"python {ROOT}/jobs/sweep.py {config} --resume {out}"
    assert err.endswith(f"raysim: interrupted; all results so far are kept, `{goes_on}` continues\n")
    before = len(lines_of(out))
    assert before < len(lines_of(whole / "out"))
    process = started(config, "--resume", str(out))
    wait_for_lines(process, out, before + 3)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE_S)
    assert len(lines_of(out)) < len(lines_of(whole / "out"))
    code, printed, err = done(config, "--resume", str(out), "--json")
    assert code == 0, err
    assert lines_of(out) == lines_of(whole / "out")
    ours, others = json.loads(printed.splitlines()[-1]), content_of(whole)
    assert ours["trials"] == others["trials"]
    tables = [compare.compare([str(folder)]).table for folder in (out, whole / "out")]
    assert [{**row, "runs": []} for row in tables[0]] == [{**row, "runs": []} for row in tables[1]]
    client = MlflowClient(f"sqlite:///{tmp_path}/store/mlflow.db")
    runs = client.search_runs([ours["experiment_id"]])
    assert len(runs) == 9
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        points = client.get_metric_history(run.info.run_id, "accuracy/global")
        steps = [point.step for point in points]
        assert steps == sorted(set(steps))
    check_interrupted_at_the_end(config, out, ours, client)


def check_interrupted_at_the_end(config: Path, out: Path, content: dict, client: MlflowClient) -> None:
    """Terminate a sweep whose trials are over while its best trial's first run is completed; then go on."""
    best = out / "trials" / f"{content['best']['trial']:03d}" / "seed-0"
    noted, summary = (json.loads((best / name).read_text(encoding="utf-8")) for name in ("run.json", "summary.json"))
    assert summary["trial"] == content["best"]["trial"]
    assert summary["values"] == content["best"]["values"]
    assert {"params_sha256", "accuracy", "state"} <= set(summary)
    (best / "run.json").write_text(json.dumps(noted | {"finished": False}))
    (best / "summary.json").write_text(json.dumps({"trial": 0}))
    process, until = started(config, "--resume", str(out)), time.monotonic() + PATIENCE_S
    while "params_sha256" not in (best / "summary.json").read_text(encoding="utf-8"):  # its last round is over
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    printed, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, printed) == (143, ""), err
    assert err.splitlines()[-1].endswith(f"jobs/sweep.py {config} --resume {out}` continues")
    assert client.get_run(content["run_id"]).info.status == "KILLED"
    code, _, err = done(config, "--resume", str(out))
    assert code == 0, err
    again = json.loads((best / "summary.json").read_text(encoding="utf-8"))
    assert {name: again[name] for name in again if name not in MEASURED} == {
        name: summary[name] for name in summary if name not in MEASURED
    }
    assert client.get_run(content["run_id"]).info.status == "FINISHED"


@pytest.fixture(scope="module")
def machines() -> Iterator["Cluster"]:
    """A cluster of two machines with one CPU each, neither of which sees the other's processes."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.mark.ray
@pytest.mark.long
def test_trials_in_their_own_process_spread_over_machines(whole, machines, tmp_path):
    search = {"training.learning_rate": {"grid": [0.2, 0.1]}}
    of_others = Path(machines.head_node.get_session_dir_path()) / "artifacts" / "others"
    of_others.mkdir(parents=True)
    config = configured(tmp_path, search=search, asha=None, concurrent=None, address=machines.address)
    code, out, err = done(config, "--output", str(tmp_path / "out"), "--json")
    assert code == 0, err
    assert err.splitlines()[2:4] == [f"joining Ray at {machines.address}", "trials at a time: 2"]
    assert of_others.is_dir()
    content = json.loads(out.splitlines()[-1])
    assert [each["state"] for each in content["trials"]] == ["finished"] * 2
    assert content["trials"][0] == content_of(whole)["trials"][0]
    runs = MlflowClient(f"sqlite:///{tmp_path}/store/mlflow.db").search_runs([content["experiment_id"]])
    assert [run.info.status for run in runs] == ["FINISHED"] * 5
    assert len(compare.compare([str(tmp_path / "out")]).table) == 2


@pytest.mark.ray
@pytest.mark.long
def test_a_trial_that_fails_is_told_the_others_go_on_and_actors_on_two_machines_give_the_same(
    whole, machines, tmp_path
):
    wild = SWEEP["set"] | {"training.clip_norm": None, "executor.kind": "ray", "executor.num_actors": 1}
    config = configured(
        tmp_path,
        set=wild,
        search={"training.learning_rate": {"grid": [1.0e9, 0.2]}},
        asha=None,
        concurrent=None,
        address=machines.address,
    )
    code, out, err = done(config, "--output", str(tmp_path / "out"), "--json")
    assert code == 1, err
    assert err.splitlines()[3] == "trials at a time: 1"  # each takes a CPU of both machines
    content = json.loads(out.splitlines()[-1])
    assert [trial["state"] for trial in content["trials"]] == ["failed", "finished"]
    assert "raysim: the run failed: 1 of 2 trials failed (trial 0: learning_rate 1000000000.0: round 1, client" in err
    assert "Traceback" not in err
    client = MlflowClient(f"sqlite:///{tmp_path}/store/mlflow.db")
    statuses = {run.info.run_name: run.info.status for run in client.search_runs([content["experiment_id"]])}
    told = [statuses.pop(f"trial {trial} seed {seed}") for trial in (0, 1) for seed in (0, 1)]
    assert told == ["FAILED", "FAILED", "FINISHED", "FINISHED"]
    assert list(statuses.values()) == ["FAILED"]
    folder = tmp_path / "out" / "trials" / "001" / "seed-0"
    settings = loader.load(folder / "config.yaml")
    executor = settings.executor.model_copy(update={"kind": "in-process", "num_actors": None})
    alone = run_one(build_scenario(settings.model_copy(update={"executor": executor})))
    assert tensors.digest(load_file(folder / "model.safetensors")) == alone.params_sha256


def test_the_committed_sweep_is_planned():
    sweep = plan.load(CONFIGS / "sweep_digits.yaml")
    assert len(sweep.trials) == sweep.num_drawn == 8
    assert sweep.num_cpus == 1


def test_the_page_shows_the_committed_sweep():
    page = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    shown = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    committed = loader.read_yaml(CONFIGS / "sweep_digits.yaml")
    assert shown.pop("set").items() <= committed["set"].items()
    assert shown.items() <= committed.items()
    for name in Domain.model_fields:
        assert f"| `{name}: [" in page
