"""Each row of a comparison is tuned on validation rows: with trials of its own, before the runs that are compared."""

import csv
import json
import statistics

import pytest

from raysim.analysis.study import plan
from raysim.analysis.study.grid import of_trials
from raysim.analysis.study.one_run import run_one
from raysim.analysis.study.run import check
from raysim.analysis.study.settings import ComparisonSettings
from raysim.analysis.study.tuning import judged
from raysim.config import loader
from raysim.core.errors import SettingError
from raysim.simulation.build import build_scenario
from tests.analysis.study.test_run import GRID, compared
from tests.conftest import CONFIGS, TINY

VALUES = [0.02, 0.5, 1e30]
VALIDATED = dict(loader.parse_override(override) for override in TINY) | {"data.validation_share": 0.2}
METHODS = ["fedavg", {"name": "heterofl", "set": {"training.learning_rate": 0.1}}, "ca-hfp"]


def grid_of(**grid) -> dict:
    return GRID | {"grid": {name.replace("__", "."): values for name, values in grid.items()}}


def settings_with(tune: dict | None, methods: list = METHODS) -> ComparisonSettings:
    entries = [{"name": entry} if isinstance(entry, str) else entry for entry in methods]
    base = loader.read_yaml(CONFIGS / "digits.yaml")
    content = {"base": base, "set": VALIDATED, "methods": entries, "seeds": [0], "tune": tune}
    return ComparisonSettings.model_validate(content)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    tune = grid_of(training__learning_rate=VALUES, training__clip_norm=[None])
    changes = {"set": VALIDATED, "methods": METHODS, "seeds": [0], "tune": tune}
    done = compared(tmp_path_factory.mktemp("tuned"), **changes)
    assert done.code == 0
    return done, json.loads((done.out / "comparison.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_row_has_the_value_that_does_best_on_validation_rows(tuned):
    done, content = tuned
    with (done.out / "tuning.csv").open(encoding="utf-8", newline="") as file:
        trials = list(csv.DictReader(file))
    assert [trial["label"] for trial in trials] == ["fedavg"] * 3 + ["heterofl"] + ["ca-hfp"] * 3
    for row in content["rows"]:
        own = {trial["training.learning_rate"]: trial for trial in trials if trial["label"] == row["label"]}
        (chosen,) = [value for value, trial in own.items() if trial["is_chosen"] == "True"]
        reached = {value: float(each["validation_accuracy"] or "-inf") for value, each in own.items()}
        assert reached[chosen] == max(reached.values())
        if row["label"] == "heterofl":
            assert chosen == "", "its own value is not tuned"
            continue
        assert row["set"] == {"training.learning_rate": float(chosen), "training.clip_norm": None}
        assert "training diverged" in own["1e+30"]["failure"]
        config = loader.load(done.out / "runs" / f"{row['label']}-seed0" / "config.yaml")
        assert (config.training.learning_rate, config.training.clip_norm) == (float(chosen), None)


@pytest.mark.slow
def test_a_trial_is_the_run_that_its_values_describe(tuned):
    done, _ = tuned
    with (done.out / "tuning.csv").open(encoding="utf-8", newline="") as file:
        first = next(csv.DictReader(file))
    config = loader.load(done.out / "runs" / "fedavg-seed0" / "config.yaml")
    training = config.training.model_copy(update={"learning_rate": VALUES[0]})
    changes = {"rounds": GRID["rounds"], "seed": GRID["seeds"][0], "training": training}
    alone = run_one(build_scenario(config.model_copy(update=changes)))
    scores = [report.validation.primary for report in alone.reports]
    assert float(first["validation_accuracy"]) == statistics.fmean(scores[len(scores) // 2 :])


@pytest.mark.slow
def test_the_table_says_how_its_rows_were_tuned(tuned):
    done, content = tuned
    text = (done.out / "comparison.md").read_text(encoding="utf-8")
    assert "(seeds 7), over training.clip_norm: null; training.learning_rate: 0.02, 0.5, 1e+30." in text
    at_edge = [row for row in content["rows"] if row["set"].get("training.learning_rate") == VALUES[0]]
    assert text.count("(learning_rate 0.02)") == len(at_edge)
    again = plan.load(done.out / "comparison.yaml")
    assert len(again.trials) == 7, "the file is the one that was given"


def test_every_row_tries_every_combination_that_it_has_no_value_of():
    tune = grid_of(training__learning_rate=[0.1, 0.2], training__epochs=[1, 2]) | {"seeds": [7, 8]}
    planned = plan.plan(settings_with(tune))
    found = [
        (run.entry.name, run.settings.training.learning_rate, run.settings.training.epochs, run.seed)
        for run in planned.trials
    ]
    pairs = [(rate, epochs) for rate in (0.1, 0.2) for epochs in (1, 2)]
    assert found == [
        *(("fedavg", *pair, seed) for pair in pairs for seed in (7, 8)),
        *(("heterofl", 0.1, epochs, seed) for epochs in (1, 2) for seed in (7, 8)),
        *(("ca-hfp", *pair, seed) for pair in pairs for seed in (7, 8)),
    ]
    assert {run.settings.rounds for run in planned.trials} == {2}
    assert {run.settings.split_seed for run in planned.trials} == {run.settings.split_seed for run in planned.runs}


def test_a_value_for_all_rows_leaves_nothing_to_tune(tmp_path):
    path = tmp_path / "comparison.yaml"
    path.write_text(loader.to_yaml(settings_with(GRID)), encoding="utf-8")
    assert len(plan.load(path).trials) == 4
    assert not plan.load(path, ["training.learning_rate=0.3"]).trials
    assert len(plan.load(path, ["training.epochs=2"], methods="ca-hfp").trials) == 2


def test_a_value_that_does_not_fit_is_refused_before_any_trial():
    planned = plan.plan(settings_with(grid_of(method__normalization=[None, "static"]), ["fedavg"]))
    with pytest.raises(SettingError, match=r"normalization \"static\"': method.normalization='static' has no effect"):
        check(planned)


def test_of_equal_values_the_first_is_taken_and_a_failed_one_last():
    settings = settings_with(GRID, ["fedavg"])
    assert len(of_trials(settings, settings.tune).methods) == 2
    found = judged(settings, [(1, "it diverged"), (0, "it diverged")])
    assert found.settings.methods[0].set == {"training.learning_rate": 0.1}
    assert [row["failure"] for row in found.rows] == ["it diverged"] * 2
