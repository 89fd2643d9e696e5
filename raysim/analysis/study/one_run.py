"""Execute one run of a comparison, from scenario to outcome, in any process."""

import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from raysim.core import tensors
from raysim.core.errors import RunFailedError
from raysim.core.tensors import Columns
from raysim.executors.in_process import InProcessRunner
from raysim.experiment.start import data_digests
from raysim.population.profiles import Devices
from raysim.simulation import metrics
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import RoundReport, Storage


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """The outcome of a run, or of the rounds before it failed.

    Attributes:
        digests: Hashes of the data, of the partition with its devices, and of the test rows.
        started_ms: When it began, in milliseconds since 1970.
        wall_s: Measured seconds.
        reports: One per round.
        params: The final model as it is served; None if the run failed.
        params_sha256: The hash of the final parameters; empty if the run failed.
        failure: Why it stopped before its last round; empty if it did not.
        details: The traceback of an unexpected failure.
        unlogged: Metrics of its rounds that are not logged to MLflow.
        full_model: The costs of the full model, by name.
        devices: The devices of all clients; None if its process was lost.
        num_classes: The classes of its data; None if its process was lost.
    """

    digests: dict[str, str]
    started_ms: int
    wall_s: float = 0.0
    reports: tuple[RoundReport, ...] = ()
    params: Columns | None = None
    params_sha256: str = ""
    failure: str = ""
    details: str = ""
    unlogged: frozenset[str] = frozenset()
    full_model: Mapping[str, Any] = field(default_factory=dict)
    devices: Devices | None = None
    num_classes: int | None = None

    @property
    def scores(self) -> list[float]:
        """The primary metric on test rows at each evaluation of the global model."""
        return [report.score.primary for report in self.reports if report.score is not None]


def run_one(scenario: Scenario, device: str = "cpu") -> Outcome:
    """Run a scenario in this process; a failure is part of the outcome, not an exception.

    Args:
        scenario: The run.
        device: PyTorch's name of the device that trains clients.
    """
    devices = scenario.workload.population.devices
    found: dict[str, Any] = {
        "started_ms": int(time.time() * 1000),
        "digests": digests_of(scenario),
        "devices": devices,
        "unlogged": metrics.left_out_of(scenario),
        "full_model": asdict(scenario.costs.dense),
        "num_classes": scenario.workload.data.num_classes,
    }
    reports: list[RoundReport] = []
    started = time.monotonic()
    try:
        found |= _execute(scenario, device, reports)
    except RunFailedError as error:
        found |= {"failure": str(error), "details": error.details}
    except Exception as error:
        found |= {"failure": f"{type(error).__name__}: {error}", "details": traceback.format_exc()}
    return Outcome(wall_s=time.monotonic() - started, reports=tuple(reports), **found)


def _execute(scenario: Scenario, device: str, reports: list[RoundReport]) -> dict[str, Any]:
    runner = InProcessRunner(device)
    with tempfile.TemporaryDirectory() as folder:  # runs of a comparison are not resumed
        for report in runner.run(scenario, Storage(Path(folder), every=scenario.rounds, keep=1)):
            reports.append(report)
        final = runner.final_state()
    return {"params": tensors.as_arrays(final.served_params), "params_sha256": tensors.digest(final.params)}


def check_split(name: str, outcome: Outcome, digests: Mapping[str, str]) -> None:
    """Raise RuntimeError if a run has another split than the others."""
    if outcome.digests != digests:
        raise RuntimeError(f"{name}: its split is {outcome.digests}, not {dict(digests)}")


def digests_of(scenario: Scenario) -> dict[str, str]:
    """Return the hashes of data, partition and test rows, which all runs of a comparison share."""
    return {
        **data_digests(scenario),
        "test_rows": tensors.digest(tensors.as_tensors({"rows": np.ascontiguousarray(scenario.test_rows)})),
    }
