"""Pages of docs/ whose examples run: their files, and a working directory that has them."""

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest


def files_in(page: str) -> dict[str, str]:
    """The example files of a page, by name."""
    return dict(re.findall(r"^```\w+ (\S+\.\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))


@contextmanager
def beside(files: Mapping[str, str], folder: Path, module: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in a folder with some files; the module among them is forgotten afterwards."""
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield folder
    sys.modules.pop(module, None)
