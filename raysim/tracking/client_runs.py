"""Runs of single clients in MLflow: children of the run in which they take part, each with its own curves."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysim.clock import outcomes
from raysim.config.metric import ACCURACY
from raysim.core.errors import TrackingLostError
from raysim.core.tensors import Columns
from raysim.population.population import Population
from raysim.simulation.records import Point
from raysim.tracking.curves import POINTS_PER_CALL
from raysim.tracking.mlflow_writer import CLIENT, MlflowWriter

MOST = 200
"""The most clients that have their own run: the first by id."""


def curves_of(primary: str) -> tuple[str, ...]:
    """Return the columns of the clients' table that become curves, from the name of the primary metric."""
    return ("pruning_ratio", primary, "train_loss", "lasts_s")


def read_of(primary: str) -> tuple[str, ...]:
    """Return the columns of the clients' table that are read."""
    return ("client", "fate", *curves_of(primary))


CURVES, READ = curves_of(ACCURACY.name), read_of(ACCURACY.name)
EVERY_ROUND = "pruning_ratio"
"""A curve with a point in each round in which the client counted."""
COLLECT_S, SHARE = 30.0, 0.02
"""Minimum seconds between two uploads of all client runs, and the largest share of run time that uploads may take."""
ROUNDS_PER_CALL = POINTS_PER_CALL // len(CURVES)


@dataclass(frozen=True, slots=True)
class ClientRun:
    """A client that has its own run: the run's name and tags."""

    client: int
    name: str
    tags: Mapping[str, str]


def of_population(population: Population, tags: Mapping[str, str]) -> list[ClientRun]:
    """Return the runs of the first 200 clients.

    Args:
        population: All clients.
        tags: Tags that all runs of clients have.
    """
    clients, runs = np.arange(min(MOST, len(population))), []
    counts = population.train.counts_of(clients)
    for client in clients.tolist():
        tier = population.devices.tiers[population.devices.tier_of_device[population.devices.device_of[client]]]
        own = {CLIENT: str(client), "kind": "client", "tier": tier, "examples": str(counts[client])}
        runs.append(ClientRun(client, f"client {client:03d} ({tier})", {**tags, **own}))
    return runs


class ClientRuns:
    """Logs rounds to the runs of single clients, many rounds in one call."""

    def __init__(
        self,
        tracker: MlflowWriter,
        read: Callable[[int], tuple[int, Columns]],
        runs: Sequence[ClientRun],
        curves: Sequence[str] = CURVES,
    ) -> None:
        """Begin; how much MLflow has already is looked up when the first rounds are logged.

        Args:
            tracker: Writes their parent run.
            read: Returns the time at which a round ended, in milliseconds, and the columns of its clients.
            runs: The clients.
            curves: Columns of the clients' table that become curves.
        """
        self._tracker, self._read, self._runs, self._curves = tracker, read, runs, curves
        self._clients = np.array([run.client for run in runs])
        self._last_logged, self._due = 0, 0.0
        self.num_calls = 0
        """How many calls MLflow has accepted so far."""
        self._ids: dict[int, str] = {}
        self._steps: dict[int, int] = {}
        self._is_aborted = False

    @property
    def last_logged(self) -> int:
        """The last round that MLflow has, as far as has been looked up."""
        return self._last_logged

    def flush(self, last: int, hurry: bool) -> None:
        """Log some rounds, with one call for each client, unless the last upload was a short time ago."""
        if not hurry and time.monotonic() < self._due:
            return
        self._find_or_create()
        started, part = time.monotonic(), min(last, self._last_logged + ROUNDS_PER_CALL)
        for client, points in self._points(part).items():
            if self._is_aborted:
                return
            self._tracker.log(points, self._ids[client])
            self._steps[client] = points[-1].step
            self.num_calls += 1
        self._last_logged = part
        if part == last:
            now = time.monotonic()
            self._due = now + max(COLLECT_S, (now - started) / SHARE)

    def finish(self) -> None:
        """Mark all of them as finished."""
        self._find_or_create()
        self._end("FINISHED")

    def abort(self, status: str) -> None:
        """Mark those that exist as failed or killed, and create no more."""
        self._is_aborted = True
        with suppress(TrackingLostError):
            self._end(status)

    def _end(self, status: str) -> None:
        for run_id in list(self._ids.values()):  # another thread may be creating runs meanwhile
            self._tracker.end(status, run_id=run_id)
            self.num_calls += 1

    def _find_or_create(self) -> None:
        if len(self._ids) == len(self._runs):
            return
        found = self._tracker.clients()
        for run in self._runs:
            if run.client in self._ids:
                continue
            if self._is_aborted:
                return
            if run.client in found:
                self._steps[run.client] = self._tracker.last_step(found[run.client], EVERY_ROUND)
                self._ids[run.client] = found[run.client]
                self._tracker.reopen(found[run.client])
            else:
                self._ids[run.client] = self._tracker.child(run.name, run.tags)
            self.num_calls += 1

    def _points(self, last: int) -> dict[int, list[Point]]:
        """Return the points that MLflow does not have yet, by client."""
        points: dict[int, list[Point]] = defaultdict(list)
        for round in range(self._last_logged + 1, last + 1):
            for client, each in points_of(*self._read(round), round, self._clients, self._curves).items():
                if round > self._steps.get(client, 0):
                    points[client] += each
        return points


def points_of(
    timestamp_ms: int, table: Columns, round: int, clients: NDArray[np.int64], curves: Sequence[str] = CURVES
) -> dict[int, list[Point]]:
    """Return the points of the clients whose work counted in a round, without values that were not measured."""
    counted = (table["fate"] == outcomes.COUNTED) & np.isin(table["client"], clients)
    columns = {name: table[name][counted].astype(float).tolist() for name in curves}
    return {
        client: [
            Point(name, values[row], timestamp_ms, round)
            for name, values in columns.items()
            if values[row] == values[row]
        ]
        for row, client in enumerate(table["client"][counted].tolist())
    }
