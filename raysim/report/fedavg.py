"""What FedAvg would have taken in a run's place: the same clients in the same rounds, training the full model."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from raysim.clock.modes import MODES
from raysim.clock.outcomes import COUNTED
from raysim.clock.timing import CohortLoad, schedule
from raysim.core.tensors import Columns
from raysim.population.profiles import Devices
from raysim.report.clients import where
from raysim.report.source import Recorded

NEEDED = ("examples", "planned_steps", "planned_epochs", "energy_j")


def _full_model(recorded: Recorded) -> Mapping[str, Any]:
    """Return what the full model costs; empty where that is not known."""
    told: Mapping[str, Any] = recorded.summary.get("full_model") or recorded.noted.get("full_model") or {}
    return told


class FedAvg:
    """Sums up the seconds and joules of dense clients, round by round.

    All whose work counted train the full model for as many epochs as are set, on the devices and links they had, and
    the server waits for the last of them; whose work did not count spends what it spent. Batteries are not looked at.
    """

    def __init__(self, recorded: Recorded, devices: Devices) -> None:
        self._devices, self._model = devices, _full_model(recorded)
        self._seed, self._epochs = int(recorded.settings["seed"]), int(recorded.settings["training"]["epochs"])
        self._server_s = float(recorded.settings["clock"].get("server_s") or 0.0)
        self._round_s = dict(zip(recorded.rounds["round"].tolist(), recorded.rounds["round_s"].tolist(), strict=True))
        self.simulated_s, self.energy_j = 0.0, 0.0

    @staticmethod
    def of(recorded: Recorded, rows: Columns) -> "FedAvg | None":
        """Return one to begin with; none where records do not tell enough, or the run is asynchronous.

        Args:
            recorded: The run.
            rows: Some round's rows.
        """
        starts_together = MODES[recorded.settings["clock"]["mode"]].starts_together
        if (
            not starts_together
            or recorded.devices is None
            or not _full_model(recorded)
            or not set(NEEDED) <= set(rows)
        ):
            return None
        return FedAvg(recorded, recorded.devices)

    def add(self, rows: Columns) -> None:
        """Add the rows of a round."""
        round, counted = int(rows["round"][0]), where(rows, "fate", [COUNTED])
        self.energy_j += float(rows["energy_j"][~counted].sum())
        if not counted.any():
            self.simulated_s += self._round_s[round]
            return
        clients = rows["client"][counted]
        devices, load = self._devices.of(clients), self._load({name: rows[name][counted] for name in NEEDED})
        timing = schedule(load, devices, clients, round, self._seed)
        round_s = float(timing.total_s.max())
        self.simulated_s += round_s + self._server_s
        self.energy_j += float((
            devices.column("train_watts") * timing.compute_s
            + devices.column("radio_j_per_byte") * (load.down_bytes + load.up_bytes)
            + devices.column("idle_watts") * (round_s - timing.total_s)
        ).sum())  # fmt: skip

    def _load(self, rows: Columns) -> CohortLoad:
        model = self._model
        seen = rows["examples"] * self._epochs
        travels = np.full(len(seen), int(model["model_bytes"]))
        return CohortLoad(
            down_bytes=travels,
            up_bytes=travels,
            train_flops=int(model["train_flops"]) * seen,
            activation_bytes=int(model["activation_bytes"]) * seen,
            steps=rows["planned_steps"] // np.maximum(rows["planned_epochs"], 1) * self._epochs,
        )
