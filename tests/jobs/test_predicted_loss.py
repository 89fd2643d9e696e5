"""`jobs/predicted_loss.py`: its figures by hand, and its table in the docs."""

import importlib.util
import json
import sys

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "jobs"))
SPECIFICATION = importlib.util.spec_from_file_location("predicted_loss", ROOT / "jobs" / "predicted_loss.py")
JOB = importlib.util.module_from_spec(SPECIFICATION)
sys.modules["predicted_loss"] = JOB
SPECIFICATION.loader.exec_module(JOB)
sys.path.remove(str(ROOT / "jobs"))


def test_the_page_has_the_table_of_the_results():
    results = json.loads((ROOT / "docs" / "predicted_loss.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "significance.md").read_text(encoding="utf-8")
    assert JOB.table_of(results) in page
    assert JOB.with_table(page, JOB.table_of(results)) == page
    assert set(results["networks"]) == set(JOB.NETWORKS)
    assert all(len(cases) == len(JOB.SEEDS) * JOB.ROUNDS // JOB.EVERY for cases in results["networks"].values())


def test_figures_are_those_counted_by_hand():
    cases = [
        {"p": 1.0, "m": 2.0}, {"p": 2.0, "m": 8.0}, {"p": -1.0, "m": 4.0}, {"m": 1.0},
    ]  # fmt: skip
    found = JOB.figures_of(cases, "p", "m")
    assert found == {"cases": 3, "correlation": pytest.approx(0.5), "sign": pytest.approx(2 / 3), "ratio": 0.25}


@pytest.mark.slow
def test_a_case_holds_predictions_beside_measured_changes():
    few = ("population.clients=8", "selection.clients_per_round=4", "training.epochs=1")
    (case,) = JOB.cases_of("with BatchNorm", 0, few, rounds=3)
    assert case["round"] == 2
    assert {name for _, predicted, measured in JOB.PAIRS for name in (predicted, measured)} <= set(case)
