"""The data sets of a run as MLflow has them: where they come from, their digest, what their rows look like."""

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
"""How much of the data's hash a digest starts with; MLflow allows 36 characters, and the split follows."""


def inputs_of(data: datasets.Dataset, root: str | None) -> list[DatasetInput]:
    """Return the training and the test rows as inputs of a run.

    Args:
        data: Both.
        root: The folder they were read from; none = they came by code, that of a package or the user's.
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
) -> DatasetInput:  # fmt: skip
    digest = f"{data.digest[:DIGITS]}-{split}"
    told = NumpyDataset(images, source, labels, data.name, digest).to_dict()
    counts = np.bincount(labels, minlength=data.num_classes).tolist()
    rows = {"num_rows": len(labels), "num_classes": data.num_classes, "rows_of_class": counts}
    profile = json.dumps(rows | json.loads(told["profile"]))
    return DatasetInput(Dataset(**{**told, "profile": profile}), [InputTag(MLFLOW_DATASET_CONTEXT, split)])
