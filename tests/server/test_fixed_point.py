import itertools
import pickle

import numpy as np
import pytest
import torch

from raysim.server.fixed_point import LARGE, LIMIT, ExactSum


def total_of(terms: list[tuple[torch.Tensor, int]]) -> ExactSum:
    total = ExactSum.zeros_like({"w": terms[0][0]})
    for values, weight in terms:
        total.add({"w": values}, {}, weight)
    return total


def test_every_order_gives_the_same_bits_where_floats_do_not() -> None:
    terms = [(torch.randn(50, generator=torch.Generator().manual_seed(k)) * 10.0**-k, k + 1) for k in range(5)]
    sums = [total_of([terms[k] for k in order]).totals["w"] for order in itertools.permutations(range(5))]
    assert all(torch.equal(each, sums[0]) for each in sums)
    floats = [sum(terms[k][0] * terms[k][1] for k in order) for order in itertools.permutations(range(5))]
    assert not all(torch.equal(each, floats[0]) for each in floats)


def test_the_sum_is_right_to_a_rounding_of_2_to_the_minus_33() -> None:
    terms = [(torch.randn(1000, generator=torch.Generator().manual_seed(k)), 7 * k + 1) for k in range(8)]
    expected = sum(values.double() * weight for values, weight in terms)
    assert float((total_of(terms).value("w") - expected).abs().max()) <= 8 * 2.0**-33


def test_merged_sums_equal_one_sum() -> None:
    terms = [(torch.randn(20, generator=torch.Generator().manual_seed(k)), k + 1) for k in range(4)]
    left, right = total_of(terms[:1]), total_of(terms[1:])
    left.merge(right)
    assert torch.equal(left.totals["w"], total_of(terms).totals["w"])


def test_a_submodels_values_land_where_they_belong() -> None:
    total = ExactSum.zeros_like({"w": torch.zeros(3, 4)})
    total.add({"w": torch.tensor([[1.0, 2.0]])}, {"w": {0: torch.tensor([1]), 1: torch.tensor([0, 3])}}, 2)
    expected = torch.zeros(3, 4, dtype=torch.float64)
    expected[1, 0], expected[1, 3] = 2.0, 4.0
    assert torch.equal(total.value("w"), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), LIMIT])
def test_what_cannot_be_summed_exactly_raises(value: float) -> None:
    with pytest.raises(OverflowError):
        total_of([(torch.tensor([value]), 1)])


def test_many_terms_that_could_overflow_together_raise() -> None:
    with pytest.raises(OverflowError):
        total_of([(torch.tensor([LIMIT / 3]), 1)] * 4)


def test_a_sum_survives_the_way_to_another_process() -> None:
    total = total_of([(torch.randn(5), 3)])
    again = pickle.loads(pickle.dumps(total, protocol=5))
    assert torch.equal(again.totals["w"], total.totals["w"])
    assert again.magnitude == total.magnitude


@pytest.mark.parametrize("place", ["first", "second"])
def test_a_nan_in_any_tensor_raises(place: str) -> None:
    values = {"first": torch.ones(2), "second": torch.ones(3)}
    values[place] = values[place].clone()
    values[place][0] = float("nan")
    total = ExactSum.zeros_like(values)
    with pytest.raises(OverflowError):
        total.add(values, {}, 5)


@pytest.mark.parametrize("size", [3, LARGE])
@pytest.mark.parametrize("kept", [[0, 2], None])
def test_a_pack_adds_the_bits_of_its_clients_one_by_one(size: int, kept: list[int] | None) -> None:
    draw = torch.Generator().manual_seed(size)
    full = {"w": torch.randn(4, size, generator=draw)}
    cut = {} if kept is None else {"w": {0: torch.tensor(kept)}}
    start = {"w": full["w"] if kept is None else full["w"][kept]}
    after = {"w": start["w"] + torch.randn(5, *start["w"].shape, generator=draw)}
    weights = np.arange(7, 12)
    pack, apart = ExactSum.zeros_like(full), ExactSum.zeros_like(full)
    pack.add_pack(after, start, cut, weights)
    for client, weight in enumerate(weights.tolist()):
        apart.add_change({"w": after["w"][client]}, start, cut, weight)
    assert torch.equal(pack.totals["w"], apart.totals["w"])
    assert pack.magnitude == pytest.approx(apart.magnitude)


def test_the_memory_format_of_a_tensor_changes_no_bit() -> None:
    values = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    other = values.contiguous(memory_format=torch.channels_last)
    assert torch.equal(total_of([(values, 3)]).totals["w"], total_of([(other, 3)]).totals["w"])
