"""Read a study: a folder with `study.yaml`, each of whose cells is a comparison."""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raysim.analysis.study import tuning
from raysim.analysis.study.plan import Comparison, Run, adapted, normalised, plan
from raysim.analysis.study.results import TRIAL, VALIDATION, Result, of_runs
from raysim.analysis.study.settings import CellSettings, ComparisonSettings, MethodEntry, StudySettings
from raysim.config import loader
from raysim.core.errors import SettingError, nearest_first
from raysim.core.storage.expansion import expanded_text

FILE = "study.yaml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """A study that is ready to run.

    Attributes:
        folder: Its folder.
        settings: The content of its file.
        cells: The comparison of each cell, in the order of the file, without values that another cell lends its rows.
    """

    folder: Path
    settings: StudySettings
    cells: Mapping[str, ComparisonSettings]

    def unlent(self, cell: str, overrides: Sequence[str] = ()) -> Comparison:
        """Return the comparison of a cell, without the values that another cell lends its rows."""
        is_lent = self.settings.cells[cell].tuned_as is not None
        settings = self.cells[cell].model_copy(update={"tune": None}) if is_lent else self.cells[cell]
        return plan(adapted(settings, overrides))

    def comparison(self, cell: str, results: Sequence[Result], overrides: Sequence[str] = ()) -> Comparison:
        """Return the comparison of a cell, in which rows that are tuned as another cell's have their values.

        Args:
            cell: The name of the cell.
            results: The results so far, which have the trials of the other cell.
            overrides: Settings that replace those of all rows, as `executor.kind=ray`.

        Raises:
            SettingError: If a setting is not allowed, or the other cell's trials are not complete.
        """
        settings, other = self.cells[cell], self.settings.cells[cell].tuned_as
        if other is not None:
            lender = adapted(self.cells[other], overrides)
            changes = {"methods": _lent(cell, settings, other, lender, results), "tune": None}
            settings = settings.model_copy(update=changes)
        return plan(adapted(settings, overrides))

    def tuned(self, cell: str, results: Sequence[Result], overrides: Sequence[str] = ()) -> Comparison | None:
        """Return the comparison of a cell, with its trials and the values they found; None where some are missing."""
        try:
            comparison = self.comparison(cell, results, overrides)
        except SettingError:
            return None
        found = _scores(cell, comparison.trials, results)
        if len(found) < len(comparison.trials):
            return None
        if not found:
            return comparison
        tuned = plan(tuning.judged(comparison.settings, found.items(), comparison.primary).settings)
        return replace(tuned, trials=comparison.trials)


def load(folder: Path) -> Study:
    """Read the study in a folder, and check its cells.

    Raises:
        SettingError: If a file cannot be read or a setting is not allowed; the message names the cell.
    """
    content = dict(loader.read_yaml(folder / FILE, "STUDY"))
    sections = content.get("cells")
    if isinstance(sections, dict):
        content["cells"] = {name: _with_base(section, folder) for name, section in sections.items()}
    settings = loader.validated(content, StudySettings)
    if not settings.cells:
        raise SettingError("cells is empty, which is not allowed; allowed: at least one")
    _check_names(settings)
    cells = {}
    for name, cell in settings.cells.items():
        try:
            cells[name] = _comparison_of(cell)
            plan(cells[name])
        except SettingError as error:
            raise SettingError(f"cells: {name!r}: {error}") from None
    _check_contrasts(settings, cells)
    _check_lenders(settings, cells)
    return Study(folder, settings, cells)


def _check_lenders(settings: StudySettings, cells: Mapping[str, ComparisonSettings]) -> None:
    """Refuse rows that no row of the other cell lends its values."""
    for name, cell in settings.cells.items():
        if cell.tuned_as is None:
            continue
        lender = cells[cell.tuned_as]
        if lender.tune is None:
            raise SettingError(f"cells.{name}.tuned_as={cell.tuned_as!r} tunes nothing; allowed: a cell with tune")
        labels = [entry.title for entry in lender.methods]
        for entry in cells[name].methods:
            if entry.title not in labels and entry.name not in labels:
                raise SettingError(
                    f"cells: {name!r}: no row of tuned_as={cell.tuned_as!r} has the label {entry.title!r} or its "
                    f"method's name; that cell has: {', '.join(labels)}"
                )


def _check_contrasts(settings: StudySettings, cells: Mapping[str, ComparisonSettings]) -> None:
    """Refuse a question about a row that is not in its cell."""
    for index, contrast in enumerate(settings.contrasts):
        own, other = (contrast.cell, contrast.row), contrast.other(cells)
        for field, given, (cell, label) in (("row", contrast.row, own), ("against", contrast.against, other)):
            labels = [entry.title for entry in cells[cell].methods]
            if label not in labels:
                known = ", ".join(nearest_first(label, labels))
                raise SettingError(
                    f"contrasts.{index}.{field}={given!r} is no row of the cell {cell!r}; it has: {known}"
                )


def _with_base(section: Any, folder: Path) -> Any:
    if not isinstance(section, dict) or not isinstance(section.get("base"), str):
        return section
    return section | {"base": loader.read_with_base(folder / expanded_text("base", section["base"]))}


def _check_names(settings: StudySettings) -> None:
    """Refuse names that are no cell's, or cannot be, and cells that are tuned as one that does not tune its rows."""
    for name in settings.cells:
        if not NAME.fullmatch(name):
            raise SettingError(f"cells: {name!r} is no name of a cell; allowed: letters, digits, '.', '_' and '-'")
    lenders = {name: cell.tuned_as for name, cell in settings.cells.items() if cell.tuned_as is not None}
    named = [(f"cells.{name}.tuned_as", lender) for name, lender in lenders.items()]
    named += [(f"contrasts.{index}.cell", each.cell) for index, each in enumerate(settings.contrasts)]
    for where, name in named:
        if name not in settings.cells:
            known = ", ".join(nearest_first(name, settings.cells))
            raise SettingError(f"{where}={name!r} is no cell; the study has: {known}")
    for where, name in named:
        if where.endswith("tuned_as") and name in lenders:
            raise SettingError(f"{where}={name!r} is not allowed; allowed: a cell that tunes its own rows")


def _comparison_of(cell: CellSettings) -> ComparisonSettings:
    """Return the comparison of a cell."""
    content = normalised(copy.deepcopy(cell.base))
    comparison = loader.validated(content, ComparisonSettings)
    changes: dict[str, Any] = {"set": comparison.set | cell.set}
    if cell.rows is not None:
        by_label = {entry.title: entry for entry in comparison.methods}
        for label in cell.rows:
            if label not in by_label:
                known = ", ".join(nearest_first(label, by_label))
                raise SettingError(f"rows: {label!r} is no row of the comparison; it has: {known}")
        changes["methods"] = [by_label[label] for label in cell.rows]
    if cell.seeds is not None:
        changes["seeds"] = list(cell.seeds)
    return adapted(comparison.model_copy(update=changes), ())


def _lent(
    cell: str, settings: ComparisonSettings, other: str, lender: ComparisonSettings, results: Sequence[Result]
) -> list[MethodEntry]:
    """Return the rows of a cell, each with the values that a row was given in another cell.

    It is the row of the same label or, if there is none, the one with the method's name.
    """
    if lender.tune is None:
        return settings.methods
    planned = plan(lender)
    trials = planned.trials
    found = _scores(other, trials, results)
    missing = next((trial.label for index, trial in enumerate(trials) if index not in found), None)
    if missing is not None:
        raise SettingError(f"cells: {cell!r}: tuned_as={other!r} has no results of {missing!r} yet; run it first")
    tuned = {
        entry.title: entry.set for entry in tuning.judged(lender, found.items(), planned.primary).settings.methods
    }
    rows = []
    for entry in settings.methods:
        lent = tuned.get(entry.title) or tuned[entry.name]
        values = {name: lent[name] for name in lender.tune.grid if name in lent}
        rows.append(entry.model_copy(update={"set": values | entry.set}))
    return rows


def _scores(cell: str, trials: Sequence[Run], results: Sequence[Result]) -> dict[int, float | str]:
    """Return the score of each trial of a cell that has a result, or why it failed, by the trial's index."""
    found = of_runs(results, cell, TRIAL, trials)
    names = {index: run.settings.task.primary_metric.recorded(VALIDATION) for index, run in enumerate(trials)}
    return {index: each.failure or float(each.figures[names[index]]) for index, each in found.items()}
