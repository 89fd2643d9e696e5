import numpy as np
import pytest
import torch

from raysim.client.training import effective_steps
from raysim.pruning import submodel
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.significance import (
    FORMS,
    channel_sums,
    first_channels,
    gradient_and_curvature_sums,
    held_share,
    l1_norms,
    running_mean,
)
from tests.oracles import DepthwiseNet, held_entries, random_mask


@pytest.fixture(scope="module")
def case():
    model = DepthwiseNet()
    plan = ChannelPlan.trace(model, torch.randn(2, 3, 8, 8))
    params = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return plan, params


def test_a_channel_sums_its_own_filter_and_affine_pair(case) -> None:
    plan, params = case
    sums = channel_sums(plan, params)
    third = params["first.weight"][3].sum() + params["norm.weight"][3] + params["norm.bias"][3]
    third = third + params["depthwise.weight"][3].sum()
    assert sums[plan.units["first"]][3] == pytest.approx(float(third), rel=1e-5)
    with_readers = channel_sums(plan, params, consumers=True)
    read = third + params["pointwise.weight"][:, 3].sum()
    assert with_readers[plan.units["first"]][3] == pytest.approx(float(read), rel=1e-5)


def test_a_submodels_sums_are_those_of_the_zeroed_full_model(case) -> None:
    plan, params = case
    mask = random_mask(plan, 1)
    cut = submodel.cut_for(plan, mask)
    zeroed = submodel.zero_dropped(params, cut)
    np.testing.assert_allclose(
        channel_sums(plan, submodel.extract_params(params, cut), cut),
        channel_sums(plan, zeroed),
        rtol=1e-6,
        atol=1e-7,
    )


def test_l1_counts_filters_and_not_biases(case) -> None:
    plan, params = case
    norms = l1_norms(plan, params)[plan.units["pointwise"]]
    np.testing.assert_allclose(norms, params["pointwise.weight"].abs().sum((1, 2, 3)).numpy(), rtol=1e-6)


def test_first_channels_rank_by_index(case) -> None:
    plan, _ = case
    np.testing.assert_array_equal(first_channels(plan)[plan.units["pointwise"]], [0, -1, -2, -3, -4, -5])


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("printed", 2 * -3 + 5 * 9), ("exact", -2 * -3 + 5 * 9 / 2), ("robust", 6 + 5 * 9 / 2), ("curvature", 5 * 9),
        ("channel", 6 + 5 * 9 / 2),
    ],
)  # fmt: skip
def test_score_forms_of_one_weight(form: str, expected: float) -> None:
    """One weight w = -3 with gradient g = 2 and curvature h = 5."""
    w, g, h = -3.0, 2.0, 5.0
    chosen = FORMS[form]
    gradient_sum = {"signed": g * w, "absolute": abs(g * w), "absolute sum": g * w, "none": 0.0}[chosen.gradient]
    assert chosen.combine(np.array(gradient_sum), np.array(h * w**2)) == pytest.approx(expected)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_and_curvature_sums_entry_by_entry(form: str, case) -> None:
    plan, params = case
    generator = torch.Generator().manual_seed(0)
    gradient = {key: torch.randn(w.shape, generator=generator) for key, w in params.items()}
    curvature = {key: torch.rand(w.shape, generator=generator) for key, w in params.items()}
    sums = gradient_and_curvature_sums(plan, FORMS[form], params, gradient, curvature)
    w, g, h = (values["pointwise.weight"][2].double() for values in (params, gradient, curvature))
    signed = (g * w).sum()
    first = {"signed": signed, "absolute": (g * w).abs().sum(), "absolute sum": signed, "none": 0.0}[
        FORMS[form].gradient
    ]
    place = plan.units["pointwise"].start + 2
    assert sums[0, place] == pytest.approx(float(first))
    assert sums[1, place] == pytest.approx(float((h * w**2).sum()))


def test_the_gradient_of_a_channel_cancels_before_its_absolute_value_is_taken() -> None:
    """Three channels of two weights: g w is 5 and -5, then 1 and 1, then -3 and 0; no curvature."""
    products = np.array([[5.0, -5.0], [1.0, 1.0], [-3.0, 0.0]])
    no_curvature = np.zeros(3)
    scores = FORMS["channel"].combine(products.sum(axis=1), no_curvature)
    assert scores.tolist() == [0, 2, 3]
    assert FORMS["robust"].combine(np.abs(products).sum(axis=1), no_curvature).tolist() == [10, 2, 3]


@pytest.mark.parametrize("consumers", [False, True])
def test_the_held_share_is_counted_entry_by_entry(case, consumers: bool) -> None:
    plan, params = case
    mask = random_mask(plan, 3)
    cut = submodel.cut_for(plan, mask)
    ones = {key: torch.ones_like(value) for key, value in submodel.extract_params(params, cut).items()}
    share = held_share(plan, ones, cut, consumers)
    held = held_entries(plan, mask, dict(DepthwiseNet().state_dict()))
    for group, units in plan.units.items():
        slots = next(each for each in plan.groups if each.name == group).slots
        own = [slot for slot in slots if slot.role == "weight" or (consumers and slot.role == "consumer")]
        for unit in range(units.stop - units.start):
            entries = [held[slot.key].index_select(slot.dim, torch.from_numpy(slot.indices[unit])) for slot in own]
            expected = sum(int(each.sum()) for each in entries) / sum(each.numel() for each in entries)
            assert share[units.start + unit] == pytest.approx(expected)
    assert 0 < share[share > 0].min() < share.max() <= 1
    assert (share > 0).tolist() == mask.kept.tolist()


def test_a_running_mean_starts_with_its_first_observation() -> None:
    old, observed = torch.tensor([0.0, 2.0, 2.0]), torch.tensor([4.0, 4.0, 4.0])
    held, seen = torch.tensor([True, True, False]), torch.tensor([False, True, True])
    assert running_mean(old, observed, held, seen, 0.9).tolist() == pytest.approx([4.0, 2.2, 2.0])


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_effective_steps_undo_momentum_on_a_constant_gradient(momentum: float, steps: int) -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=momentum)
    for _ in range(steps):
        weight.grad = torch.tensor([3.0], dtype=torch.float64)
        optimizer.step()
    pseudo_gradient = (weight.item() - 1.0) / -(0.1 * effective_steps(steps, momentum))
    assert pseudo_gradient == pytest.approx(3.0)
