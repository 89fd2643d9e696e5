"""The task of a run: the one that the settings name, with their loss and metrics."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.config.experiment import ExperimentSettings
from raysim.core.errors import SettingError
from raysim.data.datasets import Dataset
from raysim.task.classification import balanced_weights, with_training_loss
from raysim.task.own import with_metrics, with_own_loss
from raysim.task.table import TASKS
from raysim.task.task import Task

CHECKED = 1000
"""Rows whose targets are compared with the task."""


def task_of(settings: ExperimentSettings, data: Dataset, validating: NDArray[np.int64]) -> Task:
    """Return the task that the settings ask for; rows that validate do not decide class weights.

    Raises:
        SettingError: If it does not fit the targets, a loss or metric of the user's cannot be loaded, or class
            weights are not those of the classes, or have no effect.
    """
    task, given = TASKS[settings.task.name], settings.task
    _check_targets(settings, task, _targets_of(data))
    if given.loss is not None:
        task = with_own_loss(task, given.loss)
    if given.metrics or given.primary is not None:
        task = with_metrics(
            task, given.metrics, given.primary, given.primary_metric, data.num_classes, given.client_metrics
        )
    training = settings.training
    if training.class_weights is None and not training.label_smoothing:
        return task
    return with_training_loss(task, training.label_smoothing, _class_weights(settings, task, data, validating))


def _class_weights(
    settings: ExperimentSettings, task: Task, data: Dataset, validating: NDArray[np.int64]
) -> tuple[float, ...] | None:
    given = settings.training.class_weights
    if given is None:
        return None
    task.weighted_for("training.class_weights")
    if isinstance(given, list) and (len(given) != data.num_classes or len(set(given)) == 1):
        raise SettingError(
            f"training.class_weights of {len(given)} weights, {len(set(given))} of them different, are not allowed; "
            f"allowed: {data.num_classes} weights, one per class, not all equal; 'balanced' or null"
        )
    if given != "balanced":
        return tuple(given)
    trained = np.delete(np.asarray(_targets_of(data)), validating, axis=0)
    trained = trained[trained >= 0] if task.counted is not None else trained
    return balanced_weights(np.bincount(trained, minlength=data.num_classes))


def _targets_of(data: Dataset) -> NDArray[Any]:
    """Return the targets of the training rows, `(rows, ...)`."""
    targets: NDArray[Any] = data.train_targets if hasattr(data, "train_targets") else data.train_labels
    return targets


def _check_targets(settings: ExperimentSettings, task: Task, targets: NDArray[Any]) -> None:
    """Raise SettingError if a task cannot have such targets."""
    some = np.asarray(targets[:CHECKED])
    needed = None if task.targets is None else task.targets(some)
    if needed is None:
        return
    fit = [other.name for other in TASKS.values() if other.targets is None or other.targets(some) is None]
    raise SettingError(
        f"task.name={task.name!r} is not allowed: data.name={settings.data.name!r} has targets of type {some.dtype} "
        f"and shape ({', '.join(['rows', *map(str, some.shape[1:])])}), and the task needs {needed}; tasks that fit: "
        f"{', '.join(fit) or 'none'}"
    )
