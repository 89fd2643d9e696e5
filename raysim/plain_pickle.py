"""Reads pickles from outside that hold plain containers and numbers, and nothing else."""

import json
import pickle
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from raysim.errors import SettingError

NUMBER_FORMATS = {
    "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
}  # fmt: skip
"""How `struct` reads what NumPy's types are called."""


def read(path: str, setting: str) -> Any:
    """Return what a pickle or a JSON file holds; no code of the pickle runs.

    Args:
        path: The file.
        setting: Its setting, for errors.

    Raises:
        SettingError: If it cannot be read, or asks for anything but containers, numbers and text.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise SettingError(f"{setting}={path!r} cannot be read: {error.strerror}") from None
    try:
        return json.loads(content) if content[:64].lstrip()[:1] == b"{" else _PlainUnpickler(content).load()
    except _ForbiddenGlobal as error:
        raise SettingError(
            f"{setting}={path!r} asks for {error}, which could run code; allowed: a pickle or JSON of dicts, lists, "
            "numbers and text"
        ) from None
    except Exception as error:  # a broken pickle may raise anything
        cause = f"{type(error).__name__}: {error}"
        raise SettingError(
            f"{setting}={path!r} is no pickle or JSON of dicts, lists, numbers and text ({cause})"
        ) from None


class _ForbiddenGlobal(Exception):  # noqa: N818 - a global, not an error
    pass


class _PlainUnpickler(pickle.Unpickler):
    """Finds no globals but stand-ins for NumPy's single numbers, which traces hold here and there.

    The stand-ins are made for each file: nothing that a pickle does to them outlives it.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(BytesIO(content), encoding="latin1")
        self._stand_ins = _number_stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in, or refuse."""
        try:
            return self._stand_ins[module.replace("numpy._core", "numpy.core"), name]
        except KeyError:
            raise _ForbiddenGlobal(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        """Refuse: plain content refers to nothing outside."""
        raise _ForbiddenGlobal(f"the outside object {pid!r}")


def _number_stand_ins() -> dict[tuple[str, str], Callable[..., Any]]:
    class NumberType:
        def __init__(self, kind: str, *_: object) -> None:
            self.format, self.order = NUMBER_FORMATS[kind], "<"

        def __setstate__(self, state: tuple[Any, ...]) -> None:
            self.order = {"<": "<", ">": ">", "|": "<"}[state[1]]

    def number(kind: NumberType, content: str | bytes) -> float:
        raw = content.encode("latin1") if isinstance(content, str) else content
        value: float = struct.unpack(kind.order + kind.format, raw)[0]
        return value

    def encoded(text: str, _codec: str) -> bytes:
        return text.encode("latin1")  # how bytes were written before protocol 3

    return {
        ("numpy", "dtype"): NumberType, ("numpy.core.multiarray", "scalar"): number, ("_codecs", "encode"): encoded,
    }  # fmt: skip
