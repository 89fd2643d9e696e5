"""Joules and batteries; all numbers by hand."""

import numpy as np
import pytest

from raysim.clock import energy, outcomes
from raysim.clock.timing import CohortTiming
from raysim.clock.work import stopped
from raysim.population.profiles import DeviceProfile
from raysim.population.sampling import listed
from tests.clocked import devices_of, work_of

WATTS = {"train_watts": 3.0, "idle_watts": 0.5, "radio_j_per_byte": 0.01}
NO_WAIT = np.zeros(1)


def test_a_client_spends_on_training_on_its_radio_and_on_waiting():
    work = work_of([(2.0, 5.0, 4.0)])
    devices = devices_of(1, **WATTS)
    assert energy.spent_j(devices, work, np.array([6.0])).tolist() == [3 * 5 + 0.01 * 1500 + 0.5 * 6]  # 33
    assert energy.spent_j(devices_of(1), work, np.array([6.0])).tolist() == [0.0]


@pytest.mark.parametrize(
    ("second", "joules"),
    [(1.0, 5.0), (2.0, 10.0), (4.0, 16.0), (8.0, 10 + 15 + 1.25)],  # 0.01 x 500 B; all of it; + 3 W x 2 s; + 125 B
)
def test_who_stops_has_spent_what_it_has_done(second, joules):
    work = stopped(work_of([(2.0, 5.0, 4.0)]), np.array([second]), outcomes.DROPPED)
    assert energy.spent_j(devices_of(1, **WATTS), work, NO_WAIT).tolist() == [pytest.approx(joules, rel=1e-12)]


def test_nobody_spends_more_than_its_battery_holds():
    work, devices = work_of([(2.0, 5.0, 4.0)] * 2), devices_of(2, **WATTS)
    assert energy.spent_j(devices, work, np.full(2, 6.0), np.array([33.5, 31.0])).tolist() == [33.0, 31.0]
    empty = stopped(work, np.array([1.0005, 3.0]), outcomes.BATTERY)  # 500 of 500.25 bytes count, 5.0025 J are gone
    assert energy.spent_j(devices, empty, np.zeros(2), np.array([5.0025, 13.0])).tolist() == [5.0025, 13.0]


def test_the_second_at_which_a_battery_is_empty():
    """10 J of download in 2 s, 15 J of training in 5 s, 5 J of upload in 4 s."""
    levels = np.array([0.0, 5.0, 10.0, 16.0, 25.0, 27.5, 30.0, np.inf])
    count = len(levels)
    phases = CohortTiming(np.full(count, 2.0), np.full(count, 5.0), np.full(count, 4.0))
    radio = (np.full(count, 1000), np.full(count, 500))
    empty_s = energy.seconds_until_empty(devices_of(count, **WATTS), phases, radio, levels)
    assert empty_s.tolist() == [0.0, 1.0, 2.0, 4.0, 7.0, 9.0, np.inf, np.inf]


def test_a_battery_fills_while_its_device_rests_and_never_beyond_its_capacity():
    devices = devices_of(3, battery_j=100.0, charge_watts=2.0)
    clients = np.arange(3)
    assert energy.levels_j(devices, {}, clients, 50.0).tolist() == [100.0] * 3
    history = energy.drained(devices, {}, np.array([1, 2]), np.array([40.0, -3.0]), np.array([50.0, 60.0]))
    assert history[energy.LEVEL].tolist() == [100.0, 40.0, 0.0]
    assert energy.levels_j(devices, history, clients, 60.0).tolist() == [100.0, 60.0, 0.0]
    assert energy.levels_j(devices, history, clients, 70.0).tolist() == [100.0, 80.0, 20.0]
    assert energy.levels_j(devices, history, clients, 1000.0).tolist() == [100.0] * 3
    assert energy.levels_j(devices, history, clients, 55.0).tolist() == [100.0, 50.0, 0.0]  # the third still works
    again = energy.drained(devices, history, np.array([1]), np.array([7.0]), np.array([80.0]))
    assert again[energy.LEVEL].tolist() == [100.0, 7.0, 0.0]
    assert history[energy.LEVEL].tolist() == [100.0, 40.0, 0.0], "what was remembered is not changed"


def test_devices_on_mains_remember_nothing_and_never_run_empty():
    devices = devices_of(2)
    assert not energy.have_batteries(devices)
    assert energy.drained(devices, {"other": np.ones(2)}, np.arange(2), np.zeros(2), np.ones(2)).keys() == {"other"}
    plain = DeviceProfile("mains", 1e9, 1e6, 1e6)
    mixed = listed([plain, DeviceProfile("cell", 1e9, 1e6, 1e6, battery_j=5.0)])
    assert energy.have_batteries(mixed)
    history = energy.drained(mixed, {}, np.arange(2), np.array([np.inf, 1.0]), np.ones(2))
    assert energy.levels_j(mixed, history, np.arange(2), 9.0).tolist() == [np.inf, 1.0]
