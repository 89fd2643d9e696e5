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


PUBLIC = [
    "ChannelGroup",
    "ChannelPlan",
    "CohortUpdate",
    "DeviceProfile",
    "ExperimentSettings",
    "InProcessExecutor",
    "METHODS",
    "Mask",
    "Method",
    "MethodOptions",
    "Option",
    "RoundReport",
    "RoundView",
    "RunFailedError",
    "Scenario",
    "ServerState",
    "SettingError",
    "Tier",
    "UntraceableError",
    "channel_sums",
    "initial_state",
    "num_kept",
    "run_round",
]
"""Names that users' files import from `raysim` already."""


@pytest.mark.parametrize("name", sorted({*PUBLIC, *raysim.__all__}))
def test_a_public_name_is_there(name: str) -> None:
    assert getattr(raysim, name) is not None
    assert name in dir(raysim)
    assert name in raysim.__all__


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "import raysim.seeding; draw = raysim.seeding.generator",
        "import raysim; draw = raysim.seeding.generator",
        "from raysim import seeding; draw = seeding.generator",
        "from raysim.seeding import generator as draw",
    ],
)
def test_seeding_can_be_imported_in_every_form(statement: str) -> None:
    code = f"{statement}\nfrom raysim.core import seeding as home\nassert draw is home.generator"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_public_module_of_seeding_has_all_that_its_home_has() -> None:
    from raysim.core import seeding as home

    defined = {name for name, value in vars(home).items() if getattr(value, "__module__", "") == home.__name__}
    assert {name for name in defined if not name.startswith("_")} == set(raysim.seeding.__all__)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'raysim' has no attribute 'nobody'"):
        _ = raysim.nobody


def test_pages_import_something() -> None:
    assert len(IMPORTS) > 3


@pytest.mark.parametrize(
    ("module", "names"), [*IMPORTS, ("raysim", "seeding"), ("raysim.data.raw", "RawData, Source")]
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
