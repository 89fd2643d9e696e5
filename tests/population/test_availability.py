"""Reachable clients, compared with hand-made traces and slow loops."""

import time
from dataclasses import replace

import numpy as np
import pytest

from raysim.population.availability import HORIZON_SLOTS, is_online, online_for_s
from raysim.population.profiles import DeviceProfile, Devices, OnlineIntervals
from raysim.population.sampling import listed

HOUR = 3600.0


def alike(num_clients: int, **figures: float) -> Devices:
    return listed([DeviceProfile("any", 1, 1, 1, **figures)], device_of=np.zeros(num_clients, np.int64))


def traced(*traces: tuple[float, list[tuple[float, float]]], trace_of: list[int] | None = None) -> Devices:
    spans = [span for _, intervals in traces for span in intervals]
    online = OnlineIntervals(
        offsets=np.cumsum([0, *(len(intervals) for _, intervals in traces)]),
        starts=np.array([start for start, _ in spans], np.float64),
        ends=np.array([end for _, end in spans], np.float64),
        periods=np.array([period for period, _ in traces], np.float64),
    )
    owned = listed([DeviceProfile("any", 1, 1, 1)] * len(traces))
    if trace_of is None:
        return replace(owned, online=online)
    return replace(owned, online=online, device_of=np.zeros(len(trace_of), np.int64), trace_of=np.array(trace_of))


ONE = np.array([0])


@pytest.mark.parametrize(
    ("now", "left"),
    [(0, 0), (9.5, 0), (10, 10), (19, 1), (20, 0), (39, 0), (40, 10), (50, 0), (99, 0), (110, 10), (245, 5)],
)
def test_intervals_are_half_open_and_repeat(now, left):
    devices = traced((100, [(10, 20), (40, 50)]))
    assert online_for_s(devices, ONE, now, 0).tolist() == [left]
    assert is_online(devices, ONE, now, 0).tolist() == [left > 0]


@pytest.mark.parametrize(("now", "left"), [(90, 15), (95.5, 9.5), (0, 5), (4, 1), (5, 0), (195, 10)])
def test_an_interval_goes_on_after_the_period(now, left):
    assert online_for_s(traced((100, [(0, 5), (90, 100)])), ONE, now, 0).tolist() == [left]


def test_an_interval_that_ends_the_period_goes_on_only_where_one_starts_it():
    assert online_for_s(traced((100, [(1, 5), (90, 100)])), ONE, 95, 0).tolist() == [5]


def test_a_trace_without_gaps_never_leaves_and_an_empty_one_never_comes():
    devices = traced((10, []), (50, [(0, 50)]), (10, []))
    for now in (0.0, 49.0, 777.0):
        assert online_for_s(devices, np.arange(3), now, 0).tolist() == [0, np.inf, 0]
        assert is_online(devices, np.arange(3), now, 0).tolist() == [False, True, False]


def test_every_client_has_its_own_trace_and_may_have_its_own_second():
    traces = (100, [(10, 20)]), (30, [(0, 5), (25, 28)])
    own = traced(*traces, trace_of=[1, 0, 1])
    assert online_for_s(own, np.arange(3), 12, 0).tolist() == [0, 8, 0]
    assert online_for_s(own, np.arange(3), np.array([26.0, 12, 64]), 0).tolist() == [2, 8, 1]
    assert online_for_s(own.of(np.array([1, 2])), np.array([1, 2]), np.array([12.0, 64]), 0).tolist() == [8, 1]
    assert is_online(own, np.arange(3), np.array([26.0, 20, 64]), 0).tolist() == [True, False, True]


def test_bisection_finds_what_a_loop_finds():
    generator = np.random.default_rng(0)
    traces = []
    for length in generator.integers(0, 12, 40):
        bounds = np.sort(generator.choice(1000, 2 * length, replace=False))
        traces.append((1000, [(int(start), int(end)) for start, end in bounds.reshape(-1, 2)]))
    devices, clients = traced(*traces), np.arange(40)
    for now in range(0, 2500, 7):
        expected = [any(start <= now % 1000 < end for start, end in intervals) for _, intervals in traces]
        assert is_online(devices, clients, now, 0).tolist() == expected


def test_who_is_always_available_never_leaves():
    clients = np.arange(5)
    assert is_online(alike(5), clients, 1e9, 0).all()
    assert (online_for_s(alike(5), clients, 1e9, 0) == np.inf).all()


@pytest.mark.parametrize("availability", [0.1, 0.5, 0.9])
def test_as_many_are_online_as_the_availability_says(availability):
    devices, clients = alike(20_000, availability=availability), np.arange(20_000)
    for hour in range(3):
        assert is_online(devices, clients, hour * HOUR, 0).mean() == pytest.approx(availability, abs=0.015)


@pytest.mark.slow
def test_the_share_of_hours_online_follows_the_clients_own_sine():
    days, clients = 400, np.arange(20)
    devices = alike(20, availability=0.5, availability_swing=0.5)
    online = np.array([is_online(devices, clients, hour * HOUR, 3) for hour in range(24 * days)])
    by_hour = online.reshape(days, 24, 20).mean(axis=0)
    assert online.mean() == pytest.approx(0.5, abs=0.01)
    wave = np.fft.rfft(by_hour, axis=0)
    assert 2 * np.abs(wave[1]) / 24 == pytest.approx(0.5, abs=0.04)  # amplitude of the daily sine
    assert 2 * np.abs(wave[2:]).max() / 24 < 0.05
    assert np.std(np.angle(wave[1])) > 1  # phases differ


def test_a_state_lasts_for_an_hour_and_is_the_clients_own():
    devices, clients = alike(200, availability=0.5), np.arange(200)
    first = is_online(devices, clients, 0, 0)
    assert np.array_equal(first, is_online(devices, clients, 3599.9, 0))
    assert not np.array_equal(first, is_online(devices, clients, 3600, 0))
    assert not np.array_equal(first, is_online(devices, clients, 0, 1))
    some = np.array([150, 7, 31])
    assert np.array_equal(is_online(devices.of(some), some, 0, 0), first[some])


def test_seconds_left_end_where_the_client_goes_offline():
    devices, clients = alike(300, availability=0.7, availability_swing=0.3), np.arange(300)
    now = np.linspace(0, 5 * HOUR, 300)
    left = online_for_s(devices, clients, now, 0)
    assert np.array_equal(left > 0, is_online(devices, clients, now, 0))
    for client in clients:
        second = now[client]
        while is_online(devices.of(clients[[client]]), clients[[client]], second, 0)[0]:
            second = (second // HOUR + 1) * HOUR
        assert left[client] == pytest.approx(second - now[client])
    for second in (0.0, 1800.0):
        one = online_for_s(devices, clients, second, 0)
        assert np.array_equal(one, online_for_s(devices, clients, np.full(300, second), 0))


def test_who_stays_for_the_whole_horizon_is_taken_never_to_leave():
    left = online_for_s(alike(2000, availability=0.995), np.arange(2000), 100.0, 0)
    stays = np.isinf(left)
    assert stays.mean() == pytest.approx(0.995**HORIZON_SLOTS, abs=0.05)
    assert left[~stays].max() < HORIZON_SLOTS * HOUR


def test_a_mixed_population_is_told_one_by_one():
    profiles = [DeviceProfile("on", 1, 1, 1), DeviceProfile("off", 1, 1, 1, availability=1e-12)]
    devices = listed(profiles, device_of=np.array([1, 0, 1, 0]))
    assert is_online(devices, np.arange(4), 0.0, 0).tolist() == [False, True, False, True]
    assert online_for_s(devices, np.arange(4), 0.0, 0).tolist() == [0, np.inf, 0, np.inf]
    none = np.array([], np.int64)
    assert (
        is_online(devices.of(none), none, 0.0, 0).shape == online_for_s(devices.of(none), none, 0.0, 0).shape == (0,)
    )


@pytest.mark.parametrize("kind", ["sine", "traces"])
def test_a_hundred_thousand_clients_are_quick(kind):
    clients = np.arange(100_000)
    if kind == "sine":
        devices = alike(len(clients), availability=0.5, availability_swing=0.3)
    else:
        trace = (86400, [(float(at), at + 900.0) for at in range(0, 86400, 1800)])
        devices = traced(*[trace] * 1000, trace_of=(clients % 1000).tolist())
    seconds = []
    for now in range(5):
        started = time.perf_counter()
        is_online(devices, clients, now * HOUR, 0)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.25  # measured: 0.01 to 0.02 s
