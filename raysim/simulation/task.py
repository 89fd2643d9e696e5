"""The task of a run: the one that the settings name, with their loss and metrics."""

import numpy as np
from numpy.typing import NDArray

from raysim.config.experiment import ExperimentSettings
from raysim.core.errors import SettingError
from raysim.data.splits import DataSplits
from raysim.task.classification import balanced_weights, with_training_loss
from raysim.task.own import with_metrics, with_own_loss
from raysim.task.table import TASKS
from raysim.task.task import Task


def task_of(settings: ExperimentSettings, data: DataSplits, validating: NDArray[np.int64]) -> Task:
    """Return the task that the settings ask for; rows that validate do not decide class weights.

    Raises:
        SettingError: If it does not fit the targets, a loss or metric of the user's cannot be loaded, or class
            weights are not those of the classes, or have no effect.
    """
    task, given = TASKS[settings.task.name], settings.task
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
    settings: ExperimentSettings, task: Task, data: DataSplits, validating: NDArray[np.int64]
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
    trained = np.delete(data.train_targets, validating, axis=0)
    counted = trained[trained >= 0].astype(np.int64)
    # a class without a row, which some data sets have, weighs as one with a single row
    return balanced_weights(np.maximum(1, np.bincount(counted, minlength=data.num_classes)))
