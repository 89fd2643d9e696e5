"""Columns of a table as numbers: measured numbers standardised, truths as 0 and 1, texts one-hot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raysim.core import memory
from raysim.core.errors import SettingError, refusing

MOST_CATEGORIES = 1_000
"""Largest number of different texts in a column of inputs: one with more holds names or sentences."""
Kind = Literal["numbers", "truths", "texts", "nothing"]


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """A column of a table.

    Attributes:
        kind: Of what its values are.
        values: Numbers, 0 and 1 for truths, or indices into `texts`, `(rows,)`; NaN: missing.
        texts: Its different texts, sorted.
    """

    kind: Kind
    values: NDArray[np.float64]
    texts: tuple[str, ...] = ()

    @property
    def is_missing(self) -> NDArray[np.bool_]:
        """Which rows have no value; an empty text is one."""
        empty = np.isnan(self.values)
        return empty | (self.values == self.texts.index("")) if "" in self.texts else empty


def column(setting: str, name: str, parts: Sequence[Any]) -> Column:
    """Return a column that is read from one file, or from several, one after the other.

    Args:
        setting: The setting and its value, for messages.
        name: The column's name.
        parts: Its values in each file, `pyarrow.ChunkedArray`.

    Raises:
        SettingError: If it holds dates, lists or other values, or files differ in their kind.
    """
    kinds = [_kind(setting, name, part.type) for part in parts]
    some = sorted({kind for kind in kinds if kind != "nothing"})
    if len(some) > 1:
        raise SettingError(
            f"{setting}: column {name!r} holds {' in one file and '.join(some)} in the other; allowed: one kind"
        )
    if some != ["texts"]:
        with refusing(f"{setting}: column {name!r} cannot be read"):
            return Column(some[0] if some else "nothing", np.concatenate([_numbers(part) for part in parts]))
    words = sorted({word for part in parts for word in _dictionary(part).dictionary.to_pylist() if word is not None})
    number = {word: index for index, word in enumerate(words)}
    return Column("texts", np.concatenate([_indices(part, number) for part in parts]), tuple(words))


def _kind(setting: str, name: str, kind: Any) -> Kind:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_null(kind):
        return "nothing"
    if pa.types.is_boolean(kind):
        return "truths"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "numbers"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "texts"
    raise SettingError(
        f"{setting}: column {name!r} holds values of type {kind}; allowed: numbers, truths and texts, or to name it "
        "in data.options.drop"
    )


def _numbers(part: Any) -> NDArray[np.float64]:
    """Return numbers or truths as floats, NaN where there is none."""
    import pyarrow as pa

    if pa.types.is_dictionary(part.type):
        part = part.cast(part.type.value_type)
    if pa.types.is_boolean(part.type):
        part = part.cast(pa.int8())
    values: NDArray[np.float64] = part.cast(pa.float64(), safe=False).to_numpy().astype(np.float64)
    return values


def _dictionary(part: Any) -> Any:
    """Return texts as one array of indices and its dictionary; of texts that are all missing, too."""
    import pyarrow as pa

    if pa.types.is_null(part.type):
        part = part.cast(pa.string())
    if not pa.types.is_dictionary(part.type):
        part = part.dictionary_encode()
    whole = part.unify_dictionaries().combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


def _indices(part: Any, number: Mapping[str, int]) -> NDArray[np.float64]:
    found = _dictionary(part)
    of_word = np.array([np.nan if word is None else number[word] for word in found.dictionary.to_pylist()] + [np.nan])
    indices = found.indices.fill_null(len(of_word) - 1).to_numpy(zero_copy_only=False)
    values: NDArray[np.float64] = of_word[indices.astype(np.int64)]
    return values


def inputs_of(setting: str, columns: Mapping[str, Column], train: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return columns as a matrix, `(rows, features)`: numbers first, then truths, then texts, each as they stand.

    Numbers are standardised by the mean and deviation of the training rows; missing ones have their median there.
    Missing truths have the more frequent value. Texts are one-hot: one feature for each text of the training rows, of
    which other texts have none.

    Args:
        setting: The setting and its value, for messages.
        columns: Columns by name.
        train: The training rows.

    Raises:
        SettingError: If a column has no value to train on, values that are not finite, or too many texts.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    features = 0
    for name, each in columns.items():
        features += _num_features(setting, name, each, train)
    rows = len(next(iter(columns.values())).values)
    memory.check_fits(f"{setting}: its columns", tuple(columns), 8 * rows * (features + len(columns)))
    of: dict[str, list[int]] = {"numbers": [], "truths": [], "texts": []}
    for index, each in enumerate(columns.values()):
        of[each.kind].append(index)
    encoder = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), of["numbers"]),
            ("truths", SimpleImputer(strategy="most_frequent"), of["truths"]),
            ("texts", OneHotEncoder(handle_unknown="ignore", sparse_output=False), of["texts"]),
        ],
        sparse_threshold=0,
    )
    matrix = np.column_stack([each.values for each in columns.values()])
    encoder.fit(matrix[train])
    encoded: NDArray[np.float64] = encoder.transform(matrix)
    return encoded


def _num_features(setting: str, name: str, given: Column, train: NDArray[np.int64]) -> int:
    values = given.values[train]
    dropped = "or to name it in data.options.drop"
    if given.kind == "nothing" or np.isnan(values).all():
        raise SettingError(
            f"{setting}: column {name!r} has no value in the training rows; allowed: values, {dropped}"
        )
    if np.isinf(given.values).any():
        raise SettingError(f"{setting}: column {name!r} holds infinite numbers; allowed: finite ones, {dropped}")
    if given.kind != "texts":
        return 1
    count = len(np.unique(values))
    if count > MOST_CATEGORIES:
        raise SettingError(
            f"{setting}: column {name!r} holds {count:,} different texts; allowed: at most {MOST_CATEGORIES:,}, "
            f"{dropped}"
        )
    return count


def classes_of(what: str, given: Column) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the class of each row, and the names of the classes if they are not numbered from 0.

    Raises:
        SettingError: If numbers are not whole.
    """
    found, labels = np.unique(given.values, return_inverse=True)
    if given.kind == "texts":
        return labels, tuple(given.texts[int(index)] for index in found)
    if not np.array_equal(found, np.round(found)):
        raise SettingError(
            f"{what} holds numbers that are not whole, such as {found[found != np.round(found)][0]:g}; allowed: "
            "whole numbers or texts, or task.name: regression"
        )
    is_numbered = np.array_equal(found, np.arange(len(found)))
    return labels, () if is_numbered else tuple(str(int(value)) for value in found)
