"""Refuses a deadline that no client could meet, before anybody trains in vain."""

import numpy as np
from numpy.typing import NDArray

from raysim.clock import seconds
from raysim.cohort import Cohort, cohort_of
from raysim.errors import SettingError
from raysim.scenario import Scenario
from raysim.solved_budgets import ladder_of_ratios

LUCK = 4.0
"""Standard deviations by which speeds may exceed their means in a lucky round."""


def check_deadline(scenario: Scenario) -> None:
    """Raise SettingError if a round's deadline is over before any client could be done, however lucky it is.

    Of methods that choose widths or epochs themselves, or prune single weights, nothing is said: late rounds are
    counted.
    """
    method = scenario.method
    chooses = method.widths is not None or method.work is not None or method.prepare is not None
    if scenario.clock.mode != "deadline" or chooses:
        return
    population = scenario.workload.population
    everybody = cohort_of(scenario, np.arange(len(population)), round=1)
    able = everybody.take(everybody.keep_ratios > 0)
    least_s = float(least_seconds(scenario, able).min())
    if least_s > scenario.clock.deadline_s:
        raise SettingError(
            f"clock.deadline_s={scenario.clock.deadline_s:g} is met by none of {len(population)} clients: "
            f"the fastest needs {least_s:.4g} s; allowed: more than that, or narrower submodels"
        )


def least_seconds(scenario: Scenario, cohort: Cohort) -> NDArray[np.float64]:
    """Return the seconds each client would take at least: all bandwidths and speeds well above their means.

    Where partial work is accepted, they are those of the fewest epochs.
    """
    local, population = scenario.workload.local, scenario.workload.population
    epochs = scenario.method.min_epochs if scenario.clock.accept_partial else local.epochs
    ladder = ladder_of_ratios(scenario, np.unique(cohort.keep_ratios))
    rungs = np.searchsorted(ladder.keep_ratios, cohort.keep_ratios)
    found = np.empty(len(rungs))
    for rung in range(len(ladder)):
        members = np.flatnonzero(rungs == rung)
        devices = population.devices.of(cohort.clients[members])
        load = ladder.load(cohort.examples[members], epochs, local.batch_size)
        links = devices.column("link_variation") + devices.column("link_drift")
        spread = np.stack([devices.column("compute_variation"), links, links])
        found[members] = seconds(load, devices, np.exp(LUCK * spread)).total_s[rung]
    return found
