"""`jobs/rank_significance.py`: its figures by hand, its table in the docs, and the default that follows from them."""

import json

import numpy as np
import pytest
import torch

from raysim.methods.estimators import ESTIMATORS
from raysim.methods.table import METHODS
from raysim.pruning.significance import FORMS
from tests.conftest import ROOT
from tests.scripts import loaded

JOB = loaded(ROOT / "jobs" / "rank_significance.py")

RESULTS = json.loads((ROOT / "docs" / "significance.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "significance.md").read_text(encoding="utf-8")


def test_the_page_has_the_table_of_the_results():
    assert JOB.table_of(RESULTS) in PAGE
    assert JOB.with_table(PAGE, JOB.table_of(RESULTS)) == PAGE
    estimated = JOB.json_of(JOB.ESTIMATED)
    assert {JOB.estimator_of(results) for results in estimated} == set(ESTIMATORS)
    assert JOB.table_of_estimators(estimated) in PAGE
    assert JOB.with_table(PAGE, JOB.table_of_estimators(estimated)) == PAGE
    assert len({name.rpartition(", ")[0] for name in RESULTS["networks"]}) >= 3
    assert len(RESULTS["rounds"]) >= 3


def test_the_default_is_the_form_that_the_results_choose():
    chosen = JOB.default_of(RESULTS)
    assert METHODS["ca-hfp"].options.score == chosen
    others = [form for form in FORMS if form != chosen]
    correlation = {form: JOB.mean_correlation(JOB.of_form(RESULTS, form)) for form in FORMS}
    for form in others:
        shares = [JOB.share_of(JOB.of_form(RESULTS, form), name) for name in ("differs", "differs_without_h")]
        assert correlation[form] <= correlation[chosen] or min(shares) < 0.25
    assert f"`{chosen}`" in PAGE.split("## Which form is the default\n")[1].split("```")[0]


def made_up(correlations: dict[str, float], differs: dict[str, int], cases: int = 8) -> dict:
    figures = {
        form: {
            "cases": cases,
            "differs": differs.get(form, cases),
            "differs_without_h": cases,
            "correlation": {"3": correlations.get(form, 0.0), "6": 0.0},
        }
        for form in FORMS
    }
    return {"rounds": [3, 6], "networks": {"net, full": figures}}


def test_a_first_order_ranking_under_another_name_is_not_the_default():
    correlations = {"robust": 0.9, "curvature": 0.5, "channel": 0.4}
    assert JOB.default_of(made_up(correlations, {"robust": 2})) == "robust"  # a quarter is enough
    assert JOB.default_of(made_up(correlations, {"robust": 1})) == "curvature"


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_cases_of_a_small_run(estimator):
    few = ("model.options={hidden: [12, 8]}", "data.max_train_examples=150", "training.epochs=1")
    few += (f"method.estimator={estimator}",)
    cases = list(JOB.cases_of("mlp", "tiers", 0, (2, 4), few))
    assert [case.form for case in cases] == list(FORMS) * 4  # two groups after two rounds
    assert all(-1 <= case.correlation <= 1 for case in cases)
    summary = JOB.summary_of(cases)
    assert {each["cases"] for each in summary.values()} == {4}
    different = len({tuple(each["correlation"].values()) for each in summary.values()})
    assert different == 1 if estimator == "secant" else different > 2, "a secant's curvature outweighs any gradient"


@pytest.mark.slow
def test_the_curvature_of_the_default_changes_masks():
    """Trained with random masks: another half than that of sum |g w|, and than that of the form without curvature."""
    default, cases = METHODS["ca-hfp"].options.score, []
    for seed in range(2):
        few = ("model.options={channels: [8, 12], hidden: 16}", "data.max_train_examples=300")
        cases += [case for case in JOB.cases_of("cnn", "tiers", seed, (4, 8), few) if case.form == default]
    assert len(cases) == 12
    assert sum(case.differs for case in cases) >= 0.25 * len(cases)
    assert sum(case.differs_without_curvature for case in cases) >= 0.25 * len(cases)


def test_the_better_half_and_the_network_with_batch_norm():
    assert JOB.kept_half(np.array([0.1, 5.0, -2.0, 5.0, 3.0])) == {1, 3, 4}
    model = JOB.conv_norm((1, 8, 8), 10)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
