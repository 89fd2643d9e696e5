"""Start asynchronous clients in their recorded order: which client is next, and which may not start yet."""

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from raysim.analysis.replay.work import Conditions, rows_of, work_of
from raysim.clock import outcomes
from raysim.clock.interruptions import availability_varies, interrupted
from raysim.clock.modes import ClockRules, EventQueue
from raysim.clock.work import Work
from raysim.core import seeding
from raysim.core.tensors import Columns

BATCH = 64
"""Clients timed at once, since timing one takes as long as timing all of them."""


class AsyncStarts:
    """Starts the recorded clients in their order, each as soon as fewer than `concurrency` are at work.

    A client that is still at work, or has started from this model version, is skipped until later. If the run had
    room but no client could be selected, there is room in the replay at least until that point of the run.
    """

    def __init__(self, conditions: Conditions, rows: Columns, round_starts_s: list[float]) -> None:
        """Sort the recorded starts.

        Args:
            conditions: The devices and rules of the replay.
            rows: The run's table of clients.
            round_starts_s: The simulated time at which each recorded round began.
        """
        self._conditions, self._rows = conditions, rows
        order = start_order(rows, conditions.seed)
        held = held_back(rows_of(rows, order), rows, conditions.rules, round_starts_s)
        self._pending: deque[tuple[int, bool]] = deque(zip(order.tolist(), held.tolist(), strict=True))
        self._timeless = not availability_varies(conditions.devices)
        self.row_of: dict[int, int] = {}
        self.ran_out = False

    def begin(self, round: int, history: Mapping[str, NDArray[np.float64]], in_flight: tuple[Work, ...]) -> None:
        """Continue with the next version of the model."""
        self._round, self._history, self.ran_out = round, history, False
        self._started = {int(client) for work in in_flight for client in work.cohort.clients}
        self._timed: dict[int, Work] = {}

    def fill(self, queue: EventQueue, now_s: float) -> None:
        """Start clients now, as long as there is room and a client may start."""
        while len(queue) < self._conditions.rules.concurrency:
            index = self._next(now_s)
            if index is None:
                self.ran_out |= not self._pending
                return
            row = self._pending[index][0]
            work = self._work(row, now_s)
            del self._pending[index]
            client = int(self._rows["client"][row])
            self._started.add(client)
            self.row_of[client] = row
            queue.add(work)

    def _next(self, now_s: float) -> int | None:
        """Return the index of the next pending client; None if none may start now."""
        rows = self._rows
        for index, (row, held) in enumerate(self._pending):
            due = (int(rows["started_round"][row]), float(rows["start_s"][row]))
            if held and (self._round, now_s) < due:
                return None
            if int(rows["client"][row]) not in self._started:
                return index
        return None

    def _work(self, row: int, now_s: float) -> Work:
        if row not in self._timed:
            wanted = np.unique([row, *(each for each, _ in islice(self._pending, BATCH))])
            works = work_of(self._conditions, rows_of(self._rows, wanted), self._round, now_s)
            if self._timeless:
                works = self._begun(works)
            self._timed |= {int(each): works.take(np.array([index])) for index, each in enumerate(wanted)}
        work = replace(self._timed.pop(row), start_s=np.array([now_s]))
        return work if self._timeless else self._begun(work)

    def _begun(self, work: Work) -> Work:
        return interrupted(work, self._conditions.devices, self._history, self._conditions.seed)


def start_order(rows: Columns, seed: int) -> NDArray[np.int64]:
    """Return the indices of the rows of clients that started, in the order in which they did, `(starts,)`.

    Clients that started at the same time from the same version did so in the order that the seed draws.
    """
    started = np.flatnonzero(np.isin(rows["fate"], outcomes.ABSENT, invert=True))
    drawn = np.empty(len(rows["client"]))
    for round in np.unique(rows["started_round"][started]):
        here = started[rows["started_round"][started] == round]
        drawn[here] = seeding.uniform(seed, "start order", int(round), rows["client"][here])[0]
    start_s = rows["start_s"][started]
    lasts = start_s + rows["lasts_s"][started] > start_s  # a client that stops at once makes room at the same time
    keys = (-drawn[started], lasts, start_s, rows["started_round"][started])
    return started[np.lexsort(keys)]


def held_back(starts: Columns, rows: Columns, rules: ClockRules, round_starts_s: list[float]) -> NDArray[np.bool_]:
    """Return which clients started later than there was room, since no client could be selected then, `(starts,)`.

    Args:
        starts: The rows of clients that started, in their order.
        rows: All rows.
        rules: How many clients are at work at a time, and how many updates end a round.
        round_starts_s: The simulated time at which each round began.
    """
    ended = rows_of(rows, np.isin(rows["fate"], (*outcomes.ABSENT, outcomes.UNFINISHED), invert=True))
    held, at_work, was_free = [np.zeros(0, np.bool_)], 0, False
    for round, began_s in enumerate(round_starts_s, start=1):
        here = ended["round"] == round
        ends_s = np.sort(ended["start_s"][here] + ended["lasts_s"][here])
        heard_s = np.maximum(np.concatenate([[began_s], ends_s]), began_s)
        start_s = starts["start_s"][starts["started_round"] == round]
        event = np.searchsorted(heard_s, start_s)  # 0: the beginning of the round
        after = at_work + np.cumsum(np.bincount(event, minlength=len(heard_s))) - np.arange(len(heard_s))
        free = after < rules.concurrency
        held.append(np.concatenate([[was_free], free[:-1]])[event])
        full = (ended["fate"][here] == outcomes.COUNTED).sum() >= rules.buffer_size
        at_work, was_free = (
            int(after[-1]),
            bool(free[-2 if full else -1]),
        )  # the update that fills the buffer makes no room
    return np.concatenate(held)
