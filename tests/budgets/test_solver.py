"""Solved budgets on a ladder of three rungs, counted by hand."""

import json
import resource
import time
from dataclasses import replace
from math import inf

import numpy as np
import pytest

from raysim.budgets.ladder import Ladder
from raysim.budgets.solver import BudgetSolver
from raysim.population import sampling
from raysim.population.profiles import DeviceProfile, Tier
from raysim.population.sampling import listed

LADDER = Ladder(
    keep_ratios=np.array([0.25, 0.5, 1.0]),
    down_bytes=np.array([1_000, 2_000, 8_000]),
    up_bytes=np.array([2_000, 4_000, 10_000]),
    train_flops=np.array([1_000, 4_000, 16_000]),
    activation_bytes=np.array([100, 200, 400]),
    extra_flops=np.array([0, 0, 0]),
    extra_activation_bytes=np.array([0, 0, 0]),
    state_bytes=np.array([300, 1_200, 4_800]),
    row_bytes=np.array([100, 200, 400]),
)
PHONE = DeviceProfile(
    "phone",
    flops_per_s=1e6,
    down_bytes_per_s=1e3,
    up_bytes_per_s=1e3,
    latency_s=0.5,
    step_overhead_s=0.1,
    memory_bytes_per_s=1e5,
)
SECONDS = [
    # latency twice, bytes both ways, 2 epochs of 21 rows in 2 batches (10 and 11), their FLOPs and activations
    1.0 + 3.0 + 4 * 0.1 + 42 * 0.001 + 42 * 0.001,
    1.0 + 6.0 + 4 * 0.1 + 42 * 0.004 + 42 * 0.002,
    1.0 + 18.0 + 4 * 0.1 + 42 * 0.016 + 42 * 0.004,
]
MEMORY = [300 + 11 * 100, 1_200 + 11 * 200, 4_800 + 11 * 400]


def solver(deadline_s: float = inf, ladder: Ladder = LADDER) -> BudgetSolver:
    return BudgetSolver(ladder, deadline_s, epochs=2, batch_size=10)


def solved(device: DeviceProfile, deadline_s: float = inf, keep_ratio: float = 1.0, examples: int = 21):
    owned = listed([device], [keep_ratio])
    found = solver(deadline_s).solve(owned, np.array([7]), np.array([examples]), 1, 0)
    return float(found.keep_ratios[0]), str(found.limited_by[0])


def test_seconds_memory_and_bytes_are_those_counted_by_hand():
    needs = solver().needs(listed([PHONE]), np.array([7]), np.array([21]), 1, 0)
    assert needs.seconds[:, 0] == pytest.approx(SECONDS, rel=1e-12)
    assert needs.memory_bytes[:, 0].tolist() == MEMORY
    assert needs.data_bytes[:, 0].tolist() == [3_000, 6_000, 18_000]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, (1.0, "nothing")),
        ({"deadline_s": SECONDS[2] + 1e-6}, (1.0, "nothing")),
        ({"deadline_s": SECONDS[2] - 1e-6}, (0.5, "deadline")),
        ({"deadline_s": SECONDS[1] - 1e-6}, (0.25, "deadline")),
        ({"deadline_s": SECONDS[0] - 1e-6}, (0.0, "deadline")),
        ({"memory_bytes": MEMORY[1]}, (0.5, "memory")),
        ({"memory_bytes": MEMORY[0] - 1}, (0.0, "memory")),
        ({"data_cap_bytes": 6_000}, (0.5, "data cap")),
        ({"data_cap_bytes": 2_999}, (0.0, "data cap")),
        ({"keep_ratio": 0.5}, (0.5, "tier")),
        ({"keep_ratio": 0.99}, (0.5, "tier")),  # the highest rung up to it
        ({"keep_ratio": 0.1}, (0.1, "tier")),  # below the lowest rung: the share itself
        ({"keep_ratio": 0.1, "deadline_s": SECONDS[0] - 1e-6}, (0.0, "deadline")),
        ({"deadline_s": SECONDS[1], "memory_bytes": MEMORY[0]}, (0.25, "memory")),  # the tighter one is named
        ({"deadline_s": SECONDS[0], "memory_bytes": MEMORY[1]}, (0.25, "deadline")),
        ({"deadline_s": SECONDS[1], "memory_bytes": MEMORY[1]}, (0.5, "deadline")),  # of equal ones the first
        ({"keep_ratio": 0.5, "data_cap_bytes": 100}, (0.0, "data cap")),
    ],
)
def test_the_highest_rung_that_fits_and_what_forbids_the_next(limits, expected):
    of_device = {name: value for name, value in limits.items() if name in ("memory_bytes", "data_cap_bytes")}
    others = {name: value for name, value in limits.items() if name not in of_device}
    assert solved(replace(PHONE, **of_device), **others) == expected


def test_a_last_batch_of_one_row_needs_its_memory_in_the_batch_it_joins():
    for examples, rows in ((20, 10), (21, 11), (22, 10), (3, 3)):
        fits = replace(PHONE, memory_bytes=4_800 + 400 * rows)
        too_small = replace(PHONE, memory_bytes=4_800 + 400 * rows - 1)
        assert solved(fits, examples=examples) == (1.0, "nothing")
        assert solved(too_small, examples=examples) == (0.5, "memory")


def test_extra_costs_come_once_a_round_for_so_many_rows():
    costly = replace(LADDER, extra_flops=np.array([0, 0, 1_000_000]), extra_rows=5)
    plain, extra = (
        solver(ladder=ladder).needs(listed([PHONE] * 2), np.arange(2), np.array([3, 21]), 1, 0).seconds
        for ladder in (LADDER, costly)
    )
    assert extra - plain == pytest.approx(np.array([[0, 0], [0, 0], [3, 5]]))


def test_a_rung_that_is_cheaper_than_the_one_below_is_found():
    uneven = replace(LADDER, down_bytes=np.array([1_000, 9_000, 8_000]))
    needs = solver(ladder=uneven).needs(listed([PHONE]), np.array([0]), np.array([21]), 1, 0).data_bytes[:, 0]
    assert needs.tolist() == [3_000, 13_000, 18_000]
    cheaper = replace(uneven, up_bytes=np.array([2_000, 9_000, 4_000]))
    capped = listed([replace(PHONE, data_cap_bytes=12_000)])
    assert solver(ladder=cheaper).solve(capped, np.array([0]), np.array([21]), 1, 0).keep_ratios.tolist() == [1.0]


def test_budgets_are_solved_anew_when_the_links_have_drifted():
    count = 200
    drifting = listed([replace(PHONE, link_drift=0.5)] * count)
    rounds = {
        round: solver(8.0).solve(drifting, np.arange(count), np.full(count, 21), round, 0).keep_ratios
        for round in (1, 10, 11)
    }
    assert np.array_equal(rounds[1], rounds[10])
    assert not np.array_equal(rounds[1], rounds[11])
    assert len(set(rounds[1])) > 1


def test_a_clients_budget_does_not_depend_on_who_else_is_asked(monkeypatch):
    count = 500
    owned = many_devices(count)
    examples = np.random.default_rng(1).integers(1, 400, count)
    together = solver(25.0).solve(owned, np.arange(count), examples, 1, 0)
    some = np.array([400, 3, 77])
    alone = solver(25.0).solve(owned.of(some), some, examples[some], 1, 0)
    monkeypatch.setattr("raysim.budgets.solver.RUNGS_AT_ONCE", 64)
    in_parts = solver(25.0).solve(owned, np.arange(count), examples, 1, 0)
    assert together.keep_ratios[some].tolist() == alone.keep_ratios.tolist()
    assert together.limited_by[some].tolist() == alone.limited_by.tolist()
    assert together.keep_ratios.tolist() == in_parts.keep_ratios.tolist()
    assert len(set(together.keep_ratios)) == 4


def test_more_time_memory_or_data_never_narrows_a_budget():
    count = 300
    owned, examples = many_devices(count), np.random.default_rng(1).integers(1, 400, count)
    before = np.zeros(count)
    for deadline_s in (1.0, 5.0, 10.0, 30.0, 100.0, inf):
        now = solver(deadline_s).solve(owned, np.arange(count), examples, 1, 0).keep_ratios
        assert (now >= before).all()
        before = now


def test_a_solver_can_be_written_as_json_and_read_back():
    limited_rows = replace(LADDER, extra_rows=256)
    for each in (solver(12.5), solver(), solver(ladder=limited_rows)):
        written = json.dumps(each.to_json(), allow_nan=False)
        again = BudgetSolver.from_json(json.loads(written))
        assert again.to_json() == each.to_json()
        assert (again.deadline_s, again.ladder.extra_rows) == (each.deadline_s, each.ladder.extra_rows)
        assert again.ladder.keep_ratios.dtype == np.float64
        assert again.ladder.state_bytes.dtype == np.int64


def many_devices(count: int):
    tier = Tier(replace(PHONE, link_drift=0.3, memory_bytes=6_000.0), 1.0, 1.0, 0.5, 0.5, 0.5)
    return sampling.of_tiers([tier], count, 0)


def ladder_of_32() -> Ladder:
    rungs = np.arange(1, 33)
    costs = {name: rungs**2 * 1_000 for name in Ladder.__slots__ if name not in ("keep_ratios", "extra_rows")}
    return Ladder(rungs / 32, **costs)


def test_a_hundred_thousand_budgets_take_less_than_two_seconds():
    count = 100_000
    owned, examples = many_devices(count), np.random.default_rng(1).integers(1, 400, count)
    started = time.process_time()
    found = solver(1_000.0, ladder_of_32()).solve(owned, np.arange(count), examples, 1, 0)
    assert time.process_time() - started < 2
    assert len(found.keep_ratios) == count


@pytest.mark.slow
def test_a_million_budgets_take_little_memory():
    count = 1_000_000
    owned, examples = many_devices(count), np.random.default_rng(1).integers(1, 400, count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    solver(1_000.0, ladder_of_32()).solve(owned, np.arange(count), examples, 1, 0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB
