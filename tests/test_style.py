"""Rules of style for raysim's code that no other tool checks."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

MODULES = sorted((ROOT / "raysim").rglob("*.py"))
DISPLAYS = ast.Dict | ast.List | ast.Tuple | ast.Set


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


@pytest.mark.slow
@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_patches_others_or_raises_into_threads(path: Path):
    assert not patches_modules(ast.parse(path.read_text(encoding="utf-8")))


SWITCH = re.compile(r"#\s*fmt:\s*(skip|off|on)")


def hand_formatted(source: str) -> Iterator[int]:
    """The lines on which a comment switches the formatter off."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and SWITCH.match(token.string):
            yield token.start[0]


def is_table(node: ast.AST) -> bool:
    """A constant, or the cases of a parametrized test."""
    if isinstance(node, ast.Assign):
        return isinstance(node.value, DISPLAYS) or ast.unparse(node.targets[0]).isupper()
    if isinstance(node, ast.AnnAssign):
        return isinstance(node.value, DISPLAYS) or ast.unparse(node.target).isupper()
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith("parametrize")


def wrongly_hand_formatted(source: str) -> list[int]:
    ends = {node.end_lineno for node in ast.walk(ast.parse(source)) if is_table(node)}
    return [line for line in hand_formatted(source) if line not in ends]


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("TABLE = {\n  1: 2,\n}  # fmt: skip\n", []),
        ("NAMES = A | frozenset({1,\n 2})  # fmt: skip\n", []),
        ("@pytest.mark.parametrize('a', [1,\n 2])  # fmt: skip\ndef test(a): pass\n", []),
        ("text = '# fmt: skip'\n", []),
        ("x = f(a, b,\n c)  # fmt: skip\n", [2]),
        ("def f(\n  a):  # fmt: skip\n  pass\n", [2]),
        ("# fmt: off\nx = 1\n", [1]),
    ],
)
def test_the_check_finds_code_formatted_by_hand(code: str, wrong: list[int]):
    assert wrongly_hand_formatted(code) == wrong


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["raysim", "jobs", "tests"])
def test_only_literal_tables_are_formatted_by_hand(folder: str):
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths
    wrong = {str(path): wrongly_hand_formatted(path.read_text(encoding="utf-8")) for path in paths}
    assert not {path: lines for path, lines in wrong.items() if lines}


QUESTION = re.compile(r"^ *(?:\w+: )?What ", re.MULTILINE)


def definitions_by_what(source: str) -> list[str]:
    """Return the texts that document a name and, or an entry of which, start with "What "."""
    texts = [
        node.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    return [text for text in texts if QUESTION.search(text)]


@pytest.mark.parametrize(
    ("code", "is_wrong"),
    [
        ('"""What a run costs."""', True),
        ('X = 1\n"""What a run costs."""', True),
        ('class A:\n    """A run.\n\n    Attributes:\n        cost: What it costs.\n    """', True),
        ('def f(cost):\n    """Run.\n\n    Args:\n        cost: Its cost.\n            What is more.\n    """', True),
        ('"""The costs of a run: What a name."""', False),
        ('message = "What a run costs."', False),
    ],
)
def test_the_check_finds_definitions_by_what(code: str, is_wrong: bool):
    assert bool(definitions_by_what(code)) == is_wrong


@pytest.mark.slow
def test_no_text_of_a_name_starts_with_what():
    found = {str(path): definitions_by_what(path.read_text(encoding="utf-8")) for path in MODULES}
    assert not {path: texts for path, texts in found.items() if texts}
