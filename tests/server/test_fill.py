import numpy as np
import pytest
import torch

from raysim.pruning import submodel
from raysim.pruning.coverage import count_coverage, summarise
from raysim.pruning.masks import Mask
from raysim.pruning.plan import ChannelPlan
from raysim.server.fill import FILLS, apply_updates
from raysim.server.fixed_point import ExactSum
from raysim.server.updates import largest_of, spread_out
from tests.oracles import BranchNet, filled, held_entries, random_mask

EXAMPLES = [3, 10, 7, 1]


@pytest.fixture(scope="module")
def cohort():
    model = BranchNet()
    plan = ChannelPlan.trace(model, torch.randn(2, 3, 8, 8))
    params = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    masks = [random_mask(plan, seed) for seed in range(3)]
    masks.append(masks[1])
    for mask in masks:
        mask.kept[plan.units["joined"].start] = False
    masks[0].kept[plan.units["joined"].stop - 1] = masks[1].kept[plan.units["joined"].stop - 1] = True
    updates = [
        {key: torch.randn(tensor.shape, generator=torch.Generator().manual_seed(k)) for key, tensor in params.items()}
        for k in range(4)
    ]
    return plan, params, masks, updates


def summed(plan, params, masks, updates) -> ExactSum:
    """What the clients' submodels add up to."""
    sums = ExactSum.zeros_like(params)
    for mask, update, examples in zip(masks, updates, EXAMPLES, strict=True):
        cut = submodel.cut_for(plan, mask)
        sums.add(submodel.extract_params(update, cut), cut, examples)
    return sums


@pytest.mark.parametrize("fill", FILLS)
def test_fill_rules_equal_the_entry_by_entry_oracle(fill: str, cohort) -> None:
    plan, params, masks, updates = cohort
    sums = summed(plan, params, masks, updates)
    counts = count_coverage(plan, masks, np.array(EXAMPLES))
    result = apply_updates(params, frozenset(), sums.value, counts, sum(EXAMPLES), FILLS[fill], 0.3, True)
    held = [held_entries(plan, mask, params) for mask in masks]
    for key, current in params.items():
        expected = filled(fill, 0.3, current, [u[key] for u in updates], [h[key] for h in held], EXAMPLES)
        torch.testing.assert_close(result[key], expected.to(current.dtype), rtol=1e-6, atol=1e-7)


def test_buffers_are_averaged_over_their_holders_whatever_the_fill(cohort) -> None:
    plan, params, masks, updates = cohort
    sums = summed(plan, params, masks, updates)
    counts = count_coverage(plan, masks, np.array(EXAMPLES))
    arguments = (params, frozenset(["left.bias"]), sums.value, counts, sum(EXAMPLES))
    held = [held_entries(plan, mask, params)["left.bias"] for mask in masks]
    expected = filled("holders", 0, params["left.bias"], [u["left.bias"] for u in updates], held, EXAMPLES)
    averaged = apply_updates(*arguments, FILLS["zero"], 0.5, average_buffers=True)["left.bias"]
    torch.testing.assert_close(averaged, expected.float(), rtol=1e-6, atol=1e-7)
    assert apply_updates(*arguments, FILLS["zero"], 0.5, average_buffers=False)["left.bias"] is params["left.bias"]


def test_coverage_counts_examples_entry_by_entry(cohort) -> None:
    plan, params, masks, _ = cohort
    counts = count_coverage(plan, masks, np.array(EXAMPLES))
    held = [held_entries(plan, mask, params) for mask in masks]
    entries, covered = 0, 0.0
    for key, tensor in params.items():
        expected = sum(h[key].double() * n for h, n in zip(held, EXAMPLES, strict=True))
        assert torch.equal(counts[key].expand(tensor.shape), expected), key
        entries += tensor.numel()
        covered += float(expected.sum())
    trained = np.logical_or.reduce([mask.kept for mask in masks])
    summary = summarise(counts, params, trained, sum(EXAMPLES))
    assert summary.mean == pytest.approx(covered / entries / sum(EXAMPLES))
    assert summary.min == 0
    nobody = sum(int((sum(h[key].int() for h in held) == 0).sum()) for key in params)
    assert summary.untrained_share == pytest.approx(nobody / entries)
    assert summary.untrained_channel_share == pytest.approx(1 - trained.mean())


def test_classifier_rows_count_only_for_clients_that_own_the_class(cohort) -> None:
    plan, params, _, _ = cohort
    everything = [Mask(np.ones(plan.num_units, dtype=np.bool_))] * 2
    classes = np.array([[True, False, True, False], [False, False, True, True]])
    counts = count_coverage(plan, everything, np.array([5, 2]), classes)
    assert counts["classifier.bias"].tolist() == [5, 0, 7, 2]
    assert counts["classifier.weight"].expand(params["classifier.weight"].shape)[:, 0].tolist() == [5, 0, 7, 2]
    assert counts["left.weight"].unique().tolist() == [7]


def test_whole_numbers_and_booleans_take_the_largest_value_of_the_holders() -> None:
    params = {"steps": torch.tensor(10), "seen": torch.tensor([False, False]), "slots": torch.tensor([7, 8, 9])}
    coverage = {
        "steps": torch.tensor(3.0, dtype=torch.float64),
        "seen": torch.tensor([3.0, 3.0], dtype=torch.float64),
        "slots": torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64),
    }
    held = {0: torch.tensor([0]), 1: torch.tensor([2])}
    reported = [
        {
            "steps": torch.tensor(13 + 3 * client),
            "seen": torch.tensor([False, client == 1]),
            "slots": spread_out(torch.tensor([-4 - client]), {0: held[client]}, params["slots"]),
        }
        for client in range(2)
    ]
    arguments = (params, frozenset(params), {}.__getitem__, coverage, 3, FILLS["global"], 0.5)
    for order in (reported, reported[::-1]):
        result = apply_updates(*arguments, True, largest_of(order))
        assert torch.equal(result["steps"], torch.tensor(16))
        assert result["seen"].tolist() == [False, True]
        assert result["slots"].tolist() == [-4, 8, -5]
        assert all(result[key].dtype == params[key].dtype for key in params)
        assert apply_updates(*arguments, False, largest_of(order))["steps"] is params["steps"]
