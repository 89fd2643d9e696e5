import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from raysim.core.tensors import Params
from raysim.pruning import elements, overlap
from raysim.pruning.masks import Mask
from raysim.pruning.plan import ChannelPlan
from tests.oracles import BranchNet, held_entries, random_mask

EXAMPLES = np.array([3, 5, 1, 7])


@pytest.fixture(scope="module")
def network() -> tuple[ChannelPlan, Params]:
    torch.manual_seed(0)
    model = BranchNet()
    return ChannelPlan.trace(model, torch.zeros(2, 3, 8, 8), []), {
        key: t.double() for key, t in model.state_dict().items()
    }


def some_masks(plan: ChannelPlan, single_entries: bool) -> list[Mask]:
    """Four clients with three masks; with single entries the first two mask different tensors."""
    first, second, third = (random_mask(plan, seed) for seed in range(3))
    if single_entries:
        rng = np.random.default_rng(0)
        bits = [
            elements.pack({key: torch.from_numpy(rng.random(plan.shapes[key]) < 0.5)})
            for key in ("joined.weight", "left.weight")
        ]
        first, second = replace(first, elements=bits[0]), replace(second, elements=bits[1])
    return [first, second, third, Mask(first.kept.copy(), first.elements)]


def held_by(plan: ChannelPlan, mask: Mask, params: Params) -> Params:
    held = held_entries(plan, mask, params)
    for key, kept in elements.unpack(mask.elements, plan.shapes).items():
        held[key] &= kept
    return held


@pytest.mark.parametrize("single_entries", [False, True])
def test_pruned_shares_and_masked_models_entry_by_entry(network, single_entries) -> None:
    plan, params = network
    masks = some_masks(plan, single_entries)
    held = [held_by(plan, mask, params) for mask in masks]
    found = overlap.pruned_share(plan, masks, EXAMPLES)
    for key, value in params.items():
        expected = sum(n / 16 * (~own[key]).double() for n, own in zip(EXAMPLES.tolist(), held, strict=True))
        torch.testing.assert_close(found[key].expand(value.shape), expected, rtol=0, atol=1e-15)
    for mask, own in zip(masks, held, strict=True):
        for key, value in overlap.masked(plan, mask, params).items():
            assert torch.equal(value, torch.where(own[key], params[key], 0.0))


def test_nothing_is_pruned_by_dense_clients(network) -> None:
    plan, _ = network
    dense = [Mask(np.ones(plan.num_units, dtype=np.bool_))] * 4
    assert not any(share.any() for share in overlap.pruned_share(plan, dense, EXAMPLES).values())


def test_jaccard_by_hand(network) -> None:
    plan, _ = network
    kept = np.ones(plan.num_units, dtype=np.bool_)
    bits = [elements.pack({"classifier.bias": torch.tensor(row)}) for row in ([1, 1, 0, 0], [0, 1, 1, 1])]
    one, other = (Mask(kept, own) for own in bits)
    assert overlap.jaccard(plan, one, other) == 1 / 4
    assert overlap.jaccard(plan, one, Mask(kept)) == 2 / 4
    assert overlap.jaccard(plan, one, one) == 1
    narrow = kept.copy()
    narrow[:3] = False
    assert overlap.jaccard(plan, Mask(kept), Mask(narrow)) == (plan.num_units - 3) / plan.num_units


@pytest.mark.parametrize("single_entries", [False, True])
def test_overlap_and_change_are_means_over_pairs(network, single_entries) -> None:
    plan, _ = network
    masks = some_masks(plan, single_entries)
    pairs = [overlap.jaccard(plan, one, other) for one, other in itertools.combinations(masks, 2)]
    assert overlap.mean_overlap(plan, masks) == pytest.approx(np.mean(pairs))
    assert 1.0 in pairs
    later, shares = masks[::-1], EXAMPLES / 16
    changes = [1 - overlap.jaccard(plan, old, new) for old, new in zip(masks, later, strict=True)]
    assert overlap.mean_change(plan, masks, later, shares) == pytest.approx(shares @ changes)
    assert overlap.mean_change(plan, masks, masks, shares) == 0
