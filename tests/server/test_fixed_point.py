import itertools
import math
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from raysim.server.fixed_point import BLOCK, LARGE, LIMIT, ExactSum

Terms = Sequence[tuple[torch.Tensor, int]]


def total_of(terms: Terms) -> ExactSum:
    total = ExactSum.zeros_like({"w": terms[0][0]})
    for values, weight in terms:
        total.add({"w": values}, {}, weight)
    return total


def mixed(clients: int, entries: int, low: float, high: float, seed: int, dtype=torch.float32) -> Terms:
    """Terms whose magnitudes are spread evenly over decades, with zeros among them, and numbers of rows."""
    draw = np.random.default_rng(seed)
    values = 10.0 ** draw.uniform(low, high, (clients, entries)) * draw.choice([-1, 1, 1, 0], (clients, entries))
    rows = draw.integers(1, 5000, clients).tolist()
    return [(torch.from_numpy(each).to(dtype), row) for each, row in zip(values, rows, strict=True)]


def assert_right(total: ExactSum, terms: Terms, times: int = 1) -> None:
    """Compare with sums that have no rounding until the end."""
    columns = np.stack([values.double().numpy().ravel() for values, _ in terms], axis=1)
    rows = [row for _, row in terms]
    for found, column in zip(total.value("w").flatten().tolist(), columns, strict=True):
        products = [float(value) * row * times for value, row in zip(column, rows, strict=True)]
        assert abs(found - math.fsum(products)) <= 1e-6 * math.fsum(map(abs, products))


RANGES = [(-12, -6), (-12, 8), (-18, -9), (-30, -20), (-4, 2), (2, 8), (8, 30), (-38, 38)]


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_the_sum_is_right_to_a_millionth_of_the_terms_magnitudes(low: float, high: float) -> None:
    for clients in (1, 3, 50):
        terms = mixed(clients, 40, low, high, seed=clients)
        assert_right(total_of(terms), terms)


def test_doubles_of_any_magnitude_are_summed() -> None:
    terms = mixed(20, 50, -50, 270, seed=1, dtype=torch.float64)
    assert_right(total_of(terms), terms)


@pytest.mark.parametrize("gradient", [1.0, 3e-6, 1e-9])
def test_squares_of_gradients_are_not_lost(gradient: float) -> None:
    draw = torch.Generator().manual_seed(0)
    terms = [((gradient * torch.randn(30, generator=draw, dtype=torch.float64)) ** 2, 5 + k) for k in range(20)]
    total = total_of(terms)
    assert_right(total, terms)
    assert bool((total.value("w") > 0).all())


@pytest.mark.parametrize(("low", "high"), [(-12, 8), (8, 30), (-18, -9)])
def test_a_million_clients_are_summed_without_overflow(low: float, high: float) -> None:
    """Each of a few terms counts 2^18 times: a sum is merged with itself again and again."""
    terms = mixed(4, 30, low, high, seed=2)
    total = total_of(terms)
    for _ in range(18):
        total.merge(total.copy())
    assert_right(total, terms, times=2**18)


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_orders_groupings_and_packs_give_the_same_bits(low: float, high: float) -> None:
    terms = mixed(12, 64, low, high, seed=3)
    expected, draw = total_of(terms).value("w"), np.random.default_rng(0)
    for _ in range(8):
        groups = np.array_split(draw.permutation(len(terms)), draw.integers(1, 6))
        sums = [pickle.loads(pickle.dumps(total_of([terms[k] for k in group]))) for group in groups if len(group)]
        total = sums[0].copy()
        for other in sums[1:]:
            total.merge(other)
        assert torch.equal(total.value("w"), expected)
    pack = ExactSum.zeros_like({"w": terms[0][0]})
    start = {"w": torch.zeros(64)}
    pack.add_pack({"w": torch.stack([values for values, _ in terms])}, start, {}, np.array([row for _, row in terms]))
    assert torch.equal(pack.value("w"), expected)


@pytest.mark.parametrize("times", [1, 60, 3000])
def test_a_sum_that_carries_has_the_bits_of_one_that_does_not(times: int) -> None:
    """The largest terms of level 0, added one by one or merged: the carries come at other times."""
    terms = [(torch.tensor([8191.9, -8191.9, 5e-8, 8191.9]), 1), (torch.tensor([0.1, 8000.0, 3e-9, -8191.9]), 1)]
    one_by_one = total_of([*terms] * times)
    merged = total_of(terms)
    for _ in range(times - 1):
        merged.merge(total_of(terms))
    assert torch.equal(one_by_one.value("w"), merged.value("w"))
    assert_right(merged, terms, times)
    assert all(bound < 2**63 for bound in one_by_one.tensors["w"].bounds.values())
    assert (1 in one_by_one.tensors["w"].limbs) == (times * 8192 * 2**44 > LIMIT // 2)


def test_blocks_of_a_long_tensor_are_all_summed() -> None:
    """Small and large terms in the second block, too."""
    values = torch.ones(BLOCK + 100)
    values[[5, BLOCK + 7]], values[[9, BLOCK + 8]], values[BLOCK + 9] = 1e-13, 1e6, 0.0
    terms = [(values, 3), (values.flip(0), 2)]
    total = total_of(terms)
    exact = terms[0][0].double() * 3 + terms[1][0].double() * 2
    torch.testing.assert_close(total.value("w"), exact, rtol=1e-6, atol=0)
    assert set(total.tensors["w"].limbs) == {-1, 1}


def test_what_level_0_holds_needs_no_other_level() -> None:
    draw = torch.Generator().manual_seed(0)
    assert not total_of([(torch.randn(100, generator=draw), 20), (torch.zeros(100), 20)]).tensors["w"].limbs


def test_every_order_gives_the_same_bits_where_floats_do_not() -> None:
    terms = [(torch.randn(50, generator=torch.Generator().manual_seed(k)) * 10.0**-k, k + 1) for k in range(5)]
    sums = [total_of([terms[k] for k in order]).value("w") for order in itertools.permutations(range(5))]
    assert all(torch.equal(each, sums[0]) for each in sums)
    floats = [sum(terms[k][0] * terms[k][1] for k in order) for order in itertools.permutations(range(5))]
    assert not all(torch.equal(each, floats[0]) for each in floats)


CUTS = [
    {0: torch.tensor([1]), 1: torch.tensor([0, 3])},
    {1: torch.tensor([1, 2])},
    {2: torch.tensor([0, 4])},
    {0: torch.tensor([0, 2]), 2: torch.tensor([1])},
]


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: "-".join(map(str, cut)))
@pytest.mark.parametrize(("low", "high"), [(-3, 1), (-12, 8)])
def test_a_submodels_values_land_where_they_belong(cut: dict[int, torch.Tensor], low: float, high: float) -> None:
    full = torch.zeros(3, 4, 5)
    total, pack = ExactSum.zeros_like({"w": full}), ExactSum.zeros_like({"w": full})
    shape = [len(cut[dim]) if dim in cut else size for dim, size in enumerate(full.shape)]
    terms = [(values.view(shape), rows) for values, rows in mixed(5, math.prod(shape), low, high, seed=4)]
    expected, whole = torch.zeros(full.shape, dtype=torch.float64), []
    for values, rows in terms:
        total.add({"w": values}, {"w": cut}, rows)
        placed = torch.zeros(full.shape)
        kept = np.ix_(*(cut[dim].numpy() if dim in cut else np.arange(size) for dim, size in enumerate(full.shape)))
        placed[kept] = values
        whole.append((placed, rows))
        expected += placed.double() * rows
    assert torch.equal(total.value("w"), total_of(whole).value("w"))
    assert_right(total, whole)
    changes = {"w": torch.stack([values for values, _ in terms])}
    rows = np.array([rows for _, rows in terms])
    pack.add_pack(changes, {"w": torch.zeros(shape)}, {"w": cut}, rows)
    assert torch.equal(pack.value("w"), total.value("w"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("cut", [{}, {"w": {0: torch.tensor([1])}}], ids=["whole", "cut"])
def test_what_is_not_finite_raises(value: float, cut: dict[str, dict[int, torch.Tensor]]) -> None:
    total = ExactSum.zeros_like({"w": torch.zeros(2)})
    values = torch.tensor([value] if cut else [1.0, value])
    with pytest.raises(OverflowError, match="cannot be summed"):
        total.add({"w": values}, cut, 1)
    with pytest.raises(OverflowError, match="cannot be summed"):
        total.add_pack({"w": torch.stack([values, values])}, {"w": torch.ones(len(values))}, cut, np.array([1, 2]))


def test_doubles_beyond_what_can_be_summed_raise() -> None:
    with pytest.raises(OverflowError, match="limit"):
        total_of([(torch.tensor([1e300], dtype=torch.float64), 1)])
    with pytest.raises(OverflowError, match="limit"):
        total_of([(torch.tensor([1e308], dtype=torch.float64), 5000)])


@pytest.mark.parametrize("place", ["first", "second"])
def test_a_nan_in_any_tensor_raises(place: str) -> None:
    values = {"first": torch.ones(2), "second": torch.ones(3)}
    values[place] = values[place].clone()
    values[place][0] = float("nan")
    total = ExactSum.zeros_like(values)
    with pytest.raises(OverflowError):
        total.add(values, {}, 5)


def test_a_sum_survives_the_way_to_another_process_and_is_not_changed_by_a_merge() -> None:
    total = total_of(mixed(6, 200, -12, 8, seed=5))
    again = pickle.loads(pickle.dumps(total, protocol=5))
    assert torch.equal(again.value("w"), total.value("w"))
    before, first = again.value("w"), total.copy()
    first.merge(again)
    assert torch.equal(again.value("w"), before)
    assert torch.equal(total.value("w"), before)
    assert torch.equal(first.value("w"), before * 2)


def test_few_numbers_beyond_level_0_do_not_make_a_sum_twice_as_large() -> None:
    values = torch.ones(100_000)
    values[:7] = 1e-12
    plain = len(pickle.dumps(total_of([(torch.ones(100_000), 1)])))
    assert len(pickle.dumps(total_of([(values, 1)]))) < plain + 1000


@pytest.mark.parametrize("size", [3, LARGE])
@pytest.mark.parametrize("kept", [[0, 2], None])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_a_pack_adds_the_bits_of_its_clients_one_by_one(size: int, kept: list[int] | None, scale: float) -> None:
    draw = torch.Generator().manual_seed(size)
    full = {"w": torch.randn(4, size, generator=draw) * scale}
    cut = {} if kept is None else {"w": {0: torch.tensor(kept)}}
    start = {"w": full["w"] if kept is None else full["w"][kept]}
    after = {"w": start["w"] + scale * torch.randn(5, *start["w"].shape, generator=draw)}
    weights = np.arange(7, 12)
    pack, apart = ExactSum.zeros_like(full), ExactSum.zeros_like(full)
    pack.add_pack(after, start, cut, weights)
    for client, weight in enumerate(weights.tolist()):
        apart.add_change({"w": after["w"][client]}, start, cut, weight)
    assert torch.equal(pack.value("w"), apart.value("w"))


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e9, 1e25])
def test_whole_tensors_added_at_once_give_the_bits_of_one_after_another(scale: float) -> None:
    draw = torch.Generator().manual_seed(3)
    start = {"w": torch.randn(BLOCK + 5, generator=draw) * scale, "b": torch.randn(3, generator=draw)}
    afters = [
        {key: each + scale * torch.randn(each.shape, generator=draw) for key, each in start.items()} for _ in "abc"
    ]
    afters[1]["w"][7], afters[2]["b"] = start["w"][7], start["b"]
    at_once, apart = ExactSum.zeros_like(start), ExactSum.zeros_like(start)
    at_once.add_changes(afters, start, [2, 30, 500])
    for after, weight in zip(afters, [2, 30, 500], strict=True):
        apart.add_change(after, start, {}, weight)
    for key in start:
        assert torch.equal(at_once.value(key), apart.value(key))


@pytest.mark.parametrize("scale", [1.0, 1e-12])
def test_the_memory_format_of_a_tensor_changes_no_bit(scale: float) -> None:
    values = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0)) * scale
    other = values.contiguous(memory_format=torch.channels_last)
    assert torch.equal(total_of([(values, 3)]).value("w"), total_of([(other, 3)]).value("w"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_summed_as_well(dtype: torch.dtype) -> None:
    terms = [(values.to(dtype), rows) for values, rows in mixed(9, 30, -4, 3, seed=6)]
    assert_right(total_of(terms), terms)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3)])
def test_tensors_of_any_shape_are_summed(shape: tuple[int, ...]) -> None:
    for value in (1.0, 1e-12, 1e9):
        values = torch.full(shape, value)
        total, pack = total_of([(values, 3)] * 2), ExactSum.zeros_like({"w": values})
        pack.add_pack({"w": torch.stack([values] * 2)}, {"w": values * 0}, {}, np.array([3, 3]))
        for found in (total.value("w"), pack.value("w")):
            torch.testing.assert_close(found, values.double() * 6, rtol=1e-6, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_a_gpu_sums_to_the_same_bits(low: float, high: float) -> None:
    terms = mixed(12, 64, low, high, seed=7)
    start, rows = torch.zeros(64), np.array([row for _, row in terms])
    found = []
    for device in ("cpu", "cuda"):
        total = ExactSum.zeros_like({"w": start.to(device)})
        for values, weight in terms:
            total.add({"w": values.to(device)}, {}, weight)
        pack = ExactSum.zeros_like({"w": start.to(device)})
        pack.add_pack(
            {"w": torch.stack([values for values, _ in terms]).to(device)}, {"w": start.to(device)}, {}, rows
        )
        found += [total.on_cpu().value("w"), pack.on_cpu().value("w")]
    assert all(torch.equal(each, found[0]) for each in found)
