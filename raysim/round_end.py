"""When a round ends for a cohort that started together, and whose work counts."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from raysim.clock import ClockRules
from raysim.fates import COUNTED, LATE, SURPLUS
from raysim.work import Work, stopped


def wait_for_all(work: Work, rules: ClockRules, wanted: int) -> tuple[Work, float]:
    """End the round when everybody is done or has stopped."""
    return work, float(work.lasts_s.max())


def wait_until_deadline(work: Work, rules: ClockRules, wanted: int) -> tuple[Work, float]:
    """End the round at the deadline, or when everybody is done; what comes later is lost."""
    work = stopped(work, np.full(len(work), rules.deadline_s), LATE)
    return wait_for_all(work, rules, wanted)


def wait_for_first(work: Work, rules: ClockRules, wanted: int) -> tuple[Work, float]:
    """End the round when as many are done as are wanted; equal times count in the order of ids."""
    done = np.flatnonzero(work.fates == COUNTED)
    order = done[np.lexsort((work.cohort.clients[done], work.lasts_s[done]))]
    if len(order) < wanted:
        return wait_for_all(work, rules, wanted)
    round_s = float(work.lasts_s[order[wanted - 1]])
    others = stopped(work, np.full(len(work), round_s), SURPLUS)
    fates = others.fates.copy()
    fates[order[wanted:]] = SURPLUS  # those that end in the same moment, too
    return replace(others, fates=fates), round_s


ROUND_ENDS: dict[str, Callable[[Work, ClockRules, int], tuple[Work, float]]] = {
    "sync": wait_for_all,
    "deadline": wait_until_deadline,
    "over-selection": wait_for_first,
}
