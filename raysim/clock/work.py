"""Clients at work: which submodels they train, from when until when, and the outcome."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.clock.outcomes import COUNTED, OUTCOME_DTYPE, UNFINISHED
from raysim.clock.timing import CohortLoad, CohortTiming
from raysim.core.tensors import Params
from raysim.pruning.masks import CohortMasks


@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """The clients that take part in a round, in ascending order of ids; arrays `(cohort,)`.

    Attributes:
        round: Round they start in, counted from 1; preparation has 0 and below.
        clients: Their ids.
        budgets: Share of channels the method's budget rule gives each.
        keep_ratios: Share of channels each trains in this round.
        limited_by: The limit of each budget.
        examples: Training rows of each.
        epochs: Passes of each over its rows.
    """

    round: int
    clients: NDArray[np.int64]
    budgets: NDArray[np.float64]
    keep_ratios: NDArray[np.float64]
    limited_by: NDArray[np.str_]
    examples: NDArray[np.int64]
    epochs: NDArray[np.int64]

    def take(self, indices: NDArray[np.generic]) -> "Cohort":
        """Return some clients of the cohort, by indices or by a boolean for each."""
        columns = {each.name: getattr(self, each.name)[indices] for each in fields(self) if each.name != "round"}
        return replace(self, **columns)


def joined_cohorts(cohorts: Sequence[Cohort], round: int) -> Cohort:
    """Return several cohorts as one."""
    names = [each.name for each in fields(Cohort) if each.name != "round"]
    columns = {name: np.concatenate([getattr(cohort, name) for cohort in cohorts]) for name in names}
    return Cohort(round, **columns).take(np.argsort(columns["clients"]))


@dataclass(frozen=True, slots=True, eq=False)
class Absent:
    """Clients that were selected and do not start, arrays `(absent,)`: ids, when each was selected, and why."""

    clients: NDArray[np.int64]
    selected_s: NDArray[np.float64]
    outcomes: NDArray[np.str_]
    limited_by: NDArray[np.str_]

    @staticmethod
    def nobody() -> "Absent":
        """Return a record without clients."""
        return Absent(np.empty(0, np.int64), np.empty(0), np.empty(0, OUTCOME_DTYPE), np.empty(0, np.str_))


def all_absent(absent: Sequence[Absent]) -> Absent:
    """Return several records as one, in ascending order of ids."""
    columns = [np.concatenate([getattr(each, name) for each in absent]) for name in Absent.__slots__]
    order = np.argsort(columns[0])
    return Absent(*(column[order] for column in columns))


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """The work of clients that started from one version of the global model; arrays `(clients,)`.

    Attributes:
        cohort: The clients; its round is the one they started in.
        masks: The submodel that each downloads.
        load: Bytes and FLOPs of the whole work.
        timing: Seconds of the whole work.
        start_s: Simulated time at which each starts.
        duration_s: Seconds until each is done or stops.
        outcomes: Outcome of the work of each, one of `OUTCOMES`.
    """

    cohort: Cohort
    masks: CohortMasks
    load: CohortLoad
    timing: CohortTiming
    start_s: NDArray[np.float64]
    duration_s: NDArray[np.float64]
    outcomes: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.start_s)

    def take(self, indices: NDArray[np.int64]) -> "Work":
        """Return the work of some of the clients."""
        return Work(
            self.cohort.take(indices),
            self.masks.take(indices),
            self.load.take(indices),
            CohortTiming(*(getattr(self.timing, name)[indices] for name in CohortTiming.__slots__)),
            self.start_s[indices],
            self.duration_s[indices],
            self.outcomes[indices],
        )

    @property
    def counted(self) -> "Work":
        """The work that counts."""
        return self.take(np.flatnonzero(self.outcomes == COUNTED))

    @property
    def end_s(self) -> NDArray[np.float64]:
        """Simulated time at which each is done or stops, `(clients,)`."""
        return self.start_s + self.duration_s

    @property
    def completed_shares(self) -> CohortTiming:
        """Shares of download, training and upload that each client has completed when it stops, in [0, 1]."""
        timing, done = self.timing, self.duration_s >= self.timing.total_s
        left, shares = self.duration_s, []
        for phase_s in (timing.download_s, timing.compute_s, timing.upload_s):
            share = np.where(phase_s > 0, np.clip(left / np.where(phase_s > 0, phase_s, 1.0), 0, 1), left >= 0)
            shares.append(np.where(done, 1.0, share))
            left = left - phase_s
        return CohortTiming(*shares)

    @property
    def spent(self) -> CohortLoad:
        """Bytes and FLOPs that each client has spent when it stops."""
        shares, load = self.completed_shares, self.load
        return CohortLoad(
            down_bytes=completed_share(load.down_bytes, shares.download_s),
            up_bytes=completed_share(load.up_bytes, shares.upload_s),
            train_flops=completed_share(load.train_flops, shares.compute_s),
            activation_bytes=completed_share(load.activation_bytes, shares.compute_s),
            steps=completed_share(load.steps, shares.compute_s),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The plan of a round: all that is known of it before anybody trains.

    Attributes:
        ended: Work that ends in the round, one entry for each version of the model that clients started from, oldest
            first.
        absent: Clients that were selected and do not start.
        in_flight: Work that continues after the round (asynchronous rounds).
        round_s: Simulated seconds of the round.
        memory: Memory of the method, with its ranking renewed.
    """

    ended: tuple[Work, ...]
    absent: Absent
    in_flight: tuple[Work, ...]
    round_s: float
    memory: Params

    @property
    def counted(self) -> tuple[Work, ...]:
        """The work that counts, one entry for each version of the model that clients started from."""
        return tuple(work for work in (each.counted for each in self.ended) if len(work))


def completed_share(whole: NDArray[np.int64], share: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return a share of a count, rounded down; a share of 1 is exact."""
    return np.where(share == 1, whole, np.floor(whole * share).astype(np.int64))


def stopped(work: Work, after_s: NDArray[np.float64], outcome: str) -> Work:
    """Return the work, stopped after some seconds with another outcome where it would have taken longer."""
    earlier = after_s < work.duration_s
    return replace(
        work,
        duration_s=np.where(earlier, after_s, work.duration_s),
        outcomes=np.where(earlier, outcome, work.outcomes),
    )


def unfinished(work: Work, now_s: float) -> Work:
    """Return work abandoned at a simulated time; clients that have stopped by then keep their outcome."""
    elapsed_s = np.maximum(now_s - work.start_s, 0)
    has_stopped = (work.duration_s <= elapsed_s) & (work.outcomes != COUNTED)
    outcomes = np.where(has_stopped, work.outcomes, UNFINISHED)
    return replace(work, duration_s=np.minimum(work.duration_s, elapsed_s), outcomes=outcomes)


def joined_work(works: Sequence[Work]) -> Work:
    """Return work of one version as one record, in ascending order of ids."""
    order = np.argsort(np.concatenate([work.cohort.clients for work in works]))
    return Work(
        joined_cohorts([work.cohort for work in works], works[0].cohort.round),
        CohortMasks.joined([work.masks for work in works]).take(order),
        CohortLoad(*_columns([work.load for work in works], CohortLoad.__slots__, order)),
        CohortTiming(*_columns([work.timing for work in works], CohortTiming.__slots__, order)),
        *_columns(works, ("start_s", "duration_s", "outcomes"), order),
    )


def by_version(works: Sequence[Work]) -> tuple[Work, ...]:
    """Return one record of work for each version of the model, oldest first."""
    rounds = sorted({work.cohort.round for work in works})
    return tuple(joined_work([work for work in works if work.cohort.round == round]) for round in rounds)


def _columns(records: Sequence[object], names: Sequence[str], order: NDArray[np.int64]) -> list[NDArray[Any]]:
    return [np.concatenate([getattr(record, name) for record in records])[order] for name in names]
