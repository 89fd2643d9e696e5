"""Clock modes: who starts when, when a round ends, and whose work counts."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf, isfinite

import numpy as np

from raysim.clock.outcomes import COUNTED, LATE, SURPLUS
from raysim.clock.timing import CohortLoad, CohortTiming
from raysim.clock.work import Absent, Cohort, Plan, Work, by_version, stopped


@dataclass(frozen=True, slots=True)
class ClockMode:
    """When clients start and when a round ends; a row of `MODES`.

    Attributes:
        name: Name in the settings.
        end_round: Ends the round of a cohort that started together: from its work, the rules and the size of the
            cohort to the work as it ends and the seconds of the round. None: clients do not start together; one
            starts when another ends.
        num_selected: Returns how many clients the server selects, from the rules and the size of the cohort.
        waits_for_end: Whether clients that are done wait, idle, for the end of the round.
        takes_deadline: Whether the same rounds could have a deadline.
    """

    name: str
    end_round: Callable[[Work, "ClockRules", int], tuple[Work, float]] | None
    num_selected: Callable[["ClockRules", int], int]
    waits_for_end: bool
    takes_deadline: bool

    @property
    def starts_together(self) -> bool:
        """Whether a cohort starts when a round begins."""
        return self.end_round is not None

    def end(self, work: Work, rules: "ClockRules", size: int) -> tuple[Work, float]:
        """End the round of a cohort that started together.

        Args:
            work: The work of the cohort.
            rules: Deadline and the like.
            size: Clients of a cohort; more clients may have started.

        Returns:
            The work as it ends, and the seconds of the round without those of the server.

        Raises:
            ValueError: If clients do not start together in this mode.
        """
        if self.end_round is None:
            raise ValueError(f"clients of clock mode {self.name!r} do not start together")
        return self.end_round(work, rules, size)


def cohort_size(rules: "ClockRules", size: int) -> int:
    """Select as many clients as the cohort has."""
    return size


def over_selected(rules: "ClockRules", size: int) -> int:
    """Select more clients than the cohort has, by the factor `over_selection`."""
    return ceil(size * rules.over_selection - 1e-9)  # 10 x 1.1 is 11.000000000000002


def wait_for_all(work: Work, rules: "ClockRules", wanted: int) -> tuple[Work, float]:
    """End the round when every client is done or has stopped."""
    return work, float(work.duration_s.max())


def wait_until_deadline(work: Work, rules: "ClockRules", wanted: int) -> tuple[Work, float]:
    """End the round at the deadline, or when every client is done; later work is lost."""
    work = stopped(work, np.full(len(work), rules.deadline_s), LATE)
    return wait_for_all(work, rules, wanted)


def wait_for_first(work: Work, rules: "ClockRules", wanted: int) -> tuple[Work, float]:
    """End the round when the wanted number of clients is done; equal times count in the order of ids."""
    done = np.flatnonzero(work.outcomes == COUNTED)
    order = done[np.lexsort((work.cohort.clients[done], work.duration_s[done]))]
    if len(order) < wanted:
        return wait_for_all(work, rules, wanted)
    round_s = float(work.duration_s[order[wanted - 1]])
    others = stopped(work, np.full(len(work), round_s), SURPLUS)
    outcomes = others.outcomes.copy()
    outcomes[order[wanted:]] = SURPLUS  # those that end in the same moment, too
    return replace(others, outcomes=outcomes), round_s


SYNC = ClockMode("sync", wait_for_all, cohort_size, waits_for_end=True, takes_deadline=True)
DEADLINE = ClockMode("deadline", wait_until_deadline, cohort_size, waits_for_end=True, takes_deadline=True)
OVER_SELECTION = ClockMode("over-selection", wait_for_first, over_selected, waits_for_end=True, takes_deadline=False)
ASYNC = ClockMode("async", None, cohort_size, waits_for_end=False, takes_deadline=False)
MODES = {mode.name: mode for mode in (SYNC, DEADLINE, OVER_SELECTION, ASYNC)}
"""The clock modes by name; `raysim.simulation.planning` has a planner for each."""


@dataclass(frozen=True, slots=True)
class ClockRules:
    """When a round ends in simulated time, and whose work counts.

    Attributes:
        mode: The clock mode.
        deadline_s: Seconds after which a round ends (`deadline`).
        accept_partial: Whether late clients send the epochs they have done by then (`deadline`).
        over_selection: Clients selected over clients that count (`over-selection`).
        buffer_size: Updates of one aggregation (`async`).
        concurrency: Clients at work at a time (`async`).
        staleness_exponent: a in the weight (1 + s)^-a of an update that is s versions old (`async`).
        server_s: Seconds the server takes for a round.
        empty_round_s: Seconds that pass where nobody takes part.
    """

    mode: ClockMode = SYNC
    deadline_s: float = inf
    accept_partial: bool = False
    over_selection: float = 1.3
    buffer_size: int = 10
    concurrency: int = 10
    staleness_exponent: float = 0.5
    server_s: float = 0.0
    empty_round_s: float = 60.0

    @property
    def nobody_s(self) -> float:
        """Seconds that the server waits in a round that nobody takes part in."""
        return self.deadline_s if isfinite(self.deadline_s) else self.empty_round_s


def fit_epochs(
    cohort: Cohort,
    load_at: Callable[[Cohort], CohortLoad],
    timing_of: Callable[[Cohort, CohortLoad], CohortTiming],
    rules: ClockRules,
    min_epochs: int,
) -> tuple[Cohort, CohortLoad, CohortTiming]:
    """Return a cohort with load and timing; late clients train fewer epochs where partial work is accepted.

    Args:
        cohort: Who takes part, with as many epochs as they would train.
        load_at: Returns what a cohort transfers and computes with its epochs.
        timing_of: Returns how long that takes.
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


class EventQueue:
    """Clients at work in the order in which they end: by simulated time, then by id."""

    def __init__(self) -> None:
        self._events: list[tuple[float, int, Work]] = []

    def __len__(self) -> int:
        return len(self._events)

    def add(self, work: Work) -> None:
        """Add clients at work."""
        for index in range(len(work)):
            one = work if len(work) == 1 else work.take(np.array([index]))
            heapq.heappush(self._events, (float(one.end_s[0]), int(one.cohort.clients[0]), one))

    def pop(self) -> tuple[float, Work]:
        """Remove the next client to end and return its end and its work."""
        end_s, _, work = heapq.heappop(self._events)
        return end_s, work

    @property
    def works(self) -> list[Work]:
        """All clients at work, each by itself."""
        return [work for _, _, work in self._events]


def fill_buffer(
    rules: ClockRules, in_flight: Sequence[Work], now_s: float, fill: Callable[[EventQueue, float], None]
) -> Plan:
    """Plan the rounds of `async` from one aggregation to the next, for any source of clients; no client is absent.

    Args:
        rules: Size of the buffer, and the seconds that pass where it cannot be filled.
        in_flight: Who is at work when the round begins.
        now_s: Simulated time at which it begins.
        fill: Starts clients at a time, while there is room and there are clients.
    """
    queue, began_s, ended, filled = EventQueue(), now_s, [], 0
    for work in in_flight:
        queue.add(work)
    fill(queue, now_s)
    while filled < rules.buffer_size and queue:
        end_s, work = queue.pop()
        now_s = max(now_s, end_s)  # work that ends while the server is busy is received when it is done
        ended.append(work)
        filled += int(work.outcomes[0] == COUNTED)
        if filled < rules.buffer_size:  # else the next one starts from the new version
            fill(queue, now_s)
    if filled < rules.buffer_size:
        now_s += rules.empty_round_s
    round_s = now_s - began_s + rules.server_s
    return Plan(by_version(ended), Absent.nobody(), by_version(queue.works), round_s, memory={})


def who_trains(mode: ClockMode, cohort: int, clients: int, updates: int | None, at_work: int | None) -> str:
    """Describe whose work a round consists of.

    Args:
        mode: The clock mode.
        cohort: Clients that are chosen for a round.
        clients: Clients of the population.
        updates: Updates of an asynchronous round. None: as many as a cohort has.
        at_work: Clients at work at a time in asynchronous rounds. None: as many as a cohort has.

    >>> who_trains(SYNC, 30, 1000, None, None), who_trains(ASYNC, 30, 1000, 10, None)
    ('30 of 1,000 clients a round', '10 updates a round, 30 of 1,000 clients at work')
    """
    if mode.starts_together:
        return f"{cohort:,} of {clients:,} clients a round"
    return f"{updates or cohort:,} updates a round, {at_work or cohort:,} of {clients:,} clients at work"
