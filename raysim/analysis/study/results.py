"""The results file of a study: one line for each run and each trial, so that a study goes on where it was stopped."""

import functools
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from raysim.analysis.study.plan import Run
from raysim.core import provenance
from raysim.core.storage import json_lines
from raysim.experiment.start import environment
from raysim.methods.method import Method
from raysim.methods.options import MethodOptions
from raysim.simulation.build import method_of

NAME = "results.jsonl"
RUN, TRIAL = "run", "trial"
VALIDATION = "validation_primary"
"""The figure of a trial; in the file it is named after the metric."""
PLACES = ("executor", "tracking", "checkpoint", "experiment")
"""Groups of settings that decide where a run is computed and recorded, not its result."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a run, or of a trial.

    Attributes:
        cell: The cell of the study.
        kind: `run`, or `trial` where it tunes a row.
        row: The label of its row.
        seed: Its seed.
        values: Settings of its row, by dotted name; the tried values among them.
        key: Hash of the settings that decide it.
        split: Hashes of its data, partition and test rows.
        figures: Costs and results by name; of a trial, its score on validation rows.
        failure: Why it failed; empty if it did not.
        wall_s: Measured seconds.
        ended: Date and time in UTC.
        commit: The commit of raysim, with `-dirty` where files were changed since.
        machine: Processors, and what equal bits depend on: versions and the type of CPU.
        method: The options that its method read, with the defaults of that time.
    """

    cell: str
    kind: str
    row: str
    seed: int
    values: Mapping[str, Any]
    key: str
    split: Mapping[str, str]
    figures: Mapping[str, Any]
    failure: str = ""
    wall_s: float = 0.0
    ended: str = ""
    commit: str = ""
    machine: Mapping[str, str] = field(default_factory=dict)
    method: Mapping[str, Any] = field(default_factory=dict)


def read(path: Path) -> list[Result]:
    """Return the results in a file; of a run that is in it several times, the last.

    Raises:
        SettingError: If a line is damaged.
    """
    latest = {(each.cell, each.kind, each.row, each.key): each for each in json_lines.read(path, _result_of)}
    return list(latest.values())


def of_runs(results: Iterable[Result], cell: str, kind: str, runs: Sequence[Run]) -> dict[int, Result]:
    """Return the result of each planned run that has one, by the run's index.

    Args:
        results: Results of any cells.
        cell: The cell of the runs.
        kind: `run` or `trial`.
        runs: The runs that are planned.
    """
    known = {(each.row, each.key): each for each in results if (each.cell, each.kind) == (cell, kind)}
    found = ((index, known.get((run.label, key_of(run)))) for index, run in enumerate(runs))
    return {index: result for index, result in found if result is not None and has_method_of(result, runs[index])}


def _result_of(content: Any) -> Result:
    result = Result(**content)
    texts = (result.cell, result.kind, result.row, result.key, result.failure, result.ended, result.commit)
    mappings = (result.values, result.split, result.figures, result.machine, result.method)
    fits = all(isinstance(text, str) for text in texts) and all(isinstance(each, dict) for each in mappings)
    if not fits or type(result.seed) is not int or not isinstance(result.wall_s, (int, float)):
        raise ValueError("an entry has another type")
    return result


class CellResults:
    """The results of one cell, earlier ones and new ones; only the process that started the study adds to them."""

    def __init__(self, path: Path, cell: str, device: str, results: Sequence[Result]) -> None:
        """Prepare to add results.

        Args:
            path: The file.
            cell: The name of the cell.
            device: PyTorch's name of the device that trains clients.
            results: The results in the file.
        """
        self._path, self._cell, self._results = path, cell, results
        self._commit, self._machine = _commit(), environment() | {"cpus": str(os.cpu_count()), "device": device}

    def earlier(self, kind: str, runs: Sequence[Run], split: Mapping[str, str]) -> Iterator[tuple[int, Result]]:
        """Yield the index and result of each run that is in the file with the same split and did not fail.

        Args:
            kind: `run` or `trial`.
            runs: The runs that are planned.
            split: Hashes of the data, partition and test rows that they have now.
        """
        for index, found in of_runs(self._results, self._cell, kind, runs).items():
            if not found.failure and dict(found.split) == dict(split):
                yield index, found

    def add(
        self, kind: str, run: Run, split: Mapping[str, str], figures: Mapping[str, Any], failure: str, wall_s: float
    ) -> None:
        """Append a result, and return when it is on the disk."""
        ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        result = Result(
            self._cell,
            kind,
            run.label,
            run.seed,
            dict(run.entry.set),
            key_of(run),
            dict(split),
            figures,
            failure,
            wall_s,
            ended,
            self._commit,
            self._machine,
            options_of(method_of(run.settings)),
        )
        json_lines.append(self._path, asdict(result))


@functools.cache
def _commit() -> str:
    """Return the commit that this process began with."""
    return os.environ.get(provenance.COMMIT) or provenance.commit_of_code()


def key_of(run: Run) -> str:
    """Return the hash of the settings that decide a run's result.

    Settings at their defaults are left out, so that a later version with further settings finds its earlier results.
    """
    deciding = run.settings.model_dump(mode="json", exclude=set(PLACES), exclude_defaults=True)
    deciding.get("data", {}).pop("root", None)  # the split's hashes hold whatever lies there
    deciding.get("evaluation", {}).pop("targets", None)  # what they cost is read from the evaluations
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def options_of(method: Method) -> dict[str, Any]:
    """Return the options that a method reads, its defaults included, as JSON holds them."""
    shared = {name: getattr(method.options, name) for name in sorted(method.reads)}
    options: dict[str, Any] = json.loads(json.dumps({**shared, **method.options.own}, default=str))
    return options


def has_method_of(result: Result, run: Run) -> bool:
    """Whether a result is of the method as it is now: a default that has changed makes it another one.

    Options that a result does not have were added later; until then the method was as with their common default.
    """
    common, method = asdict(MethodOptions()), method_of(run.settings)
    return all(
        result.method[name] == value if name in result.method else name in method.options.own or value == common[name]
        for name, value in options_of(method).items()
    )
