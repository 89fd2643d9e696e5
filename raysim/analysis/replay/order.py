"""Asynchronous starts as they were recorded: who starts next, and who may not start yet."""

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from raysim.analysis.replay.starts import Conditions, some, work_of
from raysim.clock.interruptions import availability_varies, interrupted
from raysim.clock.modes import ClockRules, EventQueue
from raysim.clock.outcomes import ABSENT, COUNTED, UNFINISHED
from raysim.clock.work import Work
from raysim.core import seeding
from raysim.core.tensors import Columns

BATCH = 64
"""Clients timed at once: alone, each would take as long as all of them."""


class Starts:
    """Lets the recorded clients start in their order, each in the next place that gets free.

    A client that is still at work, or has started from this version, is passed over until later. Where places
    stayed free in the run, since nobody could be asked, they stay free at least until that point of the run.
    """

    def __init__(self, conditions: Conditions, rows: Columns, round_starts_s: list[float]) -> None:
        """Sort the recorded starts.

        Args:
            conditions: Under what clients work now.
            rows: The run's table of clients.
            round_starts_s: Simulated time at which each recorded round began.
        """
        self._conditions, self._rows = conditions, rows
        order = start_order(rows, conditions.seed)
        held = held_back(some(rows, order), rows, conditions.rules, round_starts_s)
        self._pending: deque[tuple[int, bool]] = deque(zip(order.tolist(), held.tolist(), strict=True))
        self._timeless = not availability_varies(conditions.devices)
        self.row_of: dict[int, int] = {}
        self.ran_out = False

    def begin(self, round: int, history: Mapping[str, NDArray[np.float64]], in_flight: tuple[Work, ...]) -> None:
        """Go on with the next version of the model."""
        self._round, self._history, self.ran_out = round, history, False
        self._started = {int(client) for work in in_flight for client in work.cohort.clients}
        self._timed: dict[int, Work] = {}

    def fill(self, queue: EventQueue, now_s: float) -> None:
        """Let clients start now, as long as there is room and somebody may start."""
        while len(queue) < self._conditions.rules.concurrency:
            place = self._next(now_s)
            if place is None:
                self.ran_out |= not self._pending
                return
            row = self._pending[place][0]
            work = self._work(row, now_s)
            del self._pending[place]
            client = int(self._rows["client"][row])
            self._started.add(client)
            self.row_of[client] = row
            queue.add(work)

    def _next(self, now_s: float) -> int | None:
        rows = self._rows
        for place, (row, held) in enumerate(self._pending):
            due = (int(rows["started_round"][row]), float(rows["start_s"][row]))
            if held and (self._round, now_s) < due:
                return None
            if int(rows["client"][row]) not in self._started:
                return place
        return None

    def _work(self, row: int, now_s: float) -> Work:
        if row not in self._timed:
            wanted = np.unique([row, *(each for each, _ in islice(self._pending, BATCH))])
            works = work_of(self._conditions, some(self._rows, wanted), self._round, now_s)
            if self._timeless:
                works = self._begun(works)
            self._timed |= {int(each): works.take(np.array([place])) for place, each in enumerate(wanted)}
        work = replace(self._timed.pop(row), start_s=np.array([now_s]))
        return work if self._timeless else self._begun(work)

    def _begun(self, work: Work) -> Work:
        return interrupted(work, self._conditions.devices, self._history, self._conditions.seed)


def start_order(rows: Columns, seed: int) -> NDArray[np.int64]:
    """Return the rows of clients that started, in the order in which they did.

    Those that started at the same time from the same version did so in the order that the seed draws.
    """
    started = np.flatnonzero(np.isin(rows["fate"], ABSENT, invert=True))
    drawn = np.empty(len(rows["client"]))
    for round in np.unique(rows["started_round"][started]):
        here = started[rows["started_round"][started] == round]
        drawn[here] = seeding.uniform(seed, "start order", int(round), rows["client"][here])[0]
    start_s = rows["start_s"][started]
    lasts = start_s + rows["lasts_s"][started] > start_s  # who stops at once makes room at the same time
    keys = (-drawn[started], lasts, start_s, rows["started_round"][started])
    return started[np.lexsort(keys)]


def held_back(
    starts: Columns, rows: Columns, rules: ClockRules, round_starts_s: list[float]
) -> NDArray[np.bool_]:  # fmt: skip
    """Return which clients started later than a place was free, since nobody could be asked then, `(starts,)`.

    Args:
        starts: Rows of the clients that started, in their order.
        rows: All rows.
        rules: How many clients are at work at a time, and how many updates end a round.
        round_starts_s: Simulated time at which each round began.
    """
    ended = some(rows, np.isin(rows["fate"], (*ABSENT, UNFINISHED), invert=True))
    held, at_work, was_free = [np.zeros(0, np.bool_)], 0, False
    for round, began_s in enumerate(round_starts_s, start=1):
        here = ended["round"] == round
        ends_s = np.sort(ended["start_s"][here] + ended["lasts_s"][here])
        heard_s = np.maximum(np.concatenate([[began_s], ends_s]), began_s)
        start_s = starts["start_s"][starts["started_round"] == round]
        event = np.searchsorted(heard_s, start_s)  # 0 = the beginning of the round
        after = at_work + np.cumsum(np.bincount(event, minlength=len(heard_s))) - np.arange(len(heard_s))
        free = after < rules.concurrency
        held.append(np.concatenate([[was_free], free[:-1]])[event])
        full = (ended["fate"][here] == COUNTED).sum() >= rules.buffer_size
        at_work, was_free = int(after[-1]), bool(free[-2 if full else -1])  # who fills the buffer makes no room
    return np.concatenate(held)
