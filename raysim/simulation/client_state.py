"""Memory of single clients that methods keep: in RAM until a checkpoint, then on disk and read when needed."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from safetensors.torch import load, save

from raysim.core.storage.path import StoragePath
from raysim.core.tensors import Params


class DamagedMemoryError(RuntimeError):
    """A client's file is missing or does not have the recorded digest."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The tensors of one client, in a file."""

    path: StoragePath
    sha256: str

    def load(self) -> Params:
        """Read the tensors.

        Raises:
            DamagedMemoryError: If the file is missing or damaged.
            OSError: If it exists and cannot be read.
        """
        try:
            content = self.path.read()
        except FileNotFoundError as error:
            raise DamagedMemoryError(f"{self.path} cannot be read: {error.strerror or error}") from None
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise DamagedMemoryError(f"{self.path} is damaged: it does not have the digest that was recorded")
        loaded: Params = load(content)
        return loaded


class ClientMemory(Mapping[int, Params]):
    """Tensors by client id; those on disk are read at each access."""

    def __init__(self, entries: Mapping[int, Params | Stored]) -> None:
        self.entries = dict(entries)

    def __getitem__(self, client: int) -> Params:
        entry = self.entries[client]
        return entry.load() if isinstance(entry, Stored) else entry

    def __iter__(self) -> Iterator[int]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def stored(self, folder: StoragePath, round: int) -> "ClientMemory":
        """Write what is not on disk yet, one safetensors file per client and version, and drop it from RAM."""
        fresh = {client: entry for client, entry in self.entries.items() if not isinstance(entry, Stored)}
        if not fresh:
            return self
        contents = {client: save(_contiguous(tensors)) for client, tensors in fresh.items()}
        names = {client: f"{client:07d}_{round:06d}.safetensors" for client in fresh}
        folder.write_all({names[client]: content for client, content in contents.items()})
        stored = {
            client: Stored(folder / names[client], hashlib.sha256(content).hexdigest())
            for client, content in contents.items()
        }
        return ClientMemory({**self.entries, **stored})


def version_of(file: StoragePath) -> tuple[int, int] | None:
    """Return the client and the round of a file; None for a file that this module did not write."""
    named = re.fullmatch(r"(\d+)_(\d+)\.safetensors", file.name)
    return None if named is None else (int(named[1]), int(named[2]))


def updated(old: Mapping[int, Params], new: Mapping[int, Params]) -> ClientMemory:
    """Return a memory in which the new tensors of a client replace its old ones of the same names."""
    entries: dict[int, Params | Stored] = dict(old.entries if isinstance(old, ClientMemory) else old)
    for client, tensors in new.items():
        entries[client] = {**(old[client] if client in entries else {}), **tensors}
    return ClientMemory(entries)


def _contiguous(tensors: Params) -> Params:
    return {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
