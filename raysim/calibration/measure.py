"""Measure the seconds of a training step on this machine, over the widths of a model."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from raysim.calibration.fit import Calibration, Measurement, StepLoad, fit
from raysim.client.training import LocalTraining, train
from raysim.core import seeding
from raysim.core.errors import SettingError
from raysim.core.tensors import one_thread
from raysim.models import zoo
from raysim.pruning import masks, submodel
from raysim.pruning.costs import CostTable
from raysim.pruning.masks import Mask
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.significance import first_channels
from raysim.task.table import TASKS

SEED = 0
FITTED = (1.0, 0.8, 0.6, 0.5, 0.4, 0.25, 0.2, 0.125)
"""Keep ratios to which the constants are fitted.

Channels are computed in blocks of 8 or 16, and a partial block costs as much as a full one. Halvings give full blocks
in most models, and constants that were fitted to halvings alone would be too fast for all other widths.
"""
HELD_OUT = (0.875, 0.7, 0.625, 0.375, 0.3, 0.1875)
"""Keep ratios that only test the fit, with full and with partial blocks."""
CURVE_POINTS = 57
REPEAT_S = 0.1
"""Seconds of one repeat: long against the timer's resolution, short enough to fall into calm moments."""
STEPS_PER_EPOCH = 2
"""Few steps, so that images of any size fit into memory; a repeat has as many epochs as `REPEAT_S` allows."""
FEWEST_REPEATS, FEWEST_ROWS = 3, 2
SMALL_LEARNING_RATE = 1e-4
"""With it weights stay finite over all repeats; it does not change the seconds of a step."""
IMAGES = (3, 32, 32)
DEFAULT_SHAPES = {"cnn": (1, 28, 28), "lenet": (1, 28, 28), "mlp": (1, 28, 28)}
"""Channels, height and width of models whose default is not `IMAGES`."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A model to measure: built and traced; its costs are counted on demand."""

    name: str
    input_shape: tuple[int, ...]
    num_classes: int
    model: nn.Module
    plan: ChannelPlan
    costs: CostTable

    def mask(self, keep_ratio: float) -> Mask:
        """Return the mask of a width; it keeps the first channels, since seconds depend only on their number."""
        return masks.keep_top(self.plan, first_channels(self.plan), keep_ratio)

    def load(self, keep_ratio: float, batch_size: int) -> StepLoad:
        """Return the load of a training step of a width."""
        return StepLoad.of(self.costs.of(self.mask(keep_ratio)), keep_ratio, batch_size)


def subject_of(
    name: str,
    options: Mapping[str, Any] | None = None,
    input_shape: tuple[int, ...] | None = None,
    num_classes: int = 10,
) -> Subject:
    """Build a model and trace its channel groups.

    Args:
        name: As `model.name` in an experiment.
        options: As `model.options`.
        input_shape: Channels, height, width. None: `DEFAULT_SHAPES`, or `IMAGES`.
        num_classes: Number of classes.

    Raises:
        SettingError: If the model cannot be built or traced, or has nothing to prune.
    """
    shape = input_shape or DEFAULT_SHAPES.get(name, IMAGES)
    model = zoo.build(name, dict(options or {}), zoo.DataForm(shape, num_classes), SEED)
    plan = ChannelPlan.trace(model, torch.zeros(2, *shape), zoo.kept_whole(name))
    if not plan.groups:
        raise SettingError(f"model.name={name!r} has no channels that can be pruned; allowed: a model with some")
    return Subject(name, shape, num_classes, model, plan, CostTable(model, plan, shape))


def calibrate(
    subject: Subject,
    batch_size: int = 10,
    repeats: int = 12,
    fitted: Sequence[float] = FITTED,
    held_out: Sequence[float] = HELD_OUT,
    progress: Callable[[int], object] = lambda _done: None,
) -> Calibration:
    """Measure training steps of a model over its widths on one thread, and fit the clock's constants to them.

    Args:
        subject: The model.
        batch_size: Rows of a step, at least 2.
        repeats: Number of measurements of each width, at least 3; the fastest counts.
        fitted: Keep ratios to fit, in (0, 1].
        held_out: Keep ratios that test the fit.
        progress: Called with the number of completed repeats.

    Raises:
        SettingError: If a number is not allowed, or too few widths differ.
    """
    check_counts(batch_size, repeats)
    ratios = different_widths(subject, fitted, held_out)
    seconds = step_seconds(subject, list(ratios), batch_size, repeats, progress)
    measurements = [
        Measurement(subject.load(ratio, batch_size), is_held_out, seconds[ratio])
        for ratio, is_held_out in sorted(ratios.items(), reverse=True)
    ]
    curve = [subject.load(float(ratio), batch_size) for ratio in np.linspace(min(ratios), 1, CURVE_POINTS)]
    return Calibration(
        subject.name,
        subject.input_shape,
        subject.num_classes,
        batch_size,
        tuple(measurements),
        fit(measurements),
        tuple(curve),
    )


def check_counts(batch_size: int, repeats: int) -> None:
    """Raise SettingError if a step has too few rows, or if there are too few repeats."""
    for name, value, fewest in (("batch_size", batch_size, FEWEST_ROWS), ("repeats", repeats, FEWEST_REPEATS)):
        if value < fewest:
            raise SettingError(f"{name}={value} is not allowed; allowed: {fewest} or more")


def different_widths(
    subject: Subject, fitted: Sequence[float] = FITTED, held_out: Sequence[float] = HELD_OUT
) -> dict[float, bool]:
    """Return the keep ratios to measure, and whether each is held out.

    Narrow layers round several ratios to the same submodel. It is measured once, and never both fitted and held out.

    Raises:
        SettingError: If fewer than three fitted widths, or no held-out ones, are left.
    """
    ratios: dict[float, bool] = {}
    seen = set()
    for ratio, is_held_out in [(ratio, False) for ratio in fitted] + [(ratio, True) for ratio in held_out]:
        width = submodel.widths(subject.plan, subject.mask(ratio))
        if width not in seen:
            seen.add(width)
            ratios[ratio] = is_held_out
    tested = sum(ratios.values())
    if len(ratios) - tested < 3 or tested < 1:
        raise SettingError(
            f"model.name={subject.name!r} has {len(ratios) - tested} different widths to fit and {tested} to hold "
            "out; allowed: 3 or more and 1 or more"
        )
    return ratios


def step_seconds(
    subject: Subject, ratios: Sequence[float], batch_size: int, repeats: int, progress: Callable[[int], object]
) -> dict[float, tuple[float, ...]]:
    """Return the CPU seconds per training step of each repeat, by keep ratio.

    The calling thread does all of the work, so that on an idle machine they equal wall-clock seconds. Every repeat
    measures all widths in another order, so that noise affects all of them alike.
    """
    order = seeding.generator(SEED, "calibration order")
    seconds: dict[float, list[float]] = {ratio: [] for ratio in ratios}
    with one_thread(), seeding.torch_seeded(SEED, "calibration"):
        inputs = torch.randn(STEPS_PER_EPOCH * batch_size, *subject.input_shape)
        labels = torch.arange(len(inputs)) % subject.num_classes
        models = {ratio: subject.plan.extract(subject.model, subject.mask(ratio)) for ratio in ratios}

        def timed(ratio: float, epochs: int) -> float:
            local = LocalTraining(batch_size=batch_size, epochs=epochs)
            started = time.thread_time()  # as on an idle machine: waiting for a CPU does not count
            train(models[ratio], inputs, labels, TASKS["classification"], local, SMALL_LEARNING_RATE, order)
            return (time.thread_time() - started) / (epochs * STEPS_PER_EPOCH)

        epochs = {ratio: epochs_for(min(timed(ratio, 1) for _ in range(2))) for ratio in ratios}
        for repeat in range(repeats):
            for index in order.permutation(len(ratios)):
                seconds[ratios[index]].append(timed(ratios[index], epochs[ratios[index]]))
            progress(repeat + 1)
    return {ratio: tuple(measured) for ratio, measured in seconds.items()}


def epochs_for(step_s: float) -> int:
    """Return the number of epochs of a repeat, from the seconds of one step.

    >>> epochs_for(0.001), epochs_for(0.1), epochs_for(5.0)
    (50, 1, 1)
    """
    return max(1, int(REPEAT_S / (STEPS_PER_EPOCH * step_s)))
