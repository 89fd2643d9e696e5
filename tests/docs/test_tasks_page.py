"""The example of docs/tasks.md runs, and the configuration of each task reaches its figure."""

import json
import shlex
from pathlib import Path

import pytest

from tests.commands import left_with
from tests.conftest import ROOT
from tests.docs.pages import beside, files_in

PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
FILES = files_in(PAGE)
LOCAL = ("--set", "executor.kind=in-process", "--set", "tracking.uri=sqlite:///mlflow.db")


def summary_of(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return found


def test_an_own_task_has_30_lines_and_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in FILES["my_counts.py"].splitlines() if line.strip()]
    assert len(lines) <= 30
    with beside(FILES, tmp_path, "my_counts", monkeypatch):
        command = shlex.split(PAGE.split("```sh\n")[1].split("\n")[0])[1:]
        assert left_with(*command, *LOCAL, "--output", "after") == 0
        assert left_with(*command, *LOCAL, "--set", "rounds=1", "--output", "before") == 0
    after, before = summary_of(tmp_path / "after"), summary_of(tmp_path / "before")
    assert after["absolute_error"] < before["absolute_error"]


FIGURES = {
    "text": ("perplexity", 0, 10.0),
    "table": ("rmse", 0, 70.0),
    "segmentation": ("iou", 0.75, 1),
    "lora": ("perplexity", 0, 20.0),
}
"""The primary metric of each configuration, and where it must lie in the end."""


@pytest.mark.long
@pytest.mark.parametrize("name", FIGURES)
def test_the_configuration_of_a_task_reaches_its_figure(name: str, tmp_path: Path) -> None:
    metric, low, high = FIGURES[name]
    overrides = ("--set", "executor.kind=in-process", "--set", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    config = str(ROOT / "jobs" / "configs" / f"{name}.yaml")
    assert left_with("run", config, *overrides, "--output", str(tmp_path / "run")) == 0
    assert low <= summary_of(tmp_path / "run")[metric] <= high
