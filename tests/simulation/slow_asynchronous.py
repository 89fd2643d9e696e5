"""FedBuff (arXiv 2106.06639, algorithm 1) as a loop over a list of clients at work, written the slow way.

Of raysim only the cost and time of one client and the random draws are used.
"""

from dataclasses import dataclass

import numpy as np

from raysim.core import seeding
from raysim.pruning import masks
from raysim.pruning.masks import CohortMasks
from raysim.pruning.significance import first_channels
from raysim.simulation.cohort import load_of, schedule_cohort, view_of
from raysim.simulation.participants import cohort_of
from raysim.simulation.scenario import Scenario
from raysim.simulation.transition import initial_state


@dataclass
class AtWork:
    """A client that has started; `version` is the round it started in."""

    client: int
    version: int
    starts_s: float
    ends_s: float
    drops_out: bool


@dataclass
class Buffer:
    """What happens from one aggregation to the next."""

    ended: list[AtWork]
    seconds: float
    still_at_work: list[AtWork]

    @property
    def counted(self) -> list[AtWork]:
        return [one for one in self.ended if not one.drops_out]


def lasts(scenario: Scenario, client: int, version: int) -> tuple[float, bool]:
    """Seconds until a client is done or drops out, and whether it does."""
    workload = scenario.workload
    cohort = cohort_of(scenario, np.array([client]), version)
    view = view_of(scenario, initial_state(scenario), cohort)
    mask = masks.keep_top(workload.plan, first_channels(workload.plan), float(cohort.keep_ratios[0]))
    timing = schedule_cohort(scenario, cohort, load_of(scenario, view, CohortMasks.of([mask])))
    chance, point = seeding.uniform(workload.seed, "dropout", version, np.array([client]), 2)
    whole = float(timing.total_s[0])
    rate = workload.population.devices.profile(client).failure_rate
    return (float(point[0]) * whole, True) if chance[0] < rate else (whole, False)


def play(scenario: Scenario, rounds: int) -> list[Buffer]:
    rules, workload = scenario.clock, scenario.workload
    everybody, at_work, now, buffers = range(len(workload.population)), [], 0.0, []
    for version in range(1, rounds + 1):
        began, ended, standby = now, [], []
        asked = {one.client for one in at_work}
        first_draw = True
        full = False
        while not full:
            while len(at_work) < rules.concurrency:  # there is room: let somebody start from this version
                if not standby:
                    free = [client for client in everybody if client not in asked]
                    wanted = rules.concurrency - len(at_work) + (rules.buffer_size - 1 if first_draw else 0)
                    rng = seeding.generator(workload.seed, "selection", version)
                    places = rng.choice(len(free), min(wanted, len(free)), replace=False)
                    standby = sorted(free[place] for place in places)
                    asked |= set(standby)
                    order = {
                        c: seeding.uniform(workload.seed, "start order", version, np.array([c]))[0, 0]
                        for c in standby
                    }
                    standby.sort(key=lambda client: order[client])
                    first_draw = False
                    if not standby:
                        break
                client = standby.pop()
                seconds, drops_out = lasts(scenario, client, version)
                at_work.append(AtWork(client, version, now, now + seconds, drops_out))
            if not at_work:
                now += rules.empty_round_s
                break
            one = min(at_work, key=lambda one: (one.ends_s, one.client))
            at_work.remove(one)
            now = max(now, one.ends_s)
            ended.append(one)
            full = sum(not each.drops_out for each in ended) == rules.buffer_size
        now += rules.server_s
        buffers.append(Buffer(ended, now - began, list(at_work)))
    return buffers
