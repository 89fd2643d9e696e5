from dataclasses import replace

import numpy as np
import pytest

from raysim.clock.timing import CohortLoad, CohortTiming, schedule
from raysim.population.profiles import DeviceProfile
from raysim.population.sampling import link_drift, listed

PLAIN = DeviceProfile("plain", flops_per_s=1e9, down_bytes_per_s=2e6, up_bytes_per_s=5e5)


def load(count: int = 1) -> CohortLoad:
    """4 MB down, 1 MB up, 3 GFLOP, 8 MB of activations, 50 steps for everybody."""
    one = CohortLoad(*(np.array([value]) for value in (4_000_000, 1_000_000, 3_000_000_000, 8_000_000, 50)))
    return CohortLoad(*(np.repeat(getattr(one, name), count) for name in CohortLoad.__slots__))


def timing(device: DeviceProfile, clients=(0,), round: int = 1, seed: int = 0) -> CohortTiming:
    return schedule(load(len(clients)), listed([device] * len(clients)), np.array(clients), round, seed)


def seconds(device: DeviceProfile) -> list[float]:
    result = timing(device)
    return [result.download_s[0], result.compute_s[0], result.upload_s[0], result.total_s[0]]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, [2.0, 3.0, 2.0, 7.0]),  # 4e6 / 2e6, 3e9 / 1e9, 1e6 / 5e5
        ({"flops_per_s": 2e9}, [2.0, 1.5, 2.0, 5.5]),
        ({"down_bytes_per_s": 1e6}, [4.0, 3.0, 2.0, 9.0]),
        ({"up_bytes_per_s": 1e6}, [2.0, 3.0, 1.0, 6.0]),
        ({"latency_s": 0.25}, [2.25, 3.0, 2.25, 7.5]),  # once for each transfer
        ({"step_overhead_s": 0.01}, [2.0, 3.5, 2.0, 7.5]),  # 50 steps
        ({"memory_bytes_per_s": 16e6}, [2.0, 3.5, 2.0, 7.5]),  # 8e6 / 16e6
        (
            {"latency_s": 0.25, "step_overhead_s": 0.01, "memory_bytes_per_s": 16e6, "flops_per_s": 1e10},
            [2.25, 1.3, 2.25, 5.8],
        ),
    ],
)
def test_seconds_without_variation_are_those_computed_by_hand(change, expected):
    assert seconds(replace(PLAIN, **change)) == pytest.approx(expected, rel=1e-12)


def test_without_variation_neither_seed_nor_round_nor_client_matters():
    assert timing(PLAIN, (0, 1), round=1).total_s.tolist() == timing(PLAIN, (8, 9), round=5, seed=3).total_s.tolist()


def test_each_client_has_its_own_load_and_device():
    slow = replace(PLAIN, flops_per_s=1e8)
    cohort = CohortLoad(*(np.array(pair) for pair in ((4, 2), (1, 3), (10**9, 10**9), (0, 0), (1, 1))))
    result = schedule(cohort, listed([PLAIN, slow]), np.array([3, 7]), 1, 0)
    assert result.compute_s == pytest.approx([1.0, 10.0])
    assert result.download_s == pytest.approx([2e-6, 1e-6])
    assert result.upload_s == pytest.approx([2e-6, 6e-6])


VARYING = replace(PLAIN, compute_variation=0.3, link_variation=0.4)


def test_a_clients_speed_does_not_depend_on_who_else_takes_part():
    together, alone = timing(VARYING, (3, 5, 900)), timing(VARYING, (5,))
    reverse = timing(VARYING, (900, 5, 3))
    assert together.total_s[1] == alone.total_s[0]
    assert together.total_s.tolist() == reverse.total_s.tolist()[::-1]


def test_speeds_are_drawn_anew_for_each_seed_round_and_client():
    totals = [
        timing(VARYING, (client,), round, seed).total_s[0]
        for client, round, seed in ((0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1))
    ]
    assert len(set(totals)) == 4
    assert totals[0] == timing(VARYING, (0,)).total_s[0]


def test_speeds_vary_as_asked():
    clients = tuple(range(20_000))
    result = timing(VARYING, clients)
    factors = {"compute": result.compute_s / 3, "down": result.download_s / 2, "up": result.upload_s / 2}
    for name, std in (("compute", 0.3), ("down", 0.4), ("up", 0.4)):
        assert factors[name].mean() == pytest.approx(1, abs=0.015), name
        assert factors[name].std() == pytest.approx(std, rel=0.05), name
    correlations = np.corrcoef(list(factors.values()))
    assert np.abs(correlations - np.eye(3)).max() < 0.03


def test_latency_does_not_vary_and_all_of_training_does_alike():
    device = replace(VARYING, latency_s=100.0, step_overhead_s=10.0, memory_bytes_per_s=4e6)
    plain, late = timing(VARYING, (4,)), timing(device, (4,))
    assert late.download_s - plain.download_s == pytest.approx(100)
    assert late.upload_s - plain.upload_s == pytest.approx(100)
    assert late.compute_s / plain.compute_s == pytest.approx((3 + 500 + 2) / 3)


def test_compute_and_link_vary_apart():
    link = timing(replace(PLAIN, link_variation=0.4))
    compute = timing(replace(PLAIN, compute_variation=0.4))
    assert link.compute_s[0] == 3.0
    assert link.download_s[0] != 2.0
    assert (compute.download_s[0], compute.upload_s[0]) == (2.0, 2.0)
    assert compute.compute_s[0] != 3.0


def test_a_drift_of_the_links_lasts_ten_rounds_and_is_in_the_timing():
    device, clients = replace(PLAIN, link_drift=0.4), tuple(range(20_000))
    rounds = [timing(device, clients, round).download_s for round in (1, 10, 11)]
    factors = link_drift(listed([device] * len(clients)), np.array(clients), 1, 0)
    assert rounds[0].tolist() == rounds[1].tolist() == pytest.approx((2 / factors[0]).tolist())
    assert not np.array_equal(rounds[0], rounds[2])
    assert (1 / factors).mean(axis=1) == pytest.approx([1, 1], abs=0.015)
    assert (1 / factors).std(axis=1) == pytest.approx([0.4, 0.4], rel=0.05)
