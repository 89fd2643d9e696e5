"""All names in docs/architecture.md exist, and it names every package."""

import importlib
import re
from operator import attrgetter
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_layers import LAYERS

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
LINKS = re.findall(r"\[`?([^\]`]+)`?\]\(([^)]+)\)", PAGE)
LINKED_NAMES = [(name, target) for name, target in LINKS if re.fullmatch(r"[\w.]+", name) and target.endswith(".py")]
PATHS = sorted(set(re.findall(r"`([\w/.-]+(?:/|\.py|\.yaml))`", PAGE)))
TREE = PAGE.split("## The tree\n")[1].split("\n## ")[0]
CHANGES = re.findall(r"^\| (.+) \| \[`(\S+)`\]\((\S+)\) \| (.+) \|$", PAGE, re.MULTILINE)


def module_of(target: str) -> str:
    """The dotted name of the module a link leads to."""
    path = (ROOT / "docs" / target).resolve().relative_to(ROOT)
    return ".".join(path.with_suffix("").parts)


def is_there(path: str, folders: list[Path]) -> bool:
    return any((folder / path).exists() for folder in folders)


@pytest.mark.parametrize("target", sorted({target for _, target in LINKS}))
def test_a_link_leads_to_a_file(target: str) -> None:
    assert (ROOT / "docs" / target).is_file()


def test_the_walk_links_functions() -> None:
    assert len(LINKED_NAMES) > 15


@pytest.mark.parametrize(("name", "target"), LINKED_NAMES)
def test_a_linked_name_is_defined_there(name: str, target: str) -> None:
    module = importlib.import_module(module_of(target))
    assert attrgetter(name)(module).__module__ == module.__name__


@pytest.mark.parametrize("path", PATHS)
def test_a_named_path_is_there(path: str) -> None:
    folders = [folder for folder in (ROOT / "raysim").rglob("*") if folder.is_dir()] if "/" not in path else []
    assert is_there(path, [ROOT, ROOT / "raysim", *folders])


def test_the_tree_is_the_layers() -> None:
    rows = [set(re.findall(r"`(\w+)`", row)) for row in re.findall(r"^\| (`.+?) \|", TREE, re.MULTILINE)]
    assert rows == [set(line.split(" | ")) for line in LAYERS]


@pytest.mark.parametrize("change", ["method", "clock mode", "data set", "task", "tracker", "compression", "GPU"])
def test_a_change_has_one_folder(change: str) -> None:
    ((folder, target, how),) = [where for what, *where in CHANGES if change in what]
    assert (ROOT / "docs" / target).resolve().parent == ROOT / folder
    module = importlib.import_module(module_of(target))
    assert [name for name in re.findall(r"`([A-Z]\w+)`", how) if not hasattr(module, name)] == []
