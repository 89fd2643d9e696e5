"""Fit the clock's three constants to measured training steps; held-out widths only test the fit."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from scipy.optimize import nnls

from raysim.models.cost import ModelCost


@dataclass(frozen=True, slots=True)
class StepLoad:
    """The load of one training step of a submodel: the clock's terms, for all rows of the batch."""

    keep_ratio: float
    parameters: int
    train_flops: int
    activation_bytes: int

    @staticmethod
    def of(cost: ModelCost, keep_ratio: float, batch_size: int) -> "StepLoad":
        """Return the load of a step over `batch_size` rows."""
        flops, activations = batch_size * cost.train_flops, batch_size * cost.activation_bytes
        return StepLoad(keep_ratio, cost.parameters, flops, activations)


@dataclass(frozen=True, slots=True)
class Measurement:
    """Measured training steps of a submodel: seconds per step of each repeat."""

    load: StepLoad
    held_out: bool
    repeats_s: tuple[float, ...]

    @property
    def step_s(self) -> float:
        """Seconds of one step in the fastest repeat: other processes can only add to them."""
        return min(self.repeats_s)

    @property
    def spread(self) -> float:
        """Relative difference between the median repeat and the fastest one."""
        return statistics.median(self.repeats_s) / self.step_s - 1


@dataclass(frozen=True, slots=True)
class Constants:
    """The three constants of a device profile on which its training seconds depend; infinite: not charged."""

    step_overhead_s: float
    flops_per_s: float
    memory_bytes_per_s: float

    def step_s(self, load: StepLoad) -> float:
        """Return the seconds of one training step as the simulated clock counts them."""
        computing = load.train_flops / self.flops_per_s
        return self.step_overhead_s + computing + load.activation_bytes / self.memory_bytes_per_s

    def error(self, measured: Measurement) -> float:
        """Return the relative error of the prediction; negative: too fast."""
        return self.step_s(measured.load) / measured.step_s - 1


def fit(measurements: Sequence[Measurement]) -> Constants:
    """Find the constants with the least squared relative error over the fitted widths.

    No constant is negative: a term that does not explain the seconds is left out.
    """
    fitted = [measured for measured in measurements if not measured.held_out]
    loads = [(1, measured.load.train_flops, measured.load.activation_bytes) for measured in fitted]
    terms, seconds = np.array(loads, dtype=np.float64), np.array([measured.step_s for measured in fitted])
    scale = np.maximum(terms.max(axis=0), 1.0)  # FLOPs and bytes differ by orders of magnitude
    weights, _ = nnls(terms / scale / seconds[:, None], np.ones(len(fitted)))
    overhead_s, s_per_flop, s_per_byte = (weights / scale).tolist()
    return Constants(overhead_s, _speed(s_per_flop), _speed(s_per_byte))


def _speed(seconds_per_unit: float) -> float:
    return 1 / seconds_per_unit if seconds_per_unit > 0 else inf


@dataclass(frozen=True, slots=True)
class Calibration:
    """A model's measured training steps, and the constants fitted to them.

    Attributes:
        model: Name of the model.
        input_shape: Channels, height, width.
        num_classes: Number of classes.
        batch_size: Rows of a step; the constants hold for this size only.
        measurements: From the widest submodel to the narrowest.
        constants: Fitted to the measurements that are not held out.
        curve: Loads of widths in between, for a figure.
    """

    model: str
    input_shape: tuple[int, ...]
    num_classes: int
    batch_size: int
    measurements: tuple[Measurement, ...]
    constants: Constants
    curve: tuple[StepLoad, ...] = ()

    @property
    def held_out(self) -> dict[float, float]:
        """Relative error of each width that was not fitted, by keep ratio."""
        tested = [measured for measured in self.measurements if measured.held_out]
        return {measured.load.keep_ratio: self.constants.error(measured) for measured in tested}

    @property
    def largest_error(self) -> float:
        """Largest absolute relative error of a held-out width."""
        return max(map(abs, self.held_out.values()))

    @property
    def median_error(self) -> float:
        """Median absolute relative error of the held-out widths."""
        return statistics.median(map(abs, self.held_out.values()))

    @property
    def spread(self) -> float:
        """Relative difference between the median repeat and the fastest one: median over widths."""
        return statistics.median(measured.spread for measured in self.measurements)
