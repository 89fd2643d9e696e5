"""A metric that should go down leads a run everywhere: records, stops, MLflow, pages, comparisons, sweeps."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

import raysim
from raysim.analysis.comparison import compare
from raysim.analysis.replay import finished_run, summary
from raysim.analysis.replay import run as replays
from raysim.analysis.sweep.metrics import comparable_metrics, rows_of
from raysim.analysis.sweep.plan import SweepSettings, plan
from raysim.config import loader
from raysim.core.errors import RunFailedError, SettingError
from raysim.report import write
from raysim.simulation.build import build_scenario
from raysim.simulation.metrics import left_out_of
from raysim.terminal.console import summary_lines
from raysim.tracking import description
from tests.analysis.study.test_run import compared
from tests.clocked import QUICK
from tests.commands import left_with
from tests.conftest import CONFIGS, ROOT, TINY, settings_of, tiny_settings
from tests.experiment.test_resume import MEASURED, Stopping, played, resumed
from tests.scripts import loaded

BRIER = ("task.primary=tests.task.own_parts:brier", "task.direction=down", "task.metrics=[accuracy]")
SHARED = (*QUICK, *BRIER, "data.validation_share=0.2", "data.heldout_share=0.3", "evaluation.client_share=1.0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("brier")


def settings_in(folder: Path, *more: str) -> Any:
    tracked = (f"tracking.uri=sqlite:///{folder}/m.db", "tracking.client_runs=true", "checkpoint.every=1")
    return settings_of("heterofl", *SHARED, "evaluation.targets=[0.99, 0.88, 0.001]", *tracked, *more)


@pytest.fixture(scope="module")
def done(folder: Path) -> dict[str, Any]:
    return played(folder / "run", settings_in(folder))


@pytest.mark.slow
def test_records_and_summary_are_named_after_it_and_judge_by_its_direction(done, folder: Path) -> None:
    run = raysim.load(str(folder / "run"))
    rounds, clients = run.rounds, run.clients
    scores, validation = rounds["brier"], rounds["validation_brier"]
    assert not {"accuracy", "validation_accuracy"} & rounds.keys()
    assert "accuracy" not in clients
    assert (rounds["brier/global"] == scores).all()
    assert (rounds["brier/validation"] == validation).all()
    np.testing.assert_array_equal(rounds["brier/best"], np.minimum.accumulate(scores))
    for round in rounds["round"]:
        of_round = clients["round"] == round
        own, tiers = clients["brier"][of_round], clients["tier"][of_round]
        known = ~np.isnan(own)
        means = [own[known & (tiers == tier)].mean() for tier in set(tiers[known].tolist())]
        assert rounds["fairness/worst_tier_brier"][round - 1] == pytest.approx(max(means))
        assert rounds["brier/submodel_mean"][round - 1] == pytest.approx(np.nanmean(own))
    assert "fairness/slowest_decile_brier" in rounds
    assert (done["primary_metric"], done["direction"]) == ("brier", "down")
    assert (done["brier"], done["best_brier"]) == (scores[-1], scores.min())
    chosen = int(np.argmin(validation))
    assert done["chosen_by_validation"] == {
        "round": chosen + 1,
        "validation_brier": validation[chosen],
        "brier": scores[chosen],
    }
    assert done["widths"][0]["brier"] == scores[-1]
    assert rounds["width_brier/0.25"][-1] == done["widths"][-1]["brier"]
    reached = [target["round"] for target in done["targets"]]
    assert [target["brier"] for target in done["targets"]] == [0.99, 0.88, 0.001]
    assert reached[0] == 1
    assert reached[2] is None
    if reached[1] is not None:
        assert scores[reached[1] - 1] <= 0.88 < min(scores[: reached[1] - 1], default=1)
    assert done["metrics"]["test"]["accuracy"] == rounds["test/accuracy"][-1]
    assert run.metadata["primary_metric"] == "brier"


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_scores(done, folder: Path) -> None:
    with pytest.raises(RunFailedError):
        played(folder / "stopped", settings_in(folder), Stopping(2))
    again = resumed(folder / "stopped")
    assert {name: again[name] for name in again.keys() - MEASURED} == {
        name: done[name] for name in done.keys() - MEASURED
    }


@pytest.mark.slow
def test_mlflow_has_its_curves(done, folder: Path) -> None:
    client = MlflowClient(f"sqlite:///{folder}/m.db")
    run = client.get_run(done["run_id"])
    metrics = run.data.metrics
    assert metrics["brier/global"] == done["brier"]
    assert metrics["brier/best"] == done["best_brier"]
    assert {"brier/validation", "brier/submodel_mean", "time/brier/global", "test/accuracy"} <= metrics.keys()
    assert not [
        name for name in metrics if "accuracy" in name and name not in ("test/accuracy", "validation/accuracy")
    ]
    assert len([name for name in metrics if not name.startswith("system/")]) <= 60
    text = run.data.tags[description.TAG]
    assert f"| test brier | {done['brier']:.5g}, best {done['best_brier']:.5g} |" in text
    children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{done['run_id']}'")
    assert any("brier" in child.data.metrics for child in children)


@pytest.mark.slow
def test_pages_and_lines_name_it_and_write_no_per_cent(done, folder: Path) -> None:
    lines = "\n".join(summary_lines(done))
    assert f"global test brier       {done['brier']:.5g} (best {done['best_brier']:.5g})" in lines
    assert f"validation brier        {done['validation_brier']:.5g} (best " in lines
    assert "brier 0.001             not reached" in lines
    assert "accuracy" not in lines
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    assert f"{done['brier']:.5g}" in page
    assert f"best {done['best_brier']:.5g}" in page
    assert re.search(r"<h2[^>]*>.*Brier", page)
    assert "test brier" in page
    assert "test accuracy" not in page
    assert "target 0.88" in page


@pytest.mark.slow
def test_it_ends_a_run_from_above(done, folder: Path) -> None:
    validation = raysim.load(str(folder / "run")).rounds["validation_brier"]
    target = float(validation[1])
    first = int(np.flatnonzero(validation <= target)[0])
    stopped = played(folder / "ended", settings_in(folder, f"stop.primary={target!r}"))
    assert stopped["rounds"] == first + 1
    assert stopped["stopped_by_brier_on"] == "validation rows"
    assert "stop.primary            is of the validation rows" in "\n".join(summary_lines(stopped))
    assert stopped["why_no_fedavg"].startswith("stop.primary=")


@pytest.mark.slow
def test_runs_are_compared_by_it(done, folder: Path, capsys) -> None:
    played(folder / "other", settings_in(folder, "training.learning_rate=0.0001"))
    found = compare.compare([str(folder / "run"), str(folder / "other")])
    first, second = found.table
    assert (first["brier"]["mean"], first["best_brier"]["mean"]) == (done["brier"], done["best_brier"])
    assert second["points"] == pytest.approx(second["brier"]["mean"] - first["brier"]["mean"])
    better, worse = sorted(found.table, key=lambda row: row["brier"]["mean"])
    assert "megabytes" in better["fronts"]
    assert "megabytes" not in worse["fronts"], "as many bytes for a worse score"
    assert {"brier final", "brier best", "difference to baseline"} <= {column.heading for column in found.columns}
    assert "lower is better" in found.notes[0]
    compare.write(found, folder / "comparison")
    page = (folder / "comparison" / "compare.html").read_text(encoding="utf-8")
    assert "Brier by cost" in page
    assert "What brier costs" in page
    assert "Accuracy by cost" not in page
    assert "to_0.88_rounds_mean" in (folder / "comparison" / "compare.csv").read_text(encoding="utf-8")
    played(folder / "accurate", settings_of("heterofl", *QUICK, f"tracking.uri=sqlite:///{folder}/m.db"))
    with pytest.raises(SettingError, match=r"is scored by '\w+', RUN=.* by '\w+'; allowed: runs with the same"):
        compare.compare([str(folder / "run"), str(folder / "accurate")])
    assert left_with("report", str(folder / "run"), "--baseline", str(folder / "accurate")) == 2
    assert "is scored by 'accuracy'" in capsys.readouterr().err
    assert "Brier" in write.render(raysim.load(str(folder / "run")), raysim.load(str(folder / "other")))


@pytest.mark.slow
def test_a_replay_has_the_runs_own_scores(done, folder: Path) -> None:
    recorded = finished_run.read(str(folder / "run"))
    told = summary.summary_from(replays.replay(recorded, None, None))
    assert (told["brier"], told["best_brier"]) == (done["brier"], done["best_brier"])
    assert [target["round"] for target in told["targets"]] == [target["round"] for target in done["targets"]]
    assert summary.tables(told)


SWEEP = {
    "base": loader.read_yaml(CONFIGS / "digits.yaml"),
    "set": dict(loader.parse_override(each) for each in (*TINY, *SHARED, "rounds=2")),
    "search": {"training.learning_rate": {"grid": [0.0001, 0.1]}},
}


def test_a_sweep_minimises_it_unless_told_otherwise() -> None:
    planned = plan(SweepSettings.model_validate(SWEEP))
    assert (planned.settings.metric, planned.settings.mode) == ("brier/validation", "min")
    assert plan(SweepSettings.model_validate(SWEEP | {"metric": "brier", "mode": "max"})).mode == "max"
    assert plan(SweepSettings.model_validate(SWEEP | {"metric": "fairness/worst_tier_brier"})).mode == "min"
    assert plan(SweepSettings.model_validate(SWEEP | {"metric": "test/accuracy"})).mode == "max"
    known = comparable_metrics(planned.trials[0].runs[0])
    assert {"brier/global", "brier/best", "brier/tier/slow", "test/accuracy"} - {"brier/tier/slow"} <= set(known)
    assert not [name for name in known if name.startswith("accuracy") or "primary" in name]
    assert rows_of("brier/best", planned.primary) == "test rows"
    searched = {"task.primary": {"grid": ["accuracy", "macro_f1"]}}
    apart = SWEEP | {"set": {"executor.kind": "in-process"}, "search": searched}
    with pytest.raises(SettingError, match="task has another primary metric than other trials"):
        plan(SweepSettings.model_validate(apart))


@pytest.mark.slow
def test_a_sweep_finds_the_least(tmp_path: Path, capsys) -> None:
    job = loaded(ROOT / "jobs" / "sweep.py")
    content = SWEEP | {"set": SWEEP["set"] | {"tracking.uri": f"sqlite:///{tmp_path}/m.db"}, "concurrent": 1}
    path = tmp_path / "sweep.yaml"
    path.write_text(loader.to_yaml(SweepSettings.model_validate(content)), encoding="utf-8")
    code = left_with(str(path), "--output", str(tmp_path / "out"), "--json", command=job.sweep, kept=job.KEPT)
    assert code == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    values = [trial["value"] for trial in found["trials"]]
    assert found["best"]["value"] == min(values) < max(values)
    assert found["best"]["brier"] == found["best"]["value"]
    assert found["best"]["test_brier"] > 0
    assert found["brier_is_of"] == "validation rows"
    lines = (tmp_path / "out" / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    assert "brier" in json.loads(lines[0])


@pytest.mark.slow
def test_a_comparison_tunes_and_leads_by_it(tmp_path: Path) -> None:
    changes = {
        "set": SWEEP["set"],
        "methods": ["fedavg", "heterofl"],
        "seeds": [0, 1],
        "tune": {"grid": {"training.learning_rate": [0.0001, 0.1]}, "rounds": 2, "seeds": [0]},
    }
    made = compared(tmp_path / "study", **changes)
    assert made.code == 0
    content = json.loads((made.out / "comparison.json").read_text(encoding="utf-8"))
    for row in content["rows"]:
        own = [trial for trial in content["tuning"] if trial["label"] == row["label"]]
        (chosen,) = [trial for trial in own if trial["is_chosen"]]
        assert chosen["validation_brier"] == min(trial["validation_brier"] for trial in own)
        assert row["leading"] == "brier"
        assert row["best_brier"]["mean"] <= row["brier"]["mean"]
    text = (made.out / "comparison.md").read_text(encoding="utf-8")
    assert "Test brier (lower is better), means over seeds" in text
    assert "accuracy" not in text


@pytest.mark.slow
def test_numbers_are_learned_by_regression(tmp_path: Path) -> None:
    given = (
        *QUICK,
        "task.name=regression",
        "task.metrics=[mae, r2]",
        "task.client_metrics=true",
        "data.heldout_share=0.3",
        "model.name=mlp",
        "model.options={hidden: [16]}",
        "data.partition={name: iid}",
        "training.learning_rate=0.01",
        "rounds=6",
        f"tracking.uri=sqlite:///{tmp_path}/m.db",
    )
    done = played(tmp_path / "run", tiny_settings("method.name=ca-hfp", *given))
    run = raysim.load(str(tmp_path / "run"))
    assert run.rounds["rmse"][-1] < run.rounds["rmse"][0]
    assert done["best_rmse"] == run.rounds["rmse"].min()
    assert done["rmse"] == pytest.approx(run.rounds["loss"][-1] ** 0.5)
    assert done["metrics"]["test"]["mae"] <= done["rmse"]
    assert done["metrics"]["test"]["r2"] < 1
    assert "heldout_mae" in run.clients
    scenario = build_scenario(tiny_settings(*given))
    assert not [name for name in left_out_of(scenario) if "primary" in name]
