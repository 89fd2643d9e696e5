"""The training and test rows of a run, as clients train on them."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.core import seeding
from raysim.core.inputs import Inputs
from raysim.data.arrays import Arrays, each, leaves
from raysim.data.augment import Augmentation
from raysim.data.raw import Users
from raysim.data.transform import Transform
from raysim.task.targets import KINDS, Targets


@dataclass(frozen=True, slots=True)
class Origin:
    """How a data set was loaded, so that another process can load it from its own disk: the arguments of `load`."""

    name: str
    root: str | None
    max_train_examples: int | None
    seed: int
    options: Mapping[str, Any]
    transform: Transform
    task: str = "classification"


@dataclass(frozen=True, slots=True, eq=False)
class DataSplits:
    """Inputs and targets, split into training and test rows.

    Attributes:
        name: Name of the data set.
        train_inputs: `(rows, ...)`, or several arrays by name: images `(rows, channels, height, width)` of unsigned
            bytes or floats, token ids `(rows, time)`, floats `(rows, ...)`.
        train_targets: `(rows, ...)`; in classification the class of each row, from 0.
        test_inputs: Like `train_inputs`.
        test_targets: Like `train_targets`.
        num_classes: Number of outputs of a row or position: classes, labels, numbers, or words of a vocabulary.
        max_value: Value of images that stands for 1.0; None: the inputs are no images.
        mean: Value that is subtracted from each channel of images after scaling to [0, 1].
        std: Value by which each channel is then divided.
        digest: Hash of all that clients train on.
        train_users: Natural user of each training row, `(rows,)`; None: the data set has no users.
        augmentation: Random transforms of images in training.
        on_nodes: How other processes load it from their own disk; None: its rows are sent to them.
        task: Name of the task that the targets are for.
        vocabulary: Number of token ids of integer inputs; None: there are none.
        class_names: Names of the classes; empty: they are numbers.
    """

    name: str
    train_inputs: Arrays
    train_targets: Targets
    test_inputs: Arrays
    test_targets: Targets
    num_classes: int
    max_value: float | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str = ""
    train_users: Users | None = None
    augmentation: Augmentation | None = None
    on_nodes: Origin | None = None
    task: str = "classification"
    vocabulary: int | None = None
    class_names: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, of images channels, height, width; of several arrays that of the first by name."""
        return tuple(leaves(self.train_inputs)[0].shape[1:])

    @property
    def row_size(self) -> int:
        """Numbers in one input."""
        return sum(int(np.prod(array.shape[1:])) for array in leaves(self.train_inputs))

    @property
    def train_classes(self) -> NDArray[np.int64] | None:
        """Class of each training row, `(rows,)`; None: rows have no classes."""
        return np.asarray(self.train_targets, np.int64) if KINDS[self.task].has_classes else None

    @property
    def strata(self) -> NDArray[np.int64]:
        """Class of each training row, `(rows,)`, or 0 for all: subsets keep the shares of these."""
        classes = self.train_classes
        return np.zeros(len(self.train_targets), np.int64) if classes is None else classes

    def without_rows(self) -> "DataSplits":
        """Return what is sent to other processes: the data set itself, or how they load it."""
        if self.on_nodes is None:
            return self
        return replace(
            self,
            train_users=None,
            train_inputs=each(lambda array: array[:0], self.train_inputs),
            train_targets=self.train_targets[:0],
            test_inputs=each(lambda array: array[:0], self.test_inputs),
            test_targets=self.test_targets[:0],
        )

    def train_rows(self, rows: NDArray[np.int64]) -> tuple[Inputs, torch.Tensor]:
        """Return training inputs `(len(rows), ...)`, those of images normalised, and targets."""
        return self._batch(self.train_inputs, self.train_targets, rows)

    def test_rows(self, rows: NDArray[np.int64]) -> tuple[Inputs, torch.Tensor]:
        """Return test inputs, those of images normalised, and targets."""
        return self._batch(self.test_inputs, self.test_targets, rows)

    def example(self) -> tuple[Inputs, torch.Tensor]:
        """Return two test rows; of token ids one of them has the largest that test rows hold."""
        tokens = [array for array in leaves(self.test_inputs) if array.dtype == np.int64]
        rows = np.arange(2)
        if tokens and len(self.test_targets) > 2:
            largest = int(tokens[0].reshape(len(tokens[0]), -1).max(axis=1).argmax())
            rows = np.array([0 if largest else 1, largest])
        return self.test_rows(rows)

    def extremes(self) -> tuple[Inputs, torch.Tensor]:
        """Return the rows of both splits with the largest token, the largest target, and a target that is ignored.

        Where there are neither tokens nor targets of positions they are two rows.
        """
        has_positions = self.train_targets.ndim > 1 and self.train_targets.dtype == np.int64
        if self.vocabulary is None and not has_positions:
            return self.example()
        found = []
        for inputs, targets, rows_of in (
            (self.train_inputs, self.train_targets, self.train_rows),
            (self.test_inputs, self.test_targets, self.test_rows),
        ):
            flat = [array.reshape(len(targets), -1) for array in leaves(inputs) if array.dtype == np.int64]
            flat += [targets.reshape(len(targets), -1)]
            rows = {int(array.max(axis=1).argmax()) for array in flat} | {int(flat[-1].min(axis=1).argmin()), 0}
            found.append(rows_of(np.array(sorted(rows))))
        (first, second), targets_of = zip(*found, strict=True)
        if isinstance(first, torch.Tensor):
            return torch.cat([first, second]), torch.cat(targets_of)
        return {name: torch.cat([first[name], second[name]]) for name in first}, torch.cat(targets_of)

    def augmenter(self, seed: int, round: int, client: int) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """Return a function that transforms batches of a client's normalised inputs at random; None: there is none.

        Its draws depend on (seed, round, client) and on the batches before, for each image anew.
        """
        if self.augmentation is None:
            return None
        mean, std = (values.numpy() for values in self._normalization())
        rng = seeding.generator(seed, "augmentation", round, client)
        return partial(self.augmentation, mean=mean, std=std, rng=rng)

    def _batch(self, inputs: Arrays, targets: Targets, rows: NDArray[np.int64]) -> tuple[Inputs, torch.Tensor]:
        return each(lambda array: self._tensor(array[rows]), inputs), torch.from_numpy(targets[rows])

    def _tensor(self, rows: NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(rows)
        if self.max_value is not None:
            mean, std = self._normalization()
            return tensor.float().div_(self.max_value).sub_(mean).div_(std)
        return tensor.float().div_(255) if tensor.dtype == torch.uint8 else tensor

    def _normalization(self) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (1, len(self.mean), 1, 1)
        return torch.tensor(self.mean).view(shape), torch.tensor(self.std).view(shape)


def digest(data: DataSplits) -> str:
    """Return the SHA-256 of inputs, targets, users, normalization and augmentation."""
    specs = () if data.augmentation is None else data.augmentation.specs
    sha = hashlib.sha256(repr((data.num_classes, data.max_value, data.mean, data.std, specs)).encode())
    users = np.empty(0) if data.train_users is None else data.train_users
    for arrays in (data.train_inputs, data.train_targets, data.test_inputs, data.test_targets, users):
        if isinstance(arrays, Mapping):
            sha.update(repr(sorted(arrays)).encode())
        for array in leaves(arrays):
            sha.update(f"{array.dtype}{array.shape}".encode())
            sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()
