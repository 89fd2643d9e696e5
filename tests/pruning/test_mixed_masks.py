"""Cases that only a user's own rules and models have: mixed masks, shared layers, other dtypes, many widths."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from raysim.client.assignments import Assignments
from raysim.client.local_rules import scaled_outputs
from raysim.client.trainer import ClientTrainer
from raysim.client.training import LocalTraining
from raysim.core.errors import SettingError
from raysim.methods import resolve
from raysim.methods.mask_rules import MASKS
from raysim.pruning import elements, submodel
from raysim.pruning.costs import CostTable
from raysim.pruning.masks import CohortMasks, Mask
from raysim.pruning.plan import ChannelPlan
from raysim.simulation import client_state
from raysim.simulation.aggregation import coverage_of
from raysim.simulation.build import build_scenario
from raysim.simulation.transition import initial_state
from tests.conftest import settings_of, tiny_settings
from tests.planned import plan_round, state_after, view_for


def test_entries_of_whole_and_hybrid_clients_are_counted_together() -> None:
    scenario = build_scenario(tiny_settings("method.name=fedavg"))
    planned = plan_round(scenario)
    plan, examples = scenario.workload.plan, planned.cohort.examples
    kept = torch.rand(plan.shapes["0.weight"], generator=torch.Generator().manual_seed(0)) < 0.5
    hybrid = Mask(np.ones(plan.num_units, dtype=np.bool_), elements.pack({"0.weight": kept}))
    masks = [hybrid, planned.masks[1], planned.masks[2]]
    assignments = Assignments.of_rows(
        [replace(assignment, mask=mask) for assignment, mask in zip(planned.assignments, masks, strict=True)]
    )
    contribution = ClientTrainer(scenario.workload).train(assignments, planned.broadcast)
    coverage = coverage_of(scenario, planned.cohort, CohortMasks.of(masks), contribution)["0.weight"]
    expected = examples[1] + examples[2] + examples[0] * kept.double()
    assert torch.equal(coverage, expected)


def test_a_shared_layer_is_scaled_once() -> None:
    shared = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(4, 6), shared, nn.ReLU(), shared, nn.Linear(6, 3))
    plan = ChannelPlan.trace(model, torch.randn(2, 4))
    inputs = torch.randn(5, 6)
    plain = shared(inputs)
    with scaled_outputs(model, plan, 4.0):
        assert torch.equal(shared(inputs), plain * 4)


def test_pruned_bytes_are_counted_in_their_dtype() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).bfloat16()
    plan = ChannelPlan.trace(model, torch.randn(2, 4))
    kept = torch.zeros(6, 4, dtype=torch.bool)
    kept[0] = True
    mask = Mask(np.ones(plan.num_units, dtype=np.bool_), elements.pack({"0.weight": kept}))
    assert CostTable(model, plan, (4,)).pruned_bytes(mask) == 2 * 20


def test_only_so_many_skeletons_are_kept() -> None:
    model = nn.Sequential(
        nn.Linear(4, 2 * submodel.MOST_SKELETONS), nn.ReLU(), nn.Linear(2 * submodel.MOST_SKELETONS, 3)
    )
    plan = ChannelPlan.trace(model, torch.randn(2, 4))
    cache = submodel.SubmodelCache(model, plan)
    for width in range(1, plan.num_units + 1):
        mask = Mask(np.arange(plan.num_units) < width)
        assert cache.module_for(mask, submodel.cut_for(plan, mask))[0].out_features == width
    assert len(cache._by_width) == submodel.MOST_SKELETONS


def test_buffers_that_are_not_saved_do_not_pass_from_client_to_client() -> None:
    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.register_buffer("calls", torch.zeros(()), persistent=False)

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Counting())
    plan = ChannelPlan.trace(model, torch.randn(2, 4))
    cache = submodel.SubmodelCache(model, plan)
    cache.dense()[2].calls.add_(5)
    assert float(cache.dense()[2].calls) == 0


def test_what_is_remembered_under_other_names_stays() -> None:
    old = {3: {"displacement/w": torch.ones(2), "variate/w": torch.zeros(2)}}
    memory = client_state.updated(old, {3: {"variate/w": torch.full((2,), 7.0)}, 5: {"variate/w": torch.ones(2)}})
    assert sorted(memory) == [3, 5]
    assert torch.equal(memory[3]["displacement/w"], torch.ones(2))
    assert torch.equal(memory[3]["variate/w"], torch.full((2,), 7.0))


@pytest.mark.slow
def test_exploration_is_remembered_beside_control_variates() -> None:
    everybody = ("method.objective=scaffold", "selection.clients_per_round=6")
    state = state_after(build_scenario(settings_of("autoflip", *everybody)), 2)
    names = {key.partition("/")[0] for key in state.clients[0]}
    assert names == {"displacement", "variate"}


@pytest.mark.parametrize("normalization", ["static", "group"])
def test_another_normalization_needs_one_to_replace(normalization: str) -> None:
    with pytest.raises(SettingError, match=f"method.normalization='{normalization}' has no effect"):
        build_scenario(tiny_settings("method.name=fedavg", f"method.normalization={normalization}"))


def test_the_warm_up_goes_before_a_score_of_ones_own() -> None:
    own = "method.score=raysim.methods.scores:l1_score"
    scenario = build_scenario(tiny_settings(own, "method.warmup_rounds=2"))
    state = initial_state(scenario)
    warm, _ = resolve.rank(scenario.method, view_for(scenario, state, round=2))
    ranked, _ = resolve.rank(scenario.method, view_for(scenario, state, round=3))
    assert (warm.ndim, ranked.ndim) == (2, 1)


def test_a_fill_of_ones_own_may_have_a_gamma() -> None:
    given = {"fill": "raysim.server.fill:fill_damped", "fill_gamma": 0.3}
    assert resolve.resolve("magnitude", given, LocalTraining()).options.fill_gamma == 0.3


def test_ties_across_groups_go_to_the_first_channels() -> None:
    scenario = build_scenario(tiny_settings("method.name=magnitude"))
    view = view_for(scenario, initial_state(scenario), 1, clients=1)
    view = replace(view, cohort=replace(view.cohort, keep_ratios=np.array([0.5])))
    kept = MASKS["global"](view, np.ones(view.plan.num_units))[0].kept
    firsts = [units.start for units in view.plan.units.values()]
    others = np.setdiff1d(np.arange(view.plan.num_units), firsts)
    assert kept[firsts].all()
    assert (np.diff(kept[others].astype(int)) <= 0).all()
