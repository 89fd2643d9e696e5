"""Plan asynchronous rounds: clients start and end on an event queue; a full buffer makes a new version of the model.

Source: FedBuff (Nguyen et al., AISTATS 2022, arXiv 2106.06639, algorithm 1). Finish times are known before
training, so all clients of one buffer are trained at once, each from the version it started from.
"""

from dataclasses import replace

import numpy as np

from raysim.clock import outcomes
from raysim.clock.interruptions import availability_varies
from raysim.clock.modes import EventQueue, fill_buffer
from raysim.clock.work import Absent, Plan, Work, all_absent
from raysim.core import seeding
from raysim.simulation.cohort import ChooseMasks, choose_masks, planned_work, with_interruptions
from raysim.simulation.participants import reachable, respond, select_clients
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import ServerState


def plan_buffer(scenario: Scenario, state: ServerState, choose: ChooseMasks = choose_masks) -> Plan:
    """Plan the time from one aggregation to the next.

    A client that ends makes room for another, which starts from the current version. Where the buffer cannot be
    filled, since no client is at work and none can be reached, `empty_round_s` pass and it is aggregated as it is.
    """
    source = _Source(scenario, state, choose)
    plan = fill_buffer(scenario.clock, state.in_flight, state.totals.simulated_s, source.fill)
    return replace(plan, absent=all_absent(source.absent), memory=source.state.memory)


class _Source:
    """Draws the clients that start from one version, some at a time, each at most once."""

    def __init__(self, scenario: Scenario, state: ServerState, choose: ChooseMasks) -> None:
        self.state, self.absent = state, [Absent.nobody()]
        self._scenario, self._choose = scenario, choose
        self._drawn = np.zeros(len(scenario.workload.population), dtype=np.bool_)
        for work in state.in_flight:
            self._drawn[work.cohort.clients] = True
        self._waiting: list[Work] = []
        self._has_drawn = False
        self._reach_varies = availability_varies(scenario.workload.population.devices)

    def fill(self, queue: EventQueue, now_s: float) -> None:
        """Start clients now, while there is room and some can be reached."""
        while len(queue) < self._scenario.clock.concurrency:
            if not self._waiting and not self._draw(self._scenario.clock.concurrency - len(queue), now_s):
                return
            work = replace(self._waiting.pop(), start_s=np.array([now_s]))
            clients = work.cohort.clients
            if not self._reach_varies:
                queue.add(work)
            elif reachable(self._scenario, self._at(now_s), clients)[0]:
                queue.add(with_interruptions(self._scenario, self.state, work))
            else:  # went offline since it was selected
                self.absent.append(
                    Absent(clients, work.start_s, np.array([outcomes.UNREACHABLE]), np.array(["nothing"]))
                )

    def _at(self, now_s: float) -> ServerState:
        return replace(self.state, totals=replace(self.state.totals, simulated_s=now_s))

    def _draw(self, room: int, now_s: float) -> bool:
        """Draw as many clients as may be needed to fill the buffer; return whether there is one.

        While none can be reached, twice as many are selected: one by one would need a draw for each client.
        """
        scenario, now = self._scenario, self._at(now_s)
        wanted = room + (scenario.clock.buffer_size - 1 if not self._has_drawn else 0)
        self._has_drawn = True
        while True:
            selected = select_clients(scenario, now, wanted, self._drawn)
            self._drawn[selected] = True
            cohort, absent = respond(scenario, now, selected)
            self.absent.append(absent)
            if len(cohort.clients):
                break
            if not len(selected):
                return False
            wanted *= 2
        work, memory = planned_work(scenario, now, cohort, self._choose)
        if not self._reach_varies:  # then all at once: one by one would take as long as all, each time
            work = with_interruptions(scenario, now, work)
        self.state = replace(self.state, memory=memory)
        order = np.argsort(seeding.uniform(scenario.workload.seed, "start order", cohort.round, cohort.clients)[0])
        self._waiting = [work.take(np.array([index])) for index in order]
        return True
