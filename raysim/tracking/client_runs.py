"""Runs of single clients in MLflow, below the run they took part in: each with its own curves."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysim.clock.outcomes import COUNTED
from raysim.core.errors import TrackingLostError
from raysim.core.tensors import Columns
from raysim.population.population import Population
from raysim.simulation.records import Point
from raysim.tracking.curves import POINTS_PER_CALL
from raysim.tracking.mlflow_writer import CLIENT, MlflowTracker

MOST = 200
"""Most clients that have a run of their own: the first by id."""
CURVES = ("pruning_ratio", "accuracy", "train_loss", "lasts_s")
"""Columns of the clients' table that are curves."""
EVERY_ROUND = "pruning_ratio"
"""One that no round lacks in which a client's work counted."""
READ = ("client", "fate", *CURVES)
"""Columns of the clients' table that are read."""
COLLECT_S, SHARE = 30.0, 0.02
"""Seconds from one time that all are told, each by one call, to the next, and the share of a run's time that telling
them may take: where it takes longer than that, it is done less often."""
ROUNDS_PER_CALL = POINTS_PER_CALL // len(CURVES)


@dataclass(frozen=True, slots=True)
class ClientRun:
    """A client that has a run of its own: the run's name and tags."""

    client: int
    name: str
    tags: Mapping[str, str]


def of_population(population: Population, tags: Mapping[str, str]) -> list[ClientRun]:
    """Return the runs of the first 200 clients.

    Args:
        population: All clients.
        tags: What all runs of clients are tagged with.
    """
    clients, runs = np.arange(min(MOST, len(population))), []
    counts = population.train.counts_of(clients)
    for client in clients.tolist():
        tier = population.devices.tiers[population.devices.tier_of_device[population.devices.device_of[client]]]
        own = {CLIENT: str(client), "kind": "client", "tier": tier, "examples": str(counts[client])}
        runs.append(ClientRun(client, f"client {client:03d} ({tier})", {**tags, **own}))
    return runs


class ClientRuns:
    """Tells the runs of single clients of rounds, many rounds by one call."""

    def __init__(
        self, tracker: MlflowTracker, read: Callable[[int], tuple[int, Columns]], runs: Sequence[ClientRun]
    ) -> None:
        """Begin; what MLflow knows already is found out when the first rounds are told.

        Args:
            tracker: Writes the run they belong to.
            read: Returns when a round ended, in milliseconds, and the columns `READ` of its table of clients.
            runs: Which clients.
        """
        self._tracker, self._read, self._runs = tracker, read, runs
        self._clients = np.array([run.client for run in runs])
        self._told, self._due = 0, 0.0
        self.taken = 0
        """How many calls MLflow has taken so far."""
        self._ids: dict[int, str] = {}
        self._steps: dict[int, int] = {}
        self._has_left = False

    @property
    def told(self) -> int:
        """The last round that MLflow knows, as far as has been found out."""
        return self._told

    def tell(self, last: int, hurry: bool) -> None:
        """Tell each client's run of some rounds by one call, unless all have just been told."""
        if not hurry and time.monotonic() < self._due:
            return
        self._find_or_create()
        started, part = time.monotonic(), min(last, self._told + ROUNDS_PER_CALL)
        for client, points in self._points(part).items():
            if self._has_left:
                return
            self._tracker.log(points, self._ids[client])
            self._steps[client] = points[-1].step
            self.taken += 1
        self._told = part
        if part == last:
            now = time.monotonic()
            self._due = now + max(COLLECT_S, (now - started) / SHARE)

    def finish(self) -> None:
        """Mark all of them as finished."""
        self._find_or_create()
        self._end("FINISHED")

    def leave(self, status: str) -> None:
        """Mark those that are there as failed or killed."""
        self._has_left = True
        with suppress(TrackingLostError):
            self._end(status)

    def _end(self, status: str) -> None:
        for run_id in list(self._ids.values()):  # another thread may still be in the middle of making some
            self._tracker.end(status, run_id=run_id)
            self.taken += 1

    def _find_or_create(self) -> None:
        if len(self._ids) == len(self._runs):
            return
        there = self._tracker.clients()
        for run in self._runs:
            if run.client in self._ids:
                continue
            if self._has_left:
                return
            if run.client in there:
                self._steps[run.client] = self._tracker.last_step(there[run.client], EVERY_ROUND)
                self._ids[run.client] = there[run.client]
                self._tracker.reopen(there[run.client])
            else:
                self._ids[run.client] = self._tracker.child(run.name, run.tags)
            self.taken += 1

    def _points(self, last: int) -> dict[int, list[Point]]:
        """Return the points that MLflow does not know yet, by client."""
        points: dict[int, list[Point]] = defaultdict(list)
        for round in range(self._told + 1, last + 1):
            for client, each in points_of(*self._read(round), round, self._clients).items():
                if round > self._steps.get(client, 0):
                    points[client] += each
        return points


def points_of(
    timestamp_ms: int, table: Columns, round: int, clients: NDArray[np.int64]
) -> dict[int, list[Point]]:  # fmt: skip
    """Return the points of those clients whose work counted in a round; what was not measured is left out."""
    counted = (table["fate"] == COUNTED) & np.isin(table["client"], clients)
    columns = {name: table[name][counted].astype(float).tolist() for name in CURVES}
    return {
        client: [
            Point(name, values[place], timestamp_ms, round)
            for name, values in columns.items()
            if values[place] == values[place]
        ]
        for place, client in enumerate(table["client"][counted].tolist())
    }
