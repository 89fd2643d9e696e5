"""Clients that stop by themselves: whether, when and why."""

from dataclasses import replace

import numpy as np
import pytest

from raysim.clock import energy
from raysim.clock.interruptions import drops_out_s, interrupted
from raysim.clock.outcomes import BATTERY, COUNTED, DROPPED, OFFLINE, UNREACHABLE
from raysim.clock.work import Work
from raysim.population import availability
from raysim.population.profiles import OnlineIntervals
from raysim.simulation.participants import reachable
from raysim.simulation.transition import initial_state
from tests.clocked import MODES, clocked, devices_of, played, with_devices, with_figures, work_of

MANY = 20_000


def crowd(round: int = 1, count: int = MANY) -> Work:
    return work_of([(2.0, 5.0, 3.0)] * count, round=round)


def test_clients_drop_out_as_often_as_their_profile_says_at_any_point_of_their_work():
    """Chi-square at 1 %: 6.63 for one degree of freedom, 36.19 for 19."""
    seconds = drops_out_s(devices_of(MANY, failure_rate=0.3), np.arange(MANY), crowd(), 0)
    dropped = np.isfinite(seconds)
    expected = 0.3 * MANY
    assert (dropped.sum() - expected) ** 2 / (expected * 0.7) < 6.63
    counts = np.histogram(seconds[dropped], bins=20, range=(0, 10))[0]
    assert counts.sum() == dropped.sum()
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 36.19


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_nobody_or_everybody_drops_out(rate):
    work = interrupted(crowd(count=200), devices_of(200, failure_rate=rate), {}, 0)
    assert set(work.outcomes) == {DROPPED if rate else COUNTED}
    assert (work.duration_s < 10).all() if rate else (work.duration_s == 10).all()
    assert (work.duration_s > 0).all()


def test_who_drops_out_depends_on_seed_round_and_client_alone():
    devices = devices_of(1, failure_rate=0.3)

    def one(client: int, round: int = 1, seed: int = 0) -> float:
        return float(drops_out_s(devices, np.array([client]), work_of([(2.0, 5.0, 3.0)], round=round), seed)[0])

    together = drops_out_s(devices_of(300, failure_rate=0.3), np.arange(300), crowd(count=300), 0)
    assert [one(client) for client in range(300)] == together.tolist()
    for other in ({"round": 2}, {"seed": 1}):
        assert [one(client, **other) for client in range(300)] != together.tolist()


def test_the_first_of_several_reasons_counts(monkeypatch):
    online_s = np.array([np.inf, 4.0, 4.0, 6.0])
    monkeypatch.setattr(availability, "online_for_s", lambda devices, clients, now_s, seed: online_s)
    devices = devices_of(4, battery_j=9.0, train_watts=3.0)  # empty after 2 + 9 / 3 = 5 s
    history = {energy.LEVEL: np.array([9.0, 9.0, 3.0, 9.0]), energy.SINCE: np.zeros(4)}
    work = interrupted(work_of([(2.0, 5.0, 3.0)] * 4), devices, history, 0)
    assert work.outcomes.tolist() == [BATTERY, OFFLINE, BATTERY, BATTERY]
    assert work.duration_s.tolist() == [5.0, 4.0, 3.0, 5.0]


def test_a_battery_is_as_full_as_it_has_been_charged_by_the_start():
    devices = devices_of(1, battery_j=100.0, train_watts=3.0, charge_watts=1.0)
    history = {energy.LEVEL: np.array([0.0]), energy.SINCE: np.array([10.0])}
    work = interrupted(work_of([(2.0, 5.0, 3.0)], start_s=16.0), devices, history, 0)  # 6 J for 2 s of training
    assert (work.outcomes[0], work.duration_s[0]) == (BATTERY, 4.0)
    work = interrupted(work_of([(2.0, 5.0, 3.0)], start_s=25.0), devices, history, 0)
    assert work.outcomes[0] == COUNTED


def test_batteries_drain_by_training_radio_and_waiting_then_charge_until_the_next_round():
    watts = {"battery_j": 50.0, "train_watts": 2.0, "radio_j_per_byte": 1e-4, "idle_watts": 0.5, "charge_watts": 0.3}
    scenario = with_figures(clocked("magnitude", "sync", "selection.clients_per_round=6"), **watts)
    state, (first, second) = played(scenario, 2)
    rows = first.clients
    level = 50 - (
        2.0 * rows["compute_s"]
        + 1e-4 * (rows["down_bytes"] + rows["up_bytes"])
        + 0.5 * (rows["total_s"].max() - rows["total_s"])
    )
    np.testing.assert_allclose(50 - rows["energy_j"], level, rtol=1e-12)
    np.testing.assert_allclose(state.history[energy.LEVEL], level - second.clients["energy_j"], rtol=1e-12)
    assert (state.history[energy.SINCE] == state.totals.simulated_s).all()
    later = energy.levels_j(
        scenario.workload.population.devices, state.history, np.arange(6), state.totals.simulated_s + 10
    )
    np.testing.assert_allclose(later, np.minimum(50, state.history[energy.LEVEL] + 3), rtol=1e-12)


def test_an_empty_battery_cannot_be_reached_until_it_is_charged():
    watts = {"battery_j": 0.5, "train_watts": 2.0, "radio_j_per_byte": 1e-7, "idle_watts": 1.0}
    whole = "selection.clients_per_round=6"
    state, reports = played(with_figures(clocked("magnitude", "sync", whole), **watts), 2)
    spent, outcomes = reports[0].clients["energy_j"], reports[0].clients["fate"]
    assert (outcomes == BATTERY).any()
    assert (spent[outcomes == BATTERY] == 0.5).all()
    assert (spent <= 0.5).all()
    died = reports[0].clients["client"][outcomes == BATTERY]
    assert (state.history[energy.LEVEL][died] == 0).all()
    again = reports[1].clients
    assert set(again["fate"][np.isin(again["client"], died)]) == {UNREACHABLE}

    charging = with_figures(clocked("magnitude", "sync", whole, "clock.server_s=1.0"), **watts, charge_watts=0.1)
    _, reports = played(charging, 2)
    again = reports[1].clients
    assert UNREACHABLE not in set(again["fate"])
    assert (again["energy_j"][again["fate"] == BATTERY] >= 0.1).all(), "a second of the server's has charged 0.1 J"


def test_who_has_dropped_out_neither_waits_nor_pays_for_waiting():
    """Idle at 1 W: those that are done wait for the end of the round, those that have stopped do not."""
    scenario = clocked("magnitude", "sync", "selection.clients_per_round=6")
    scenario = with_figures(scenario, failure_rate=0.5, idle_watts=1.0, battery_j=100.0, charge_watts=0.0)
    state, (report,) = played(scenario, 1)
    rows = report.clients
    waits_s = np.where(rows["fate"] == COUNTED, report.round_s - rows["lasts_s"], 0.0)
    assert {COUNTED, DROPPED} == set(rows["fate"])
    np.testing.assert_allclose(rows["energy_j"], waits_s, rtol=1e-9, atol=1e-12)
    rests_from_s = np.where(rows["fate"] == COUNTED, report.round_s, rows["lasts_s"])
    np.testing.assert_allclose(state.history[energy.SINCE], rests_from_s, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_devices_that_come_and_go_by_a_trace(mode):
    """Online for 0.6 s, away for 0.4 s, each client from another moment on: what is done by then is paid for."""
    wait = () if mode in ("deadline", "partial") else ("clock.empty_round_s=0.3",)
    scenario = clocked("magnitude", mode, "rounds=6", *wait)
    devices = scenario.workload.population.devices
    count = len(devices.device_of)
    begins = np.arange(count) * 0.06
    online = OnlineIntervals(np.arange(count + 1), begins, begins + 0.6, np.ones(count))
    traced = with_devices(
        scenario,
        replace(devices, online=online, trace_of=np.arange(count)),
    )
    state, reports = played(traced)
    assert state.totals.outcomes.keys() >= {OFFLINE, UNREACHABLE}
    for report in reports:
        rows = report.clients
        begin, second = begins[rows["client"]], np.mod(rows["start_s"], 1.0)
        here = (begin <= second) & (second < begin + 0.6)
        np.testing.assert_array_equal(here, rows["fate"] != UNREACHABLE)
        gone = rows["fate"] == OFFLINE
        np.testing.assert_allclose(rows["lasts_s"][gone], (begin + 0.6 - second)[gone], rtol=1e-9)
        fits = rows["lasts_s"] <= begin + 0.6 - second + 1e-9
        assert fits[here].all()


def test_who_is_offline_or_empty_is_not_reached(monkeypatch):
    scenario = with_figures(clocked("magnitude", "sync"), battery_j=5.0)
    monkeypatch.setattr(availability, "is_online", lambda devices, clients, now_s, seed: clients != 2)
    state = initial_state(scenario)
    levels = np.array([1.0, 0.0, 1.0, 1e-9, 0.0, 5.0])
    state.history.update({energy.LEVEL: levels, energy.SINCE: np.zeros(6)})
    reached = reachable(scenario, state, np.arange(6))
    assert reached.tolist() == [True, False, False, True, False, True]
