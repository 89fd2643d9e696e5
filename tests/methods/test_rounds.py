"""Every row of the table against a slow round; here those that rank nothing, or only weights."""

import importlib

import pytest
import torch
from torch import nn

from raysim.core.tensors import Params
from raysim.methods.estimators import ESTIMATORS
from raysim.methods.mask_rules import MASKS
from raysim.methods.objectives import OBJECTIVES
from raysim.methods.table import METHODS
from raysim.pruning.masks import Mask
from raysim.server.fill import FILLS
from raysim.simulation.state import ServerState
from tests.methods.slow_rounds import (
    aggregate,
    agree,
    best,
    close,
    count,
    everything,
    first,
    held_by,
    l1,
    members,
    sizes,
    small_scenario,
    train,
)
from tests.oracles import held_entries
from tests.planned import plan_round, state_after

HERE, LOCAL = "tests.methods.test_rounds", "tests.methods.test_rounds_local"
RANKED, SPARSE = "tests.methods.test_rounds_ranked", "tests.methods.test_rounds_sparse"
NESTED = "tests.methods.test_rounds_nested"
TOPOLOGY = "tests.methods.test_rounds_topology"
AUTOFLIP = "tests.methods.test_rounds_autoflip"
ADAPTERS = "tests.methods.test_rounds_adapters"

ROUNDS_OF = {
    "fedavg": (HERE, "test_fedavg_is_the_weighted_mean_of_its_clients"),
    "fedprox": (HERE, "test_fedprox_pulls_back_to_the_start_and_some_clients_train_less"),
    "random": (HERE, "test_random_submodels_are_trained_and_filled"),
    "feddropout": (HERE, "test_random_submodels_are_trained_and_filled"),
    "magnitude": (HERE, "test_magnitude_keeps_the_largest_filters"),
    "heterofl": (HERE, "test_heterofl_and_fedrolex_scale_mask_classes_and_average_over_holders"),
    "fedrolex": (HERE, "test_heterofl_and_fedrolex_scale_mask_classes_and_average_over_holders"),
    "fjord": (LOCAL, "test_fjord_trains_each_step_at_its_own_width"),
    "fedmp": (LOCAL, "test_fedmp_plays_a_bandit_per_client"),
    "dapperfl": (LOCAL, "test_dapperfl_fuses_prunes_and_goes_on"),
    "scaffold": (LOCAL, "test_scaffold_corrects_by_control_variates"),
    "fisher": (RANKED, "test_channels_are_ranked_by_what_clients_report"),
    "ca-hfp": (RANKED, "test_channels_are_ranked_by_what_clients_report"),
    "ca-hfp+": (
        RANKED,
        "test_ca_hfp_plus_begins_by_norms_and_keeps_what_it_trains_unless_another_scores_six_times_as_much",
    ),
    "prunefl": (SPARSE, "test_prunefl_reconfigures_for_squared_gradient_per_second"),
    "feddst": (SPARSE, "test_feddst_moves_its_mask_while_clients_train"),
    "fiarse": (SPARSE, "test_fiarse_trains_the_largest_weights_with_the_gradient_of_its_threshold"),
    "nefl": (NESTED, "test_nefl_averages_norms_and_steps_among_equal_submodels_and_the_rest_among_holders"),
    "fedtiny": (TOPOLOGY, "test_fedtiny_grows_by_averaged_gradients_block_by_block"),
    "fedmef": (TOPOLOGY, "test_fedmef_pushes_out_what_it_is_about_to_prune"),
    "fedrts": (TOPOLOGY, "test_fedrts_draws_its_topology_from_what_was_voted_for"),
    "hetlora": (ADAPTERS, "test_hetlora_weights_padded_factors_with_the_norms_of_their_products"),
    "flexlora": (ADAPTERS, "test_flexlora_averages_products_and_splits_them_by_singular_values"),
    "autoflip": (AUTOFLIP, "test_autoflip_prunes_where_clients_do_not_go_or_do_not_agree"),
}
"""For each row the slow round it is held against; a new row needs one."""

PARTS_OF = {
    "proximal": (HERE, "test_fedprox_pulls_back_to_the_start_and_some_clients_train_less"),
    "scaffold": (LOCAL, "test_scaffold_corrects_by_control_variates"),
    "plain": (HERE, "test_fedavg_is_the_weighted_mean_of_its_clients"),
    "fisher": (RANKED, "test_channels_are_ranked_by_what_clients_report"),
    "variation": (RANKED, "test_channels_are_ranked_by_what_clients_report"),
    "secant": (RANKED, "test_channels_are_ranked_by_what_clients_report"),
    "hutchinson": (RANKED, "test_hutchinson_ranks_by_products_with_the_hessian"),
    "top": (HERE, "test_magnitude_keeps_the_largest_filters"),
    "global": (RANKED, "test_masks_across_groups_keep_as_many_channels_and_one_of_each_group"),
    "global-per-flop": (RANKED, "test_masks_across_groups_keep_as_many_channels_and_one_of_each_group"),
    "coverage": (RANKED, "test_coverage_aware_masks_drop_the_cheapest_pair_until_budgets_are_met"),
    **dict.fromkeys(FILLS, (HERE, "test_random_submodels_are_trained_and_filled")),
}


def test_every_row_and_every_part_names_its_slow_round() -> None:
    assert set(ROUNDS_OF) == set(METHODS)
    assert set(PARTS_OF) == {*OBJECTIVES, *ESTIMATORS, *MASKS, *FILLS}
    for module, name in {*ROUNDS_OF.values(), *PARTS_OF.values()}:
        assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("training", [(), ("training.weight_decay=0.05", "training.momentum=0.0")], ids=["", "decay"])
def test_fedavg_is_the_weighted_mean_of_its_clients(training: tuple[str, ...]) -> None:
    scenario = small_scenario("fedavg", *training)

    def play(round: int, params: Params, _: object) -> Params:
        cohort, result = members(scenario, round), {key: torch.zeros_like(value) for key, value in params.items()}
        for client in cohort:
            after, _losses = train(scenario, params, client.id, round)
            for key in result:
                result[key] += after[key] * client.n / sum(other.n for other in cohort)
        return result

    agree(scenario, play)


def test_fedprox_pulls_back_to_the_start_and_some_clients_train_less() -> None:
    overrides = ("training.epochs=4", "method.proximal_mu=0.5", "method.options={straggler_share: 0.75}")
    scenario, fewer = small_scenario("fedprox", *overrides), []

    def play(round: int, params: Params, report) -> Params:
        cohort, after = members(scenario, round), []
        epochs = report.clients["epochs"].tolist()
        assert sum(each < 4 for each in epochs) <= 3
        assert all(1 <= each <= 4 for each in epochs)
        fewer.extend(each for each in epochs if each < 4)
        for client, own in zip(cohort, epochs, strict=True):
            pull = lambda name, weight, gradient: gradient + 0.5 * (weight - params[name])  # noqa: E731
            after.append(train(scenario, params, client.id, round, epochs=own, correct=pull)[0])
        return aggregate("global", params, [c.n for c in cohort], after, [everything(params)] * 4)

    agree(scenario, play)
    assert len(fewer) >= 2


def test_without_stragglers_everybody_trains_all_epochs() -> None:
    scenario = small_scenario("fedprox", "training.epochs=3", "method.options={straggler_share: 0.0}")
    assert plan_round(scenario).cohort.epochs.tolist() == [3] * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fill", "option"),
    [
        ("feddropout", "holders", ()),
        *(("random", fill, (f"method.fill={fill}",)) for fill in FILLS),
        ("random", "damped", ("method.fill=damped", "method.fill_gamma=0.8")),
    ],
    ids=str,
)
def test_random_submodels_are_trained_and_filled(name: str, fill: str, option: tuple[str, ...]) -> None:
    scenario = small_scenario(name, *option)
    plan, gamma = scenario.workload.plan, 0.8 if len(option) == 2 else 0.5
    drawn: list[Mask] = []

    def play(round: int, params: Params, _: object) -> Params:
        cohort, masks = members(scenario, round), plan_round(scenario, ServerState(round - 1, params)).masks
        for client, mask in zip(cohort, masks, strict=True):
            for group, size in sizes(plan).items():
                assert mask.kept[plan.units[group]].sum() == count(size, client.keep)
        drawn.extend(masks)
        held = [held_entries(plan, mask, params) for mask in masks]
        after = [train(scenario, params, c.id, round, h)[0] for c, h in zip(cohort, held, strict=True)]
        return aggregate(fill, params, [c.n for c in cohort], after, held, gamma)

    agree(scenario, play)
    assert len({mask.kept.tobytes() for mask in drawn}) >= 6, "fresh channels per client and round"


@pytest.mark.slow
def test_magnitude_keeps_the_largest_filters() -> None:
    scenario = small_scenario("magnitude")
    plan = scenario.workload.plan

    def play(round: int, params: Params, _: object) -> Params:
        cohort, norms = members(scenario, round), l1(plan, params)
        held = [held_by(plan, best(plan, norms, client.keep), params) for client in cohort]
        after = [train(scenario, params, c.id, round, h)[0] for c, h in zip(cohort, held, strict=True)]
        return aggregate("global", params, [c.n for c in cohort], after, held)

    agree(scenario, play, rounds=3)


@pytest.mark.slow
def test_a_refresh_every_second_round_repeats_the_ranking() -> None:
    scenario, norms = small_scenario("magnitude", "method.refresh_rounds=2"), {}
    plan = scenario.workload.plan

    def play(round: int, params: Params, _: object) -> Params:
        if round % 2:
            norms["now"] = l1(plan, params)
        cohort = members(scenario, round)
        held = [held_by(plan, best(plan, norms["now"], client.keep), params) for client in cohort]
        after = [train(scenario, params, c.id, round, h)[0] for c, h in zip(cohort, held, strict=True)]
        return aggregate("global", params, [c.n for c in cohort], after, held)

    agree(scenario, play, rounds=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["heterofl", "fedrolex"])
def test_heterofl_and_fedrolex_scale_mask_classes_and_average_over_holders(name: str) -> None:
    scenario = small_scenario(name)
    plan, data = scenario.workload.plan, scenario.workload.data
    masked = []

    def play(round: int, params: Params, _: object) -> Params:
        cohort, after, held = members(scenario, round), [], []
        for client in cohort:
            level = max([level for level in (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16) if level <= client.keep])
            kept = first(plan, level)
            if name == "fedrolex":
                kept = {g: [(u + round - 1) % sizes(plan)[g] for u in units] for g, units in kept.items()}
            owned = sorted(set(data.train_targets[scenario.workload.population.train[client.id]].tolist()))
            masked.append(10 - len(owned))
            own = held_by(plan, kept, params)
            trained, _losses = train(scenario, params, client.id, round, own, loss=scaled_loss(1 / level, owned))
            for key in ("8.weight", "8.bias"):
                for label in set(range(10)) - set(owned):
                    own[key][label] = False
            after.append(trained)
            held.append(own)
        return aggregate("holders", params, [c.n for c in cohort], after, held)

    agree(scenario, play)
    assert max(masked) > 0


def scaled_loss(factor: float, owned: list[int]):
    """Every hidden layer's output times a factor, logits of classes the client does not own at zero."""

    def loss(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        hidden = inputs
        for place, layer in enumerate(model):
            hidden = layer(hidden)
            if place in (0, 2, 6):
                hidden = hidden * factor
        logits = torch.zeros_like(hidden)
        logits[:, owned] = hidden[:, owned]
        return nn.functional.cross_entropy(logits, labels)

    return loss


def test_the_levels_are_those_that_fit() -> None:
    for tier, keep in enumerate((0.05, 0.3, 0.6, 1.0)):
        scenario = small_scenario("heterofl", *(f"population.tiers.{t}.keep_ratio={keep}" for t in range(4)))
        assert set(plan_round(scenario).cohort.keep_ratios) == {(1 / 16, 1 / 4, 1 / 2, 1.0)[tier]}


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["proximal", "scaffold"])
def test_an_objective_of_weight_zero_or_in_round_one_is_plain(objective: str) -> None:
    option = {"proximal": "method.proximal_mu=0.0", "scaffold": "method.fill=global"}[objective]
    plain = small_scenario("magnitude")
    other = small_scenario("magnitude", f"method.objective={objective}", option)
    close(state_after(other, 1).params, state_after(plain, 1).params, rtol=0, atol=0)
