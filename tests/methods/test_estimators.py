"""The estimators against the specification's formulas, client by client and entry by entry."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from raysim.client.assignments import Assignments
from raysim.client.trainer import ClientTrainer
from raysim.client.training import effective_steps
from raysim.executors.in_process import InProcessExecutor
from raysim.methods.estimators import ESTIMATORS
from raysim.methods.method import CohortReport
from raysim.pruning import submodel
from raysim.pruning.coverage import count_coverage
from raysim.pruning.significance import FORMS, channel_sums
from raysim.simulation import round as rounds
from raysim.simulation.build import build_scenario
from raysim.simulation.transition import initial_state
from tests.conftest import tiny_settings
from tests.oracles import held_entries
from tests.planned import plan_round


def one_round(estimator: str):
    """Each client's full-coordinate update in a round with random masks, and the report of all."""
    scenario = build_scenario(tiny_settings(f"method.estimator={estimator}", "selection.clients_per_round=4"))
    workload, state = scenario.workload, initial_state(scenario)
    planned = plan_round(scenario, state)
    cohort, masks = planned.cohort, planned.masks
    contribution = ClientTrainer(workload).train(planned.assignments, planned.broadcast)
    alone = [
        ClientTrainer(workload).train(Assignments.of_rows([assignment]), planned.broadcast)
        for assignment in planned.assignments
    ]
    coverage = count_coverage(workload.plan, masks, cohort.examples)
    report = CohortReport(planned.view, contribution, masks, coverage, np.ones(len(masks)))
    return scenario, state, cohort, masks, alone, report


@pytest.mark.slow
def test_variation_is_the_specifications_formula() -> None:
    scenario, state, cohort, masks, alone, report = one_round("variation")
    workload, local = scenario.workload, scenario.workload.local
    memory = ESTIMATORS["variation"].update({}, report)
    held = [held_entries(workload.plan, mask, state.params) for mask in masks]
    assert {key for key in memory if key.startswith("curvature/")} == {f"curvature/{key}" for key in state.params}
    for key, current in state.params.items():
        first, second, share = (torch.zeros(current.shape, dtype=torch.float64) for _ in range(3))
        for k, examples in enumerate(cohort.examples.tolist()):
            update = alone[k].sums["update"].value(key) / examples
            steps = effective_steps(local.num_steps(examples), local.momentum)
            gradient = -update / (local.learning_rate * steps)
            first += examples * held[k][key] * gradient
            second += examples * held[k][key] * gradient**2
            share += examples * held[k][key].double()
        expected = torch.where(share > 0, first / share.clamp_min(1), 0)
        torch.testing.assert_close(memory[f"gradient/{key}"], expected, rtol=1e-4, atol=1e-7)
        expected = torch.where(share > 0, 16 * second / share.clamp_min(1), 0)
        torch.testing.assert_close(memory[f"curvature/{key}"], expected, rtol=1e-3, atol=1e-7)
        assert torch.equal(memory[f"curvature_seen/{key}"].expand(current.shape), share > 0)


@pytest.mark.slow
def test_fisher_averages_the_holders_channel_sums() -> None:
    scenario, _, cohort, masks, alone, report = one_round("fisher")
    memory = ESTIMATORS["fisher"].update({}, report)
    for unit in range(scenario.workload.plan.num_units):
        holders = [k for k, mask in enumerate(masks) if mask.kept[unit]]
        weight = sum(int(cohort.examples[k]) for k in holders)
        expected = sum(int(cohort.examples[k]) * alone[k].channel_sums[0][:, unit] for k in holders) / max(1, weight)
        np.testing.assert_allclose(memory["channel_sums"][:, unit].numpy(), expected, rtol=1e-9, atol=1e-300)
        assert bool(memory["seen"][unit]) == bool(holders)


@pytest.mark.slow
def test_fisher_clients_report_their_gradients_at_the_rounds_start_weights() -> None:
    scenario, state, cohort, masks, alone, _ = one_round("fisher")
    workload = scenario.workload
    from raysim.client.hooks import GradientMoments, LocalHooks
    from raysim.client.training import train
    from raysim.core import seeding
    from raysim.core.tensors import one_thread

    cut = submodel.cut_for(workload.plan, masks[0])
    compact = submodel.extract_params(state.params, cut)
    model = submodel.extract(workload.model, workload.plan, masks[0])
    submodel.load_params(model, compact)
    client, moments = int(cohort.clients[0]), GradientMoments()
    inputs, labels = workload.data.train_rows(workload.population.train[client])
    with one_thread():
        order = seeding.generator(workload.seed, "batches", 1, client)
        hooks, rate = LocalHooks(observe=(moments,)), workload.local.learning_rate
        train(model, inputs, labels, workload.task, workload.local, rate, order, hooks)
    gradient, curvature = moments.means(model)
    form = FORMS[scenario.method.options.score]
    assert form.gradient == "absolute"
    first = channel_sums(workload.plan, {k: (g * compact[k]).abs() for k, g in gradient.items()}, cut)
    second = channel_sums(workload.plan, {k: h * compact[k] ** 2 for k, h in curvature.items()}, cut)
    np.testing.assert_allclose(alone[0].channel_sums[0], np.stack([first, second]), rtol=1e-4, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_what_nobody_held_keeps_its_estimate(estimator: str) -> None:
    *_, report = one_round(estimator)
    update = ESTIMATORS[estimator].update
    once = update({}, report)
    nobody = replace(
        report,
        view=replace(report.view, cohort=replace(report.view.cohort, examples=report.view.examples * 0)),
        coverage={key: count * 0 for key, count in report.coverage.items()},
    )
    again = update(once, nobody)
    assert once
    assert all(torch.equal(again[key].nan_to_num(7), once[key].nan_to_num(7)) for key in once)


@pytest.mark.slow
def test_buffers_have_no_gradient_and_are_not_estimated() -> None:
    """A counter that grows by one a step would be a gradient of 1 / rate."""
    overrides = ("model.name=resnet32", "model.options={}", "training.learning_rate=1e-4", "training.momentum=0")
    scenario = build_scenario(tiny_settings("method.estimator=variation", "training.epochs=1", *overrides))
    state, _ = rounds.run_round(scenario, initial_state(scenario), InProcessExecutor(scenario.workload))
    names = {name for name, _ in scenario.workload.model.named_parameters()}
    assert {key.partition("/")[2] for key in state.memory} == names
