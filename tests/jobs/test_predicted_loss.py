"""`jobs/predicted_loss.py`: its figures by hand, and its table in the docs."""

import json

import pytest

from tests.conftest import ROOT
from tests.scripts import loaded

JOB = loaded(ROOT / "jobs" / "predicted_loss.py")


def test_the_page_has_the_table_of_the_results():
    results = json.loads((ROOT / "docs" / "predicted_loss.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "significance.md").read_text(encoding="utf-8")
    assert JOB.table_of(results) in page
    assert JOB.with_table(page, JOB.table_of(results)) == page
    assert set(results["networks"]) == set(JOB.NETWORKS)
    assert all(len(cases) == len(JOB.SEEDS) * JOB.ROUNDS // JOB.EVERY for cases in results["networks"].values())


def test_figures_are_those_counted_by_hand():
    """Round 1 lies lower than round 2 in both, within each round the order is the other way round."""
    values = [(1, 1.0, 4.0), (1, 2.0, 2.0), (2, 10.0, 40.0), (2, 11.0, 20.0), (3, None, 1.0)]
    cases = [{"round": r, "m": m} | ({} if p is None else {"p": p}) for r, p, m in values]
    found = JOB.figures_of(cases, "p", "m")
    assert (found["cases"], found["ratio"]) == (4, pytest.approx((0.25 + 0.55) / 2))
    assert found["correlation"] == pytest.approx(0.6)
    assert found["within"] < -0.8


@pytest.mark.slow
def test_a_case_holds_predictions_beside_measured_changes():
    few = ("population.clients=8", "selection.clients_per_round=4", "training.epochs=1")
    (case,) = JOB.cases_of("with BatchNorm", 0, few, rounds=3)
    assert case["round"] == 2
    assert {name for *_, predicted, measured in JOB.PAIRS for name in (predicted, measured)} <= set(case)
