"""Write files on this machine so that they appear whole or not at all."""

import hashlib
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path

PARTIAL = re.compile(r"\..*\.[0-9a-f]{12}\.partial")
"""Names of incomplete files."""


def write_atomically(path: Path, write: Callable[[Path], object], flush_folder: bool = True) -> Path:
    """Let `write` fill a file beside `path`, flush it to the disk, then rename it to `path`.

    Each call fills a file of its own: of two simultaneous writers the one that ends last wins, with its whole file.

    Args:
        path: Path of the final file.
        write: Fills the file at the path that it receives.
        flush_folder: Whether the name, too, is on the disk when this returns.
    """
    partial = path.with_name(partial_name(path.name))
    try:
        write(partial)
        flush(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if flush_folder:
        flush(path.parent)
    return path


def partial_name(name: str) -> str:
    """Return the name of a file until it is complete."""
    return f".{name}.{uuid.uuid4().hex[:12]}.partial"


def remove_partials(folder: Path) -> None:
    """Delete the incomplete files of killed writers in a folder and below."""
    for partial in folder.rglob(".*.partial"):
        if PARTIAL.fullmatch(partial.name) and not partial.is_dir():
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write a text file atomically."""
    return write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Wait until a file or folder has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
