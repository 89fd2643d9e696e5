"""When a round ends for a cohort that started together, and whose work counts."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from raysim.clock.outcomes import COUNTED, LATE, SURPLUS
from raysim.clock.timing import ClockRules, CohortLoad, CohortTiming
from raysim.clock.work import Absent, Cohort, Plan, Work, by_version, stopped


def fit_epochs(
    cohort: Cohort, load_at: Callable[[Cohort], CohortLoad],
    timing_of: Callable[[Cohort, CohortLoad], CohortTiming], rules: ClockRules, min_epochs: int,
) -> tuple[Cohort, CohortLoad, CohortTiming]:  # fmt: skip
    """Return a cohort with load and timing; late clients train fewer epochs where partial work is accepted.

    Args:
        cohort: Who takes part, with as many epochs as they would train.
        load_at: What a cohort transfers and computes with its epochs.
        timing_of: How long that takes.
        rules: Whether there is a deadline, and partial work is accepted.
        min_epochs: Fewest epochs that the method makes sense with.
    """
    while True:
        load = load_at(cohort)
        timing = timing_of(cohort, load)
        late = (timing.total_s > rules.deadline_s) & (cohort.epochs > min_epochs)
        if not (rules.accept_partial and late.any()):
            return cohort, load, timing
        cohort = replace(cohort, epochs=cohort.epochs - late)


def wait_for_all(work: Work, rules: ClockRules, wanted: int) -> tuple[Work, float]:
    """End the round when everybody is done or has stopped."""
    return work, float(work.duration_s.max())


def wait_until_deadline(work: Work, rules: ClockRules, wanted: int) -> tuple[Work, float]:
    """End the round at the deadline, or when everybody is done; what comes later is lost."""
    work = stopped(work, np.full(len(work), rules.deadline_s), LATE)
    return wait_for_all(work, rules, wanted)


def wait_for_first(work: Work, rules: ClockRules, wanted: int) -> tuple[Work, float]:
    """End the round when as many are done as are wanted; equal times count in the order of ids."""
    done = np.flatnonzero(work.outcomes == COUNTED)
    order = done[np.lexsort((work.cohort.clients[done], work.duration_s[done]))]
    if len(order) < wanted:
        return wait_for_all(work, rules, wanted)
    round_s = float(work.duration_s[order[wanted - 1]])
    others = stopped(work, np.full(len(work), round_s), SURPLUS)
    outcomes = others.outcomes.copy()
    outcomes[order[wanted:]] = SURPLUS  # those that end in the same moment, too
    return replace(others, outcomes=outcomes), round_s


ROUND_ENDS: dict[str, Callable[[Work, ClockRules, int], tuple[Work, float]]] = {
    "sync": wait_for_all,
    "deadline": wait_until_deadline,
    "over-selection": wait_for_first,
}


class EventQueue:
    """Clients at work in the order in which they end: by simulated time, then by id."""

    def __init__(self) -> None:
        self._events: list[tuple[float, int, Work]] = []

    def __len__(self) -> int:
        return len(self._events)

    def add(self, work: Work) -> None:
        """Add clients at work."""
        for place in range(len(work)):
            one = work if len(work) == 1 else work.take(np.array([place]))
            heapq.heappush(self._events, (float(one.end_s[0]), int(one.cohort.clients[0]), one))

    def pop(self) -> tuple[float, Work]:
        """Take out the next to end: when, and its work."""
        end_s, _, work = heapq.heappop(self._events)
        return end_s, work

    @property
    def works(self) -> list[Work]:
        """All clients at work, each by itself."""
        return [work for _, _, work in self._events]


def fill_buffer(
    rules: ClockRules, in_flight: Sequence[Work], now_s: float, fill: Callable[[EventQueue, float], None]
) -> Plan:  # fmt: skip
    """Plan a buffer, whoever the clients are; nobody is absent.

    Args:
        rules: Size of the buffer, and what passes where it cannot be filled.
        in_flight: Who is at work when it begins.
        now_s: Simulated time at which it begins.
        fill: Lets clients start at a time, as long as there is room and there is somebody.
    """
    queue, began_s, ended, filled = EventQueue(), now_s, [], 0
    for work in in_flight:
        queue.add(work)
    fill(queue, now_s)
    while filled < rules.buffer_size and queue:
        end_s, work = queue.pop()
        now_s = max(now_s, end_s)  # who ends while the server is busy is heard when it is done
        ended.append(work)
        filled += int(work.outcomes[0] == COUNTED)
        if filled < rules.buffer_size:  # else the next one starts from the new version
            fill(queue, now_s)
    if filled < rules.buffer_size:
        now_s += rules.empty_round_s
    round_s = now_s - began_s + rules.server_s
    return Plan(by_version(ended), Absent.nobody(), by_version(queue.works), round_s, memory={})
