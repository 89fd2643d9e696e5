"""Only the task package computes losses; classes are used in a few named modules."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

LOSSES = {"cross_entropy", "nll_loss", "mse_loss", "binary_cross_entropy_with_logits", "CrossEntropyLoss", "NLLLoss"}

OF_CLASSES = {
    "analysis/comparison": "targets of a comparison lie above chance",
    "analysis/study": "targets of a comparison lie above chance",
    "analysis/sweep/trial.py": "the record of a trial",
    "analysis/tables/means.py": "targets of a comparison lie above chance",
    "calibration": "calibrates networks that classify",
    "client/local_rules.py": "own classes of a client (HeteroFL)",
    "simulation/aggregation.py": "own classes of a client (HeteroFL)",
    "simulation/build.py": "outputs of the network that is built",
    "simulation/task.py": "class weights and metrics of each class",
    "experiment/finish.py": "picture of the partition",
    "experiment/start.py": "the record of a run",
    "tracking/datasets.py": "rows of each class of a data set",
}
"""Where besides task/, data/ and models/ classes are counted, and what for."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted((ROOT / "raysim").rglob("*.py")):
        yield str(file.relative_to(ROOT / "raysim")), ast.parse(file.read_text(encoding="utf-8"))


def names_in(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg | ast.keyword):
            yield node.arg or "**"
        elif isinstance(node, ast.alias):
            yield node.name.rpartition(".")[2]


def greatest_outputs(tree: ast.Module) -> Iterator[int]:
    """Lines that look for the greatest entry along a dimension of a tensor; arrays have axes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "argmax":
            along = [argument for argument in node.args if isinstance(argument, ast.Constant | ast.UnaryOp)]
            if along or any(keyword.arg == "dim" for keyword in node.keywords):
                yield node.lineno


@pytest.mark.slow
def test_losses_and_greatest_outputs_are_found_in_the_task_alone():
    found = {name for name, tree in modules() if LOSSES & set(names_in(tree)) or list(greatest_outputs(tree))}
    homes = ("classification", "metrics", "numbers", "positions")
    assert found == {f"task/{home}.py" for home in homes}


@pytest.mark.slow
def test_classes_are_counted_where_they_are_meant():
    found = {name for name, tree in modules() if "num_classes" in names_in(tree)}
    others = {name for name in found if Path(name).parts[0] not in ("task", "data", "models")}
    homes = {name: [home for home in OF_CLASSES if name.startswith(home)] for name in others}
    assert [name for name, known in homes.items() if not known] == []
    assert {home for known in homes.values() for home in known} == set(OF_CLASSES), "what is not needed goes out"
