"""Describe the data sets of a run for MLflow: source, digest, and shape of the rows."""

import json
from pathlib import Path

import numpy as np
from mlflow.data import sources
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.numpy_dataset import NumpyDataset
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE

from raysim.data.arrays import Arrays
from raysim.data.splits import DataSplits
from raysim.task.targets import Targets

DIGITS = 28
"""Characters of the data's hash with which a digest starts; MLflow allows 36, and the name of the split follows."""


def inputs_of(data: DataSplits, root: str | None) -> list[DatasetInput]:
    """Return training and test rows as inputs of a run.

    Args:
        data: The data set.
        root: The folder from which it was read; None: code loaded it, that of a package or the user's.
    """
    source = _source(data.name, root)
    train = _input(data, "train", data.train_inputs, data.train_targets, source)
    return [train, _input(data, "test", data.test_inputs, data.test_targets, source)]


def _source(name: str, root: str | None) -> DatasetSource:
    if root is not None:
        local: DatasetSource = vars(sources)["LocalArtifactDatasetSource"](str(Path(root).absolute()))
        return local
    loader = "sklearn.datasets:load_digits" if name == "digits" else name
    return CodeDatasetSource({MLFLOW_SOURCE_TYPE: "LOCAL", MLFLOW_SOURCE_NAME: loader})


def _input(data: DataSplits, split: str, inputs: Arrays, targets: Targets, source: DatasetSource) -> DatasetInput:
    digest = f"{data.digest[:DIGITS]}-{split}"
    given = inputs if isinstance(inputs, np.ndarray) else dict(inputs)
    described = NumpyDataset(given, source, targets, data.name, digest).to_dict()
    rows: dict[str, object] = {"num_rows": len(targets), "num_classes": data.num_classes}
    if data.train_classes is not None:
        rows["rows_of_class"] = np.bincount(targets.astype(np.int64), minlength=data.num_classes).tolist()
    profile = json.dumps(rows | json.loads(described["profile"]))
    return DatasetInput(Dataset(**{**described, "profile": profile}), [InputTag(MLFLOW_DATASET_CONTEXT, split)])
