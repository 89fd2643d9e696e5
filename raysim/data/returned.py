"""Read what a user's function returns as a data set: arrays, a mapping, PyTorch's or Hugging Face's data sets."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils import data as torch_data

from raysim.core.errors import SettingError, nearest_first, refusing
from raysim.data.dataset import Dataset
from raysim.data.raw import RawData, from_arrays
from raysim.data.splits import DataSplits

FLAT = ("train_inputs", "train_targets", "test_inputs", "test_targets", "train_users")
SPLITS = ("train", "test")
TARGETS = ("targets", "target", "labels", "label")
USERS = ("users", "user")
FORMS = (
    "two raysim.Dataset, for training and test; (train_inputs, train_targets, test_inputs, test_targets), or with "
    "train_users; a mapping with these names, or with 'train' and 'test'"
)


def raw_from(name: str, result: Any, task: str) -> RawData:
    """Return the data in the result of a user's function.

    Args:
        name: The function's dotted path, for errors.
        result: Two splits, as a pair or by the names `train` and `test`: each a `Dataset`, a pair of inputs and
            targets, a `torch.utils.data.Dataset` of pairs, or a Hugging Face `Dataset`; or four or five arrays, also
            by name.
        task: Name of the task.

    Raises:
        SettingError: If it is none of these.
    """
    if isinstance(result, DataSplits):
        arrays = [result.train_inputs, result.train_targets, result.test_inputs, result.test_targets]
        return replace(from_arrays(name, [*arrays, result.train_users], task), max_value=result.max_value)
    if isinstance(result, Mapping):
        result = _of_mapping(name, result)
    if isinstance(result, Sequence) and len(result) == 2 and all(_is_split(each) for each in result):
        train, test = (_split(name, split, each) for split, each in zip(SPLITS, result, strict=True))
        arrays = [train.inputs, train.targets, test.inputs, test.targets, train.users]
        return from_arrays(name, arrays, task, three_dims_are_images=False)
    if not isinstance(result, (tuple, list)):
        raise SettingError(f"data.name={name!r} gives a {type(result).__name__}; allowed: {FORMS}")
    return from_arrays(name, result, task)


def _of_mapping(name: str, result: Mapping[Any, Any]) -> Any:
    if set(result) == set(SPLITS):
        return [result[split] for split in SPLITS]
    if set(FLAT[:4]) <= set(result) <= set(FLAT):
        return [result[key] for key in FLAT if key in result]
    unknown = [key for key in result if key not in (*FLAT, *SPLITS)]
    nearest = ", ".join(nearest_first(str(unknown[0]), (*FLAT, *SPLITS))[:3]) if unknown else FORMS
    raise SettingError(f"data.name={name!r} gives a mapping with {[*result]!r}; allowed: {nearest}")


def _is_split(given: Any) -> bool:
    return (
        isinstance(given, (Dataset, torch_data.Dataset, Mapping))
        or _is_hugging_face(given)
        or (isinstance(given, (tuple, list)) and len(given) in (2, 3))
    )


def _is_hugging_face(given: Any) -> bool:
    return hasattr(given, "column_names") and hasattr(given, "with_format")


def _split(name: str, split: str, given: Any) -> Dataset:
    if isinstance(given, Dataset):
        return given
    if _is_hugging_face(given):
        return of_columns(name, split, {key: given.with_format("numpy")[key] for key in given.column_names})
    if isinstance(given, Mapping):
        return of_columns(name, split, given)
    if isinstance(given, torch_data.Dataset):
        return _of_pairs(name, split, given)
    return Dataset(*given)


def of_columns(name: str, split: str, columns: Mapping[str, Any]) -> Dataset:
    """Return the split in named columns: one of targets, perhaps one of users, and the inputs.

    Raises:
        SettingError: If no column holds targets, or none inputs.
    """
    target = next((key for key in TARGETS if key in columns), None)
    user = next((key for key in USERS if key in columns), None)
    inputs = {key: value for key, value in columns.items() if key not in (target, user)}
    if target is None or not inputs:
        raise SettingError(
            f"data.name={name!r}: the {split} split has the columns {[*columns]!r}; allowed: inputs, and one of "
            f"{', '.join(TARGETS)}"
        )
    only = next(iter(inputs.values())) if len(inputs) == 1 else inputs
    return Dataset(only, columns[target], columns[user] if user else None)


def _of_pairs(name: str, split: str, given: Any) -> Dataset:
    """Return the rows of a PyTorch data set whose items are pairs of input and target."""
    with refusing(f"data.name={name!r}: the items of the {split} split are not pairs of an input and a target"):
        pairs = [given[index] for index in range(len(given))]
        inputs, targets = zip(*pairs, strict=True)
    stacked = (
        {key: _stacked(name, split, [each[key] for each in inputs]) for key in inputs[0]}
        if isinstance(inputs[0], Mapping)
        else _stacked(name, split, inputs)
    )
    return Dataset(stacked, _stacked(name, split, targets))


def _stacked(name: str, split: str, values: Sequence[Any]) -> Any:
    with refusing(f"data.name={name!r}: the rows of the {split} split differ in shape; pad them"):
        return np.stack([np.asarray(value) for value in values])
