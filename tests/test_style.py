"""Rules that no tool checks: what the code of raysim never does."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

MODULES = sorted((ROOT / "raysim").rglob("*.py"))


def changed_targets(tree: ast.AST) -> Iterator[ast.expr]:
    """What statements assign to or delete."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.Delete):
            yield from node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            yield node.target


def patches_modules(tree: ast.AST) -> bool:
    """Whether code changes `sys.modules` or raises an exception in another thread."""
    touched = [ast.unparse(target) for target in changed_targets(tree)]
    called = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return any("sys.modules" in target for target in touched) or any(
        (name.startswith("sys.modules.") and not name.endswith((".get", ".keys", ".values", ".items")))
        or "PyThreadState_SetAsyncExc" in name
        for name in called
    )


@pytest.mark.parametrize(
    "code",
    [
        "sys.modules['torch'] = stub",
        "del sys.modules['torch'], x",
        "sys.modules.update(torch=stub)",
        "sys.modules.pop('torch')",
        "ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, error)",
    ],
)
def test_the_check_finds_patches(code):
    assert patches_modules(ast.parse(code))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_patches_others_or_raises_into_threads(path: Path):
    assert not patches_modules(ast.parse(path.read_text(encoding="utf-8")))
