"""Read data sets of the library `datasets`: folders that it saved, and names on its hub."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.core import memory
from raysim.core.errors import SettingError, refusing, shortened
from raysim.data import options
from raysim.data.raw import RawData, Source, from_arrays
from raysim.data.stratified import rows_to_test
from raysim.task.targets import KINDS

NUMBERS = re.compile(r"bool|u?int\d+|float\d+")
"""Types of the values of columns that are read."""
Split = Mapping[str, NDArray[Any]]
"""Columns by name, `(rows, ...)`."""


def huggingface(
    source: Source,
    inputs: str | list[str] | None = None,
    target: str | None = None,
    user: str | None = None,
    test_share: float | None = None,
    test_split: str = "test",
    subset: str | None = None,
) -> RawData:
    """Return a data set of Hugging Face's library: `data.root` is a folder by `save_to_disk`, or a name on the hub.

    Columns are images, or numbers in lists or arrays of one shape. Several columns of one number each become one
    vector, other columns are inputs by name. Texts have to be tokenised before, with `map`.

    Args:
        source: Names the folder or the data set, which is downloaded only with `data.download: true`.
        inputs: The columns of the inputs; None: all but target and user.
        target: The column of the target. Classes with names keep these, also those without a row.
        user: The column of the natural user.
        test_share: Share of the rows that is tested where there are none to test, drawn by the seed of the split,
            class by class; None: 0.2.
        test_split: Name of the split that is tested.
        subset: Name of the part to load from the hub, which calls it a configuration.

    Raises:
        SettingError: If the library or the data set is missing, or a column cannot be read.
    """
    named = {
        "inputs": options.columns("inputs", inputs),
        "target": options.columns("target", options.one_column("target", target)),
        "user": options.columns("user", options.one_column("user", user)),
    }
    options.refuse_shared(named)
    if test_share is not None:
        options.check_share(test_share)
    splits = _splits(source, _loaded(source, subset), test_split, test_share)
    features = splits[0].features
    options.required("target", named["target"], features)
    options.refuse_unknown("user", named["user"], features)
    chosen = named["inputs"] or tuple(name for name in features if name not in (*named["target"], *named["user"]))
    options.required("inputs", chosen, features)
    for name in chosen:
        _check_readable(source, name, features[name])
    wanted = (*chosen, *named["target"], *named["user"])
    read = [_columns(source, split, wanted) for split in splits]
    names = _class_names(features[named["target"][0]])
    share = options.DEFAULT_TEST_SHARE if test_share is None else test_share
    train, test = read if len(read) == 2 else _divided(source, read[0], named["target"][0], share, names)
    arrays = [array for split in (train, test) for array in (_inputs(split, chosen), split[named["target"][0]])]
    if named["user"]:
        arrays.append(train[named["user"][0]])
    raw = from_arrays(source.name, arrays, source.task, three_dims_are_images=False)
    are_classes = bool(names) and np.issubdtype(raw.train_targets.dtype, np.integer)
    return replace(raw, class_names=names, num_outputs=len(names)) if are_classes else raw


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise SettingError(
            "data.name='huggingface' needs the library datasets, which is not installed; allowed: after "
            "pip install 'raysim[huggingface]'"
        ) from None
    return datasets


def _loaded(source: Source, subset: str | None) -> Any:
    """Return the data set, or its splits by name.

    Raises:
        SettingError: If it cannot be loaded.
    """
    allowed = "allowed: a folder that save_to_disk wrote, or with data.download=true a name on Hugging Face's hub"
    if source.root is None:
        raise SettingError(f"data.root=null is not allowed with data.name='huggingface'; {allowed}")
    library = _library()
    if Path(source.root).exists():
        if subset is not None:
            raise SettingError(
                f"data.options.subset={shortened(subset)} has no effect: data.root={source.root!r} is a folder; "
                "allowed: null"
            )
        with refusing(f"data.root={source.root!r} is no folder that save_to_disk wrote"):
            return library.load_from_disk(source.root)
    if not source.download:
        raise SettingError(f"data.root={source.root!r} does not exist; {allowed}")
    with refusing(f"data.root={source.root!r} cannot be loaded from the hub"):
        return library.load_dataset(source.root, subset)


def _splits(source: Source, loaded: Any, test_split: str, test_share: float | None) -> list[Any]:
    """Return the rows to train on and to test, or one data set that has to be divided."""
    if not isinstance(loaded, Mapping):
        return [loaded]
    if "train" in loaded and test_split in loaded:
        if test_share is not None:
            raise SettingError(
                f"data.options.test_share={test_share!r} has no effect: data.root={source.root!r} has test rows; "
                "allowed: null"
            )
        return [loaded["train"], loaded[test_split]]
    if [*loaded] == ["train"]:
        return [loaded["train"]]
    raise SettingError(
        f"data.options.test_split={shortened(test_split)} is not allowed: data.root={source.root!r} has the splits "
        f"{[*loaded]!r}; allowed: one of them, with one called train"
    )


def _leaf(feature: Any) -> Any:
    """Return what the lists of a column hold."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return feature


def _is_image(feature: Any) -> bool:
    return type(feature).__name__ == "Image"


def _class_names(feature: Any) -> tuple[str, ...]:
    return tuple(getattr(_leaf(feature), "names", None) or ())


def _check_readable(source: Source, name: str, feature: Any) -> None:
    leaf = _leaf(feature)
    dtype = str(getattr(leaf, "dtype", type(leaf).__name__))
    if "string" in dtype or _class_names(feature):
        kind, cure = ("texts", "tokenise") if "string" in dtype else ("names of classes", "encode")
        raise SettingError(
            f"data.options.inputs: column {name!r} of data.root={source.root!r} holds {kind}; allowed: numbers and "
            f"images: {cure} it with map and save_to_disk first, or leave it out of data.options.inputs"
        )
    if not _is_image(feature) and not NUMBERS.fullmatch(dtype):
        raise SettingError(
            f"data.options.inputs: column {name!r} of data.root={source.root!r} holds {dtype}; allowed: numbers and "
            "images, or to leave it out of data.options.inputs"
        )


def _columns(source: Source, split: Any, wanted: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    if missing := [name for name in wanted if name not in split.features]:
        raise SettingError(f"data.root={source.root!r}: the test rows have no column {missing[0]!r}")
    if not len(split):
        raise SettingError(f"data.root={source.root!r} has a split without rows; allowed: rows in each")
    split = split.select_columns(list(wanted)).with_format("numpy")
    return {name: _column(source, split, name) for name in wanted}


def _column(source: Source, split: Any, name: str) -> NDArray[Any]:
    """Return a column, `(rows, ...)`, of images with their channels first."""
    feature = split.features[name]
    with refusing(f"data.root={source.root!r}: column {name!r} cannot be read"):
        first = np.asarray(split[0][name])
        memory.check_fits(f"data.root={source.root!r}: column {name!r}", first.shape, 2 * len(split) * first.nbytes)
        values = np.asarray(split[name][:])
    if values.dtype == object and not all(isinstance(value, str) for value in values):
        cure = "resize" if _is_image(feature) else "pad"
        raise SettingError(
            f"data.root={source.root!r}: column {name!r} has rows of unequal shape, or without a value; allowed: "
            f"rows of one shape: {cure} them with map and save_to_disk first"
        )
    if _is_image(feature):
        return np.moveaxis(values, -1, 1) if values.ndim == 4 else values[:, None]
    if str(getattr(_leaf(feature), "dtype", "")) == "uint8":
        return values.astype(np.uint8)  # NumPy's format widens whole numbers
    return values


def _inputs(split: Split, chosen: tuple[str, ...]) -> Any:
    if all(split[name].ndim == 1 for name in chosen):
        return np.stack([split[name].astype(np.float32) for name in chosen], axis=1)
    if len(chosen) == 1:
        return split[chosen[0]]
    return {
        name: split[name].astype(np.float32)[:, None] if split[name].ndim == 1 else split[name] for name in chosen
    }


def _divided(
    source: Source, columns: Split, target: str, test_share: float, names: tuple[str, ...]
) -> tuple[Split, Split]:
    """Return the rows to train on and to test of a data set that comes without a split."""
    values = columns[target]
    labels = np.zeros(len(values), np.int64)
    if KINDS[source.task].has_classes and values.ndim == 1:
        found, labels = np.unique(values, return_inverse=True)
        names = tuple(names[index] for index in found) if names and found.min() >= 0 else tuple(map(str, found))
    test = rows_to_test(labels, test_share, source.seed, f"data.options.target={target!r}", names)
    train = np.setdiff1d(np.arange(len(values)), test)
    of_rows = [{name: array[rows] for name, array in columns.items()} for rows in (train, test)]
    return of_rows[0], of_rows[1]
