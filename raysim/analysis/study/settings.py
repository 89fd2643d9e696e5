"""The settings of a comparison file."""

import itertools
import re
from collections.abc import Collection
from typing import Any

from raysim.config.settings import Count, Seed, Settings


class MethodEntry(Settings):
    """One row: a method with its own settings; a bare name is a method without any."""

    name: str
    """Method, as in `method.name`."""
    label: str | None = None
    """Name of the row; null: the method's. A method may have several rows with different labels."""
    set: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    """Settings of this row, under `method`, `server`, `training` or `compression`: `{training.epochs: 2}`."""

    @property
    def title(self) -> str:
        """Name of the row."""
        return self.name if self.label is None else self.label

    @property
    def file_name(self) -> str:
        """The row's name as part of a path."""
        return re.sub(r"[^A-Za-z0-9._+-]", "-", self.title)


class TuneSettings(Settings):
    """How each row finds its own best settings before the comparison: by its primary metric on validation rows."""

    grid: dict[str, list[Any]]
    """Values of settings under `method`, `server`, `training` or `compression`, as
    `{training.learning_rate: [0.1, 0.2]}`. Each row tries all combinations; its own values stay."""
    rounds: Count
    """Rounds of a trial."""
    seeds: list[Seed]
    """Seeds of each trial; best ones that the comparison does not have."""

    def without(self, names: Collection[str]) -> "TuneSettings | None":
        """Return the grid without some settings; None: nothing is left."""
        grid = {name: values for name, values in self.grid.items() if name not in names}
        return self.model_copy(update={"grid": grid}) if grid else None

    @property
    def combinations(self) -> list[dict[str, Any]]:
        """Return each combination of values, the last setting's changing fastest."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


class ComparisonSettings(Settings):
    """One comparison."""

    base: dict[str, Any]
    """The settings of an experiment, or the path of its file relative to this one; its method is replaced."""
    set: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    """Settings that replace the base's in all rows, by dotted name: `{rounds: 40}`."""
    methods: list[MethodEntry]
    """The rows, at least one."""
    seeds: list[int]
    """Seeds of every row, at least one; they decide initial weights, batches, cohorts and the clock's variation."""
    tune: TuneSettings | None = None
    """How each row finds its own best settings first; null: it does not."""


class CellSettings(Settings):
    """One cell of a study: a comparison file, and what this cell changes in it."""

    base: dict[str, Any]
    """A comparison, or the path of its file relative to the study's."""
    about: str = ""
    """One sentence below the cell's heading."""
    set: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    """Settings of all rows beyond those of the comparison, by dotted name."""
    rows: list[str] | None = None
    """Labels of the comparison's rows to run; null: all."""
    seeds: list[Seed] | None = None
    """Seeds of every row; null: the comparison's."""
    tuned_as: str | None = None
    """Another cell: each row takes the tuned values of its row with the same label, else of the row with the method's
    name; null: the cell tunes its rows."""


class ContrastSettings(Settings):
    """A question of a study, answered by the paired difference between two rows of a cell."""

    question: str
    """The question."""
    cell: str
    """The cell."""
    row: str
    """The label of the row."""
    against: str
    """The label of the row that it is compared with; of another cell, as `CELL/LABEL`."""

    def other(self, cells: Collection[str]) -> tuple[str, str]:
        """Return the cell and the label of the row that it is compared with."""
        cell, slash, label = self.against.partition("/")
        return (cell, label) if slash and cell in cells else (self.cell, self.against)


class StudySettings(Settings):
    """A study: comparisons, one per cell, and the questions that they answer."""

    title: str
    """The heading of its page."""
    about: str
    """Paragraphs below the heading, in Markdown."""
    cells: dict[str, CellSettings]
    """The cells by name, at least one."""
    contrasts: list[ContrastSettings] = []  # noqa: RUF012 - pydantic copies it
    """Questions, answered in a table."""
