"""The code on the pages in docs/ runs unchanged: their files are written, their commands are run."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from raysim.cli import main as cli
from raysim.config import loader
from raysim.core import tensors
from raysim.methods.table import METHODS
from raysim.pruning.masks import num_kept
from raysim.simulation import checkpoint, cohort
from raysim.simulation.build import build_scenario
from raysim.simulation.participants import respond, select_clients
from raysim.simulation.transition import initial_state
from tests.commands import left_with
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "your_own_method.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```\w+ (\S+\.\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^```sh\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
TINY = (
    "rounds=2", "population.clients=6", "selection.clients_per_round=6", "training.epochs=1",
    "model.options={channels: [4, 8], hidden: 16}", "tracking.uri=sqlite:///mlflow.db",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder with the page's files, and this process in it."""
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in FILES:
        sys.modules.pop(Path(name).stem, None)


def arguments(command: str, *overrides: str, output: str) -> list[str]:
    given = [part for override in (*TINY, *overrides) for part in ("--set", override)]
    return [*shlex.split(command)[1:], *given, "--output", output]


def digest_of(output: Path) -> str:
    return tensors.digest(checkpoint.load(output / "checkpoints" / "round_000002.safetensors").params)


def run_here(command: str, *overrides: str, output: str) -> str:
    assert left_with(*arguments(command, *overrides, output=output)) == 0
    return digest_of(Path(output))


def test_the_page_has_files_and_a_command_for_each_part():
    assert list(FILES) == ["my_scores.py", "my_experiment.yaml", "my_masks.py", "my_fills.py", "my_method.py"]
    assert len(COMMANDS) == 4
    assert sum(len(FILES[name].splitlines()) for name in ("my_scores.py", "my_experiment.yaml")) <= 30


@pytest.mark.long
def test_each_part_runs_and_makes_a_difference(folder):
    digests = [run_here(COMMANDS[0], "method.score=null", output="magnitude")]
    for place, command in enumerate(COMMANDS):
        digests.append(run_here(command, output=f"run{place}"))
    assert len(set(digests)) == 5


@pytest.mark.slow
def test_the_command_works_as_its_user_types_it(folder):
    command = [sys.executable, "-m", "raysim", *arguments(COMMANDS[0], output="typed"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["method"] == "magnitude"
    reversed_score = FILES["my_scores.py"].replace("** 0.5", "** 0.5 * -1")
    (folder / "my_scores.py").write_text(reversed_score, encoding="utf-8")
    assert run_here(COMMANDS[0], output="reversed") != digest_of(folder / "typed")


def masks_of(folder: Path, *overrides: str):
    settings = loader.load(folder / "my_experiment.yaml", (*TINY, *overrides))
    scenario = build_scenario(settings)
    state = initial_state(scenario)
    members, _ = respond(scenario, state, select_clients(scenario, state, scenario.cohort_size))
    view = cohort.view_of(scenario, state, members)
    masks, _ = cohort.choose_masks(scenario, view)
    return view, scenario.method.score(view), masks


def test_the_channels_that_stay_are_those_the_score_ranks_highest(folder):
    view, scores, masks = masks_of(folder)
    first = view.plan.groups[0].name
    filters = view.params[f"{first}.weight"].double().flatten(1).norm(dim=1).numpy()
    biases = view.params[f"{first}.bias"].double().numpy()
    units = view.plan.units[first]
    assert scores[units] == pytest.approx(np.hypot(filters, biases))
    assert 0.5 in view.keep_ratios
    for mask, keep_ratio in zip(masks, view.keep_ratios, strict=True):
        for group in view.plan.groups:
            units = view.plan.units[group.name]
            best = np.argsort(-scores[units], kind="stable")[: num_kept(group.size, keep_ratio)]
            assert sorted(np.flatnonzero(mask.kept[units])) == sorted(best)


def test_the_mask_rule_keeps_to_the_budgets_and_half_to_the_ranking(folder):
    view, scores, masks = masks_of(folder, "method.mask=my_masks:half_explored")
    for mask, keep_ratio in zip(masks, view.keep_ratios, strict=True):
        for group in view.plan.groups:
            units, room = view.plan.units[group.name], num_kept(group.size, keep_ratio)
            assert mask.kept[units].sum() == room
            assert mask.kept[units.start + np.argsort(-scores[units])[: (room + 1) // 2]].all()


@pytest.mark.ray
@pytest.mark.long
def test_the_users_modules_travel_to_ray(folder):
    every_part = ("method.mask=my_masks:half_explored", "method.fill=my_fills:majority")
    on_ray = ("executor.kind=ray", "executor.num_actors=2")
    typed = arguments(COMMANDS[3], *every_part, *on_ray, output="ray")
    done = subprocess.run([sys.executable, "-m", "raysim", *typed], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert digest_of(folder / "ray") == run_here(COMMANDS[3], *every_part, output="here")


def test_the_readme_has_every_method_with_its_source():
    section = README.split("## Methods\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\S+)` \| (.+) \| (.+) \|$", section, re.MULTILINE)
    listed = {name: source for name, _, source in rows if name in METHODS}
    assert listed == {name: row.source for name, row in METHODS.items()}
    assert list(listed) == list(METHODS)


def test_the_readme_has_every_command_and_page_and_names_no_file_that_is_not_there():
    for name in cli.cli.commands:
        assert f"| `raysim {name}" in README
    tables = README.split("\n## Working on it")[0]
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in tables
    tree = README.split("\nraysim/\n")[1].split("\n```")[0]
    named = [each for line in tree.splitlines() if line.startswith("  ") for each in re.findall(r"\S+/(?= )", line)]
    packages = {f"{path.parent.name}/" for path in (ROOT / "raysim").glob("*/__init__.py")}
    assert set(named) - {"study/", "comparison/", "replay/", "sweep/"} == packages
