"""What a method remembers of single clients: in memory until it is saved, then on disk until it is asked for."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

from raysim import files
from raysim.types import Params


class DamagedMemoryError(RuntimeError):
    """A client's file is missing or does not have the recorded digest."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A client's tensors in a file of their own."""

    path: Path
    sha256: str

    def load(self) -> Params:
        """Read the tensors.

        Raises:
            DamagedMemoryError: If the file is missing or damaged.
        """
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise DamagedMemoryError(f"{self.path} cannot be read: {error.strerror}") from None
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise DamagedMemoryError(f"{self.path} is damaged: it does not have the digest that was recorded")
        loaded: Params = load_file(self.path)
        return loaded


class ClientMemory(Mapping[int, Params]):
    """Tensors by client id; those that are on disk are read each time they are asked for."""

    def __init__(self, entries: Mapping[int, Params | Stored]) -> None:
        self.entries = dict(entries)

    def __getitem__(self, client: int) -> Params:
        entry = self.entries[client]
        return entry.load() if isinstance(entry, Stored) else entry

    def __iter__(self) -> Iterator[int]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def stored(self, folder: Path, round: int) -> "ClientMemory":
        """Write what is not on disk yet, one safetensors file per client and version, and let go of it."""
        return ClientMemory(
            {
                client: entry if isinstance(entry, Stored) else _store(entry, folder / f"{client:07d}_{round:06d}")
                for client, entry in self.entries.items()
            }
        )


def updated(old: Mapping[int, Params], new: Mapping[int, Params]) -> ClientMemory:
    """Return a memory in which the new tensors of a client replace its old ones of the same names."""
    entries: dict[int, Params | Stored] = dict(old.entries if isinstance(old, ClientMemory) else old)
    for client, tensors in new.items():
        entries[client] = {**(old[client] if client in entries else {}), **tensors}
    return ClientMemory(entries)


def _store(tensors: Params, stem: Path) -> Stored:
    path = stem.with_suffix(".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
    files.write_atomically(path, lambda partial: save_file(content, partial))
    return Stored(path, hashlib.sha256(path.read_bytes()).hexdigest())
