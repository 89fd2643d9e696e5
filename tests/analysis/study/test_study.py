"""A study runs its cells as comparisons, goes on where it was stopped, and its page has what its results have."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from raysim.analysis.study import cells, page
from raysim.analysis.study.results import RUN, Result, of_runs, read
from raysim.cli.main import cli
from raysim.config import loader
from raysim.core import signals
from raysim.core.errors import SettingError
from tests.commands import left_with
from tests.conftest import CONFIGS, TINY

SET = dict(loader.parse_override(override) for override in TINY) | {"rounds": 2, "data.validation_share": 0.2}
COMPARISON = {
    "base": str(CONFIGS / "digits.yaml"),
    "set": SET,
    "methods": ["fedavg", {"name": "heterofl", "set": {"training.learning_rate": 0.1}}, "ca-hfp"],
    "tune": {"grid": {"training.learning_rate": [0.02, 0.5]}, "rounds": 1, "seeds": [7]},
    "seeds": [0],
}
STUDY = {
    "title": "Digits, small",
    "about": "Two cells.",
    "cells": {
        "core": {"base": "core.yaml"},
        "even": {
            "base": "core.yaml", "about": "Equal classes.", "set": {"data.partition.alpha": 50.0}, "seeds": [0],
            "rows": ["fedavg", "ca-hfp"], "tuned_as": "core",
        },
    },
    "contrasts": [
        {"question": "Does curvature beat dense?", "cell": "core", "row": "ca-hfp", "against": "fedavg"},
        {"question": "And where classes are even?", "cell": "even", "row": "ca-hfp", "against": "core/ca-hfp"},
    ],
}  # fmt: skip

ALONE = {"contrasts": []}


def written(folder: Path, **changes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "core.yaml").write_text(yaml.safe_dump(COMPARISON), encoding="utf-8")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY | changes), encoding="utf-8")
    return folder


def ran(folder: Path, *options: str, output: str = "out") -> int:
    uri = f"tracking.uri=sqlite:///{folder}/mlflow.db"
    given = ["study", str(folder), "--set", uri, "--output", str(folder / output), *options]
    return left_with(*given, command=cli)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = written(tmp_path_factory.mktemp("study"))
    assert ran(folder) == 0
    return SimpleNamespace(folder=folder, results=read(folder / "results.jsonl"))


def runs_of(results: list[Result]) -> dict[tuple[str, str, int], Result]:
    return {(each.cell, each.row, each.seed): each for each in results if each.kind == "run"}


@pytest.mark.slow
def test_each_run_and_trial_has_a_line_with_its_origin(finished):
    kinds = [(each.cell, each.kind) for each in finished.results]
    assert [kinds.count(kind) for kind in (("core", "trial"), ("core", "run"), ("even", "run"))] == [4, 3, 2]
    for each in finished.results:
        assert each.machine["version.torch"]
        assert int(each.machine["cpus"]) > 0
        assert len(each.commit.removesuffix("-dirty")) == 40
        assert each.ended.endswith("Z")
        assert each.wall_s > 0


@pytest.mark.slow
def test_a_cell_that_is_tuned_as_another_has_its_values(finished):
    runs = runs_of(finished.results)
    for row in ("fedavg", "ca-hfp"):
        lent = runs["even", row, 0].values
        assert lent == runs["core", row, 0].values
        trials = {
            each.values["training.learning_rate"]: each.figures["validation_accuracy"]
            for each in finished.results
            if each.kind == "trial" and each.row.startswith(row)
        }
        assert trials[lent["training.learning_rate"]] == max(trials.values())


@pytest.mark.slow
def test_a_study_goes_on_where_it_was_stopped_and_ends_with_the_same_figures(finished, tmp_path):
    lines = (finished.folder / "results.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    lost = next(index for index, line in enumerate(lines) if '"kind": "run"' in line and '"heterofl"' in line)
    folder = written(tmp_path)
    kept = [*lines[:lost], *lines[lost + 1 : -1], lines[-1][:50]]
    (folder / "results.jsonl").write_text("".join(kept), encoding="utf-8")
    assert ran(folder) == 0
    again = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    assert again[:-2] == kept[:-1], "nothing else is executed"
    before, after = runs_of(finished.results), runs_of(read(folder / "results.jsonl"))
    assert before.keys() == after.keys()
    for key, result in after.items():
        assert result.figures["params_sha256"] == before[key].figures["params_sha256"]
    table = json.loads((folder / "out" / "core" / "comparison.json").read_text(encoding="utf-8"))
    assert len(table["runs"]) == 3


@pytest.mark.slow
def test_results_of_another_split_are_not_taken(finished, tmp_path):
    folder = written(tmp_path)
    changed = [json.loads(line) for line in (finished.folder / "results.jsonl").open(encoding="utf-8")]
    for line in changed:
        line["split"]["data"] = "0" * 64
    text = "".join(json.dumps(line) + "\n" for line in changed)
    (folder / "results.jsonl").write_text(text, encoding="utf-8")
    assert ran(folder, "--cells", "core") == 0
    assert len((folder / "results.jsonl").read_text(encoding="utf-8").splitlines()) == len(changed) + 7


@pytest.mark.slow
def test_results_of_a_method_with_other_defaults_are_not_taken(finished):
    """An option that was added later was at the common default before."""
    study = cells.load(finished.folder)
    runs = study.tuned("core", finished.results).runs
    own = [each for each in finished.results if each.cell == "core"]
    assert len(of_runs(own, "core", RUN, runs)) == 3
    for options, kept in ({"fill": "zero"}, 1), ({"score_decay": 0.5}, 2), ({}, 3):  # fedavg has no fill
        changed = [replace(each, method=each.method | options) for each in own]
        assert len(of_runs(changed, "core", RUN, runs)) == kept
    for missing, kept in ("unseen", 3), ("fill", 2):  # heterofl's `fill` is not the common one
        fewer = [replace(each, method={k: v for k, v in each.method.items() if k != missing}) for each in own]
        assert len(of_runs(fewer, "core", RUN, runs)) == kept


@pytest.mark.slow
def test_the_page_has_the_tables_questions_and_figure_of_the_results_alone(finished):
    text = (finished.folder / "README.md").read_text(encoding="utf-8")
    (finished.folder / "README.md").unlink()
    figure = (finished.folder / page.FIGURE).read_bytes()
    assert left_with("study", str(finished.folder), "--page", command=cli) == 0
    assert (finished.folder / "README.md").read_text(encoding="utf-8") == text
    assert (finished.folder / page.FIGURE).read_bytes() == figure
    runs = runs_of(finished.results)
    difference = runs["even", "ca-hfp", 0].figures["accuracy"] - runs["core", "ca-hfp", 0].figures["accuracy"]
    assert f"| And where classes are even? | even | ca-hfp | core/ca-hfp | {100 * difference:+.1f} | 1 |" in text
    assert "## even\n\nEqual classes.\n\nSeeds 0. Values of the grid as in `core`." in text
    assert "5 runs and 4 trials" in text
    assert text.count("| heterofl |") == 1


@pytest.mark.slow
def test_results_of_other_settings_are_not_on_the_page(finished, tmp_path):
    lines = [json.loads(line) for line in (finished.folder / "results.jsonl").open(encoding="utf-8")]
    stale = [line | {"key": "0" * 64, "figures": line["figures"] | {"accuracy": 1.0}} for line in lines]
    folder = written(tmp_path)
    text = "".join(json.dumps(line) + "\n" for line in [*lines, *stale])
    (folder / "results.jsonl").write_text(text, encoding="utf-8")
    assert left_with("study", str(folder), "--page", command=cli) == 0
    pages = [each / "README.md" for each in (folder, finished.folder)]
    ours, theirs = (each.read_text(encoding="utf-8").partition("## ")[2] for each in pages)
    assert ours == theirs


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, ["--cells", "cor"], "--cells='cor': 'cor' is no cell of the study; it has: core, even"),
        ({}, ["--set", "rounds=3"], "--set 'rounds' is not allowed, since the results would be those of another"),
        ({"cells": {}}, [], "cells is empty, which is not allowed; allowed: at least one"),
        ({"cells": {"a": {"base": "core.yaml", "row": ["fedavg"]}}}, [], "cells.a.row=['fedavg'] is not a setting;"),
        (ALONE | {"cells": {"a": {"base": "core.yaml", "rows": ["fedvag"]}}}, [], "cells: 'a': rows: 'fedvag' is no"),
        (ALONE | {"cells": {"a": {"base": "core.yaml", "seeds": []}}}, [], "cells: 'a': seeds is empty"),
        (ALONE | {"cells": {"a": {"base": "none.yaml"}}}, [], "CONFIG="),
        ({"cells": {"../a": {"base": "core.yaml"}}}, [], "cells: '../a' is no name of a cell; allowed: letters"),
        (
            ALONE | {"cells": {"a": {"base": "core.yaml", "tuned_as": "b"}}}, [],
            "cells.a.tuned_as='b' is no cell; the study has: a",
        ),
        (
            ALONE | {"cells": {"a": {"base": "core.yaml", "tuned_as": "a"}}}, [],
            "cells.a.tuned_as='a' is not allowed; allowed: a cell that tunes its own rows",
        ),
        (
            ALONE | {"cells": {"a": {"base": "core.yaml", "tuned_as": ""}}}, [], "cells.a.tuned_as='' is no cell",
        ),
        (
            ALONE | {"cells": {
                "a": {"base": "core.yaml", "rows": ["fedavg"]}, "b": {"base": "core.yaml", "tuned_as": "a"},
            }}, [], "cells: 'b': no row of tuned_as='a' has the label 'heterofl' or its method's name",
        ),
        ({}, ["--cells", "core,core"], "--cells='core,core': 'core' is given twice"),
        ({}, ["--results", "x.md"], "--results='x.md' is not allowed; allowed: a file whose name ends in .jsonl"),
        (
            ALONE | {"cells": {"a": {"base": "core.yaml", "set": {"training.epochs": 0}}}}, [],
            "cells: 'a': training.epochs=0 is not allowed",
        ),
        (
            {"contrasts": [{"question": "?", "cell": "core", "row": "ca-hfp", "against": "fedvag"}]}, [],
            "contrasts.0.against='fedvag' is no row of the cell 'core'; it has: fedavg, ",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_written(tmp_path, capsys, changes, options, message):
    folder = written(tmp_path / "study", **changes)
    assert ran(folder, *options) == signals.BAD_INPUT
    assert capsys.readouterr().err.startswith(f"raysim: {message}")
    assert sorted(path.name for path in folder.iterdir()) == ["core.yaml", "study.yaml"]


def test_values_of_a_cell_without_results_are_not_lent(tmp_path):
    study = cells.load(written(tmp_path))
    with pytest.raises(
        SettingError, match=r"tuned_as='core' has no results of 'fedavg, learning_rate 0\.02' yet; run"
    ):
        study.comparison("even", [])


def test_a_damaged_line_is_refused(tmp_path, capsys):
    folder = written(tmp_path / "study")
    (folder / "results.jsonl").write_text('{"cell": 3}\n', encoding="utf-8")
    assert ran(folder, "--page") == signals.BAD_INPUT
    assert "results.jsonl' cannot be read: line 1 is damaged" in capsys.readouterr().err
