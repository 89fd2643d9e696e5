"""Compress a client's update before it is sent, and count the bytes that are sent.

An update holds the entries of every trained parameter that the client's mask keeps: `(entries,)` by state-dict key,
float64. Buffers, such as the running statistics of BatchNorm, are always sent whole; frozen parameters never.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from numbers import Integral
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from raysim.core import plugins
from raysim.core.errors import SettingError, reason_of, unknown_name
from raysim.core.tensors import Params
from raysim.pruning.elements import mask_bytes

VALUE_BYTES = 4
"""Bytes of a number that is sent or remembered: float32, in models of every precision."""

EQUALS_FEDAVG = "equals fedavg at keep 1"
UNCOVERED = "what nobody covers keeps its value"
ORDER = "order and grouping change nothing"
SEED = "same seed, same bits"
RESUME = "resumed is uninterrupted"
RAY = "ray is in-process"
"""Laws that a compression may keep: 3, 4, 6, 10, 11 and 12 of `tests/test_laws.py`."""

ALL_BUT_FEDAVG = frozenset({UNCOVERED, ORDER, SEED, RESUME, RAY})


@runtime_checkable
class Compression(Protocol):
    """Changes a client's update on its way to the server; noise for privacy would be one, too."""

    @property
    def remembers(self) -> bool:
        """Whether the client keeps a memory from one update to the next."""
        ...

    @property
    def keeps(self) -> frozenset[str]:
        """Names of the laws that hold with it."""
        ...

    def compress(self, update: Params, memory: Params, generator: np.random.Generator) -> tuple[Params, Params]:
        """Return the update that the server receives, and the client's new memory.

        Args:
            update: How far each entry has moved, `(entries,)` by key.
            memory: The client's memory of the same entries, zeros at first; empty if the compression has none.
            generator: Draws for this client and round alone.
        """
        ...

    def upload_bytes(self, entries: Mapping[str, int]) -> int:
        """Return the bytes of a compressed update, from the number of its entries by key."""
        ...


@dataclass(frozen=True, slots=True)
class TopK:
    """Sends the entries of greatest magnitude; the client adds the rest to its next update (error feedback).

    Source: Aji and Heafield (EMNLP 2017, arXiv 1704.05021); error feedback as in algorithm 1 of Stich et al.
    (NeurIPS 2018, arXiv 1809.07599). As there, the entries of all tensors are ranked together.

    Attributes:
        share: Share of the entries that are sent, rounded up.
    """

    share: float = 0.01

    remembers = True
    keeps = ALL_BUT_FEDAVG

    def compress(self, update: Params, memory: Params, generator: np.random.Generator) -> tuple[Params, Params]:
        """Return the greatest entries of update plus residual, in float32, and the rest as the new residual."""
        wanted = torch.cat([moved + memory[key] for key, moved in update.items()])
        chosen = greatest(wanted.abs(), self.count(len(wanted)))
        sent = torch.where(chosen, wanted.float().double(), 0.0)
        return _split(sent, update), _split(wanted - sent, update)

    def upload_bytes(self, entries: Mapping[str, int]) -> int:
        """Count the values, and their positions as a bitmap or 32-bit indices, whichever is shorter.

        >>> TopK(0.25).upload_bytes({"weight": 90, "bias": 10})  # 25 values, and 100 bits
        113
        >>> TopK(0.02).upload_bytes({"weight": 90, "bias": 10})  # 2 values, and 2 indices
        16
        """
        total = sum(entries.values())
        return VALUE_BYTES * self.count(total) + mask_bytes(total, self.count(total))

    def count(self, entries: int) -> int:
        """Return how many of some entries are sent, at least one."""
        return max(1, ceil(self.share * entries - 1e-9))


@dataclass(frozen=True, slots=True)
class EightBit:
    """Rounds every entry at random to a level above or below, 255 levels a tensor, without bias.

    Source: QSGD (Alistarh et al., NeurIPS 2017, arXiv 1610.02132, section 3.1), with each tensor's greatest magnitude
    instead of its norm. Zeros stay zero.
    """

    remembers = False
    keeps = ALL_BUT_FEDAVG

    def compress(self, update: Params, memory: Params, generator: np.random.Generator) -> tuple[Params, Params]:
        """Return multiples of each tensor's scale, from -127 to 127, and no memory."""
        return {key: self._rounded(moved, generator) for key, moved in update.items()}, {}

    @staticmethod
    def _rounded(moved: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        scale = scale_of(moved)
        if scale == 0:
            return torch.zeros_like(moved)
        return torch.floor(moved / scale + torch.from_numpy(generator.random(len(moved)))) * scale

    def upload_bytes(self, entries: Mapping[str, int]) -> int:
        """Count a byte for each entry, and a scale for each tensor.

        >>> EightBit().upload_bytes({"weight": 90, "bias": 10})
        108
        """
        return sum(entries.values()) + VALUE_BYTES * len(entries)


@dataclass(frozen=True, slots=True)
class OwnCompression:
    """A user's own compression; what it returns is checked.

    Attributes:
        name: Its dotted path.
        own: The user's object.
    """

    name: str
    own: Compression

    @property
    def remembers(self) -> bool:
        """Whether the client keeps a memory from one update to the next."""
        return self.own.remembers

    @property
    def keeps(self) -> frozenset[str]:
        """Names of the laws that hold with it."""
        return self.own.keeps

    def compress(self, update: Params, memory: Params, generator: np.random.Generator) -> tuple[Params, Params]:
        """Return the update that the server receives, and the client's new memory.

        Raises:
            SettingError: If they are not the entries that were given.
        """
        returned = self.own.compress(update, memory, generator)
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise self._refused(f"compress returns {type(returned).__name__}", "(update, memory)")
        sent, left = returned
        if not _has_entries_of(update, sent):
            raise self._refused("compress returns an update of other entries", "those that it is given")
        if not all(bool(torch.isfinite(each).all()) for each in sent.values()):
            raise self._refused("compress returns entries that are not finite", "finite numbers")
        if self.remembers and not _has_entries_of(update, left):
            raise self._refused("compress returns a memory of other entries", "those of the update")
        if not self.remembers and left != {}:
            raise self._refused("compress returns a memory, but remembers is false", "an empty memory")
        return sent, left

    def upload_bytes(self, entries: Mapping[str, int]) -> int:
        """Return the bytes of a compressed update, from the number of its entries by key.

        Raises:
            SettingError: If they cannot be counted, or are not a number of bytes.
        """
        try:
            found = self.own.upload_bytes(entries)
        except Exception as error:
            cause = f"upload_bytes raises {type(error).__name__}: {reason_of(error)}"
            raise self._refused(cause, WHOLE_BYTES) from error
        if isinstance(found, bool) or not isinstance(found, Integral) or found < 0:
            raise self._refused(f"upload_bytes returns {found!r}", WHOLE_BYTES)
        return int(found)

    def _refused(self, what: str, allowed: str) -> SettingError:
        return SettingError(f"compression.name={self.name!r}: {what}; allowed: {allowed}")


WHOLE_BYTES = "a whole number of bytes, 0 or more"


def _has_entries_of(update: Params, found: Any) -> bool:
    """Whether something holds a floating-point tensor of the same length for every parameter of an update."""
    return (
        isinstance(found, Mapping)
        and found.keys() == update.keys()
        and all(
            isinstance(each, torch.Tensor) and each.is_floating_point() and each.shape == update[key].shape
            for key, each in found.items()
        )
    )


LEVELS = 127
"""Levels above zero."""


def scale_of(moved: torch.Tensor) -> float:
    """Return the least float32 number whose 127-fold reaches the greatest magnitude; 0 if all entries are 0."""
    exact = float(moved.abs().max()) / LEVELS if len(moved) else 0.0
    scale = np.float32(exact)
    return float(scale if scale >= exact else np.nextafter(scale, np.float32(np.inf)))


def greatest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Return which entries are the `count` greatest, `(entries,)` booleans; of equal ones the first.

    >>> greatest(torch.tensor([1.0, 3.0, 1.0, 2.0]), 3).tolist()
    [True, True, False, True]
    """
    found = values.numpy()
    least = np.partition(found, len(found) - count)[len(found) - count]
    chosen = found > least
    chosen[np.flatnonzero(found == least)[: count - int(chosen.sum())]] = True
    return torch.from_numpy(chosen)


def _split(values: torch.Tensor, update: Params) -> Params:
    """Split one vector into tensors of the update's sizes."""
    return dict(zip(update, torch.split(values, [len(moved) for moved in update.values()]), strict=True))


def resolve(name: str, given: Mapping[str, Any]) -> Compression:
    """Look up a compression.

    Args:
        name: A name of `COMPRESSIONS`, or the dotted path of a compression of the user's own.
        given: Its options, by name.

    Raises:
        SettingError: If there is none of this name, or the path names something else.
    """
    if not plugins.is_dotted(name):
        if name not in COMPRESSIONS:
            raise unknown_name("compression.name", name, COMPRESSIONS)
        return COMPRESSIONS[name](**given)
    member = plugins.load("compression.name", name)
    if not isinstance(member, Compression) or isinstance(member, type):
        raise SettingError(
            f"compression.name={name!r} is {type(member).__name__}; allowed: an object with compress, upload_bytes, "
            "remembers and keeps"
        )
    return OwnCompression(name, member)


COMPRESSIONS: dict[str, Callable[..., Compression]] = {
    "top-k": TopK,
    "8-bit": EightBit,
}
"""Compressions by name; a user's own is a dotted path in the settings."""
