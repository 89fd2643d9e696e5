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
from numpy.typing import NDArray

from raysim.data import datasets
from raysim.data.raw import Images

DIGITS = 28
"""Characters of the data's hash with which a digest starts; MLflow allows 36, and the name of the split follows."""


def inputs_of(data: datasets.Dataset, root: str | None) -> list[DatasetInput]:
    """Return training and test rows as inputs of a run.

    Args:
        data: The data set.
        root: The folder from which it was read; None: code loaded it, that of a package or the user's.
    """
    source = _source(data.name, root)
    train = _input(data, "train", data.train_images, data.train_labels, source)
    return [train, _input(data, "test", data.test_images, data.test_labels, source)]


def _source(name: str, root: str | None) -> DatasetSource:
    if root is not None:
        local: DatasetSource = vars(sources)["LocalArtifactDatasetSource"](str(Path(root).absolute()))
        return local
    loader = "sklearn.datasets:load_digits" if name == "digits" else name
    return CodeDatasetSource({MLFLOW_SOURCE_TYPE: "LOCAL", MLFLOW_SOURCE_NAME: loader})


def _input(
    data: datasets.Dataset, split: str, images: Images, labels: NDArray[np.int64], source: DatasetSource
) -> DatasetInput:
    digest = f"{data.digest[:DIGITS]}-{split}"
    described = NumpyDataset(images, source, labels, data.name, digest).to_dict()
    counts = np.bincount(labels, minlength=data.num_classes).tolist()
    rows = {"num_rows": len(labels), "num_classes": data.num_classes, "rows_of_class": counts}
    profile = json.dumps(rows | json.loads(described["profile"]))
    return DatasetInput(Dataset(**{**described, "profile": profile}), [InputTag(MLFLOW_DATASET_CONTEXT, split)])
