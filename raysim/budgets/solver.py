"""Solve budgets: the widest submodel that meets a deadline and fits a device's memory and data cap."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.budgets.ladder import Ladder
from raysim.budgets.rules import Budgets
from raysim.clock.timing import seconds
from raysim.population.profiles import Devices
from raysim.population.sampling import link_drift

LIMITS = ("tier", "deadline", "memory", "data cap")
"""The limits of a budget; of two equal ones the first is named."""

TOLERANCE = 1e-9
"""Largest difference of two shares of channels that count as equal."""

RUNGS_AT_ONCE = 2**18
"""Rungs of all clients that are computed together: about 50 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class Needs:
    """The costs of a round on each rung of a ladder, arrays `(rungs, clients)`."""

    seconds: NDArray[np.float64]
    memory_bytes: NDArray[np.int64]
    data_bytes: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class BudgetSolver:
    """Finds the highest rung of a ladder that a client can afford.

    Attributes:
        ladder: Costs of each rung.
        deadline_s: Most predicted seconds of download, training and upload together; may be infinite.
        epochs: Passes over a client's rows in a round.
        batch_size: Rows of a batch.
    """

    ladder: Ladder
    deadline_s: float
    epochs: int
    batch_size: int

    def solve(
        self, devices: Devices, clients: NDArray[np.int64], examples: NDArray[np.int64], round: int, seed: int
    ) -> Budgets:
        """Return the widest submodel that meets the deadline and fits memory, data cap and `keep_ratio`.

        A device whose `keep_ratio` is below the lowest rung trains that share, if the rung fits.

        Args:
            devices: Devices of the clients.
            clients: Their ids, `(clients,)`.
            examples: Their training rows, `(clients,)`.
            round: Counted from 1.
            seed: Seed of the experiment.
        """
        keep_ratios, limits = np.empty(len(clients)), np.empty(len(clients), np.int64)
        for part in self._parts(len(clients)):
            own = devices.of(np.arange(len(clients))[part])
            needs = self.needs(own, clients[part], examples[part], round, seed)
            keep_ratios[part], limits[part] = highest_rungs(self.ladder, self._fits(own, needs), own.keep_ratio)
        return Budgets(keep_ratios, np.array([*LIMITS, "nothing"])[limits])

    def needs(
        self, devices: Devices, clients: NDArray[np.int64], examples: NDArray[np.int64], round: int, seed: int
    ) -> Needs:
        """Predict what a round needs on each rung, at nominal speeds and the measured drift of the links."""
        load = self.ladder.load(examples, self.epochs, self.batch_size)
        factors = np.stack([np.ones(len(clients)), *link_drift(devices, clients, round, seed)])
        return Needs(
            seconds(load, devices, factors).total_s,
            self.ladder.memory_bytes(examples, self.batch_size),
            np.broadcast_to(load.down_bytes + load.up_bytes, (len(self.ladder), len(clients))),
        )

    def least(
        self, devices: Devices, clients: NDArray[np.int64], examples: NDArray[np.int64], round: int, seed: int
    ) -> tuple[float, int, int]:
        """Return the least seconds, memory bytes and transferred bytes that any of some clients needs."""
        found = []
        for part in self._parts(len(clients)):
            own = devices.of(np.arange(len(clients))[part])
            needs = self.needs(own, clients[part], examples[part], round, seed)
            found.append((needs.seconds.min(), needs.memory_bytes.min(), needs.data_bytes.min()))
        times, memories, transfers = zip(*found, strict=True)
        return float(min(times)), int(min(memories)), int(min(transfers))

    def _parts(self, num_clients: int) -> Iterator[slice]:
        size = max(1, RUNGS_AT_ONCE // len(self.ladder))
        return (slice(start, start + size) for start in range(0, num_clients, size))

    def _fits(self, devices: Devices, needs: Needs) -> NDArray[np.bool_]:
        """Return whether each limit allows each rung to each client, `(limits, rungs, clients)`."""
        within_tier = self.ladder.keep_ratios[:, None] <= devices.keep_ratio + TOLERANCE
        within_tier[0] = True
        return np.stack(
            [
                within_tier,
                needs.seconds <= self.deadline_s,
                needs.memory_bytes <= devices.column("memory_bytes"),
                needs.data_bytes <= devices.column("data_cap_bytes"),
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """Return the solver as values for JSON."""
        return {
            "ladder": self.ladder.to_json(),
            "deadline_s": None if self.deadline_s == inf else self.deadline_s,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
        }

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "BudgetSolver":
        """Return the solver that `to_json` wrote."""
        deadline_s = inf if content["deadline_s"] is None else content["deadline_s"]
        return BudgetSolver(Ladder.from_json(content["ladder"]), deadline_s, content["epochs"], content["batch_size"])


def highest_rungs(
    ladder: Ladder, fits: NDArray[np.bool_], most: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return each client's highest rung that all limits allow, and the limit that forbids the next one.

    Args:
        ladder: The rungs.
        fits: Whether each limit allows each rung to each client, `(limits, rungs, clients)`.
        most: Share of channels each client trains at most, `(clients,)`.

    Returns:
        Keep ratios `(clients,)`, 0 where not even the lowest rung fits; and indices into `LIMITS` `(clients,)`, its
        length where nothing limits. Of several limits that forbid the next rung it is the one that alone would
        end lowest.
    """
    rung = _last(np.logical_and.reduce(fits))
    top = len(ladder) - 1
    forbids = ~np.take_along_axis(fits, np.minimum(rung + 1, top)[None, None], axis=1)[:, 0]
    limits = np.where(forbids, np.stack([_last(limit) for limit in fits]), len(ladder)).argmin(axis=0)
    keep_ratios = np.where(rung < 0, 0.0, ladder.keep_ratios[rung])
    narrower = most < keep_ratios - TOLERANCE
    limits = np.where(rung == top, np.where(narrower, LIMITS.index("tier"), len(LIMITS)), limits)
    return np.where(narrower, most, keep_ratios), limits


def _last(fits: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the last rung that fits each client, -1 if none does; from `(rungs, clients)`."""
    last = len(fits) - 1 - fits[::-1].argmax(axis=0)
    return np.where(fits.any(axis=0), last, -1)
