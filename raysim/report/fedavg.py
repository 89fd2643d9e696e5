"""Estimate the cost of FedAvg: the same clients in the same rounds, each training the full model."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from raysim.clock import outcomes
from raysim.clock.modes import MODES
from raysim.clock.timing import CohortLoad, schedule
from raysim.core.tensors import Columns
from raysim.population.profiles import Devices
from raysim.report.clients import where
from raysim.tracking.run_reader import RunReader

NEEDED = ("examples", "planned_steps", "planned_epochs", "energy_j")


def _full_model(run: RunReader) -> Mapping[str, Any]:
    """Return the costs of the full model; empty if they were not recorded."""
    found: Mapping[str, Any] = run.summary.get("full_model") or run.metadata.get("full_model") or {}
    return found


class FedAvg:
    """Adds up the seconds and joules of dense clients, round by round.

    The clients that counted train the full model for the epochs of the settings, on their own devices and links, and
    the server waits for the last of them. Clients that did not count spend what they spent. Batteries are ignored.
    """

    def __init__(self, run: RunReader, devices: Devices) -> None:
        settings = run.settings
        self._devices, self._model = devices, _full_model(run)
        self._seed, self._epochs, self._server_s = settings.seed, settings.training.epochs, settings.clock.server_s
        self._round_s = dict(zip(run.rounds["round"].tolist(), run.rounds["round_s"].tolist(), strict=True))
        self.simulated_s, self.energy_j = 0.0, 0.0

    @staticmethod
    def of(run: RunReader, rows: Columns) -> "FedAvg | None":
        """Return an estimate of no rounds yet; None if the records lack something, or the run is asynchronous.

        Args:
            run: The run.
            rows: The rows of any round.
        """
        starts_together = MODES[run.settings.clock.mode].starts_together
        if not starts_together or run.devices is None or not _full_model(run) or not set(NEEDED) <= set(rows):
            return None
        return FedAvg(run, run.devices)

    def add(self, rows: Columns) -> None:
        """Add the rows of a round."""
        round, counted = int(rows["round"][0]), where(rows, "fate", [outcomes.COUNTED])
        self.energy_j += float(rows["energy_j"][~counted].sum())
        if not counted.any():
            self.simulated_s += self._round_s[round]
            return
        clients = rows["client"][counted]
        devices, load = self._devices.of(clients), self._load({name: rows[name][counted] for name in NEEDED})
        timing = schedule(load, devices, clients, round, self._seed)
        round_s = float(timing.total_s.max())
        self.simulated_s += round_s + self._server_s
        training_j = devices.column("train_watts") * timing.compute_s
        radio_j = devices.column("radio_j_per_byte") * (load.down_bytes + load.up_bytes)
        idle_j = devices.column("idle_watts") * (round_s - timing.total_s)
        self.energy_j += float((training_j + radio_j + idle_j).sum())

    def _load(self, rows: Columns) -> CohortLoad:
        model = self._model
        examples = rows["examples"] * self._epochs
        model_bytes = np.full(len(examples), int(model["model_bytes"]))
        return CohortLoad(
            down_bytes=model_bytes,
            up_bytes=model_bytes,
            train_flops=int(model["train_flops"]) * examples,
            activation_bytes=int(model["activation_bytes"]) * examples,
            steps=rows["planned_steps"] // np.maximum(rows["planned_epochs"], 1) * self._epochs,
        )
