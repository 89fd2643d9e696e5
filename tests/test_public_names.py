"""Names that users' files import keep working, also if modules move."""

import importlib.util
import re
import subprocess
import sys

import pytest

import raysim
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
IMPORT = re.compile(r"^\s*from (raysim[\w.]*) import ([\w, ]+)$", re.MULTILINE)
IMPORTS = sorted({found for page in PAGES for found in IMPORT.findall(page.read_text(encoding="utf-8"))})


@pytest.mark.parametrize("name", raysim.__all__)
def test_a_public_name_is_there(name: str) -> None:
    assert getattr(raysim, name) is not None
    assert name in dir(raysim)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'raysim' has no attribute 'nobody'"):
        _ = raysim.nobody


def test_pages_import_something() -> None:
    assert len(IMPORTS) > 3


@pytest.mark.parametrize(
    ("module", "names"), [*IMPORTS, ("raysim", "seeding"), ("raysim.data.raw", "RawImages, Source")]
)
def test_what_pages_import_is_there(module: str, names: str) -> None:
    there = importlib.import_module(module)
    assert [name for name in names.split(", ") if not hasattr(there, name)] == []


@pytest.mark.parametrize("name", ["sweep", "rounds", "run", "compare"])
def test_names_of_the_coming_interface_are_free(name: str) -> None:
    assert importlib.util.find_spec(f"raysim.{name}") is None
    assert not hasattr(raysim, name)


@pytest.mark.slow
def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "raysim", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0
    assert "Usage:" in done.stdout
