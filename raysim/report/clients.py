"""Summarise the table of clients round by round, so that only one of its row groups is in memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysim.clock import outcomes
from raysim.core.tensors import Columns

PERCENTILES = (0, 10, 50, 90, 100)
COLUMNS = (
    "round", "client", "tier", "fate", "started_round", "start_s", "lasts_s", "pruning_ratio",
    "download_s", "compute_s", "upload_s", "total_s", "energy_j",
)  # fmt: skip
"""The columns that figures are made of; the runs of old versions lack some."""


@dataclass(frozen=True, slots=True, eq=False)
class ClientStatistics:
    """Statistics of the clients of a run.

    Attributes:
        round: The rounds, `(rounds,)`.
        outcomes: The number of clients with each outcome, by outcome, `(rounds,)` each.
        pruning: Percentiles of the pruning ratios of clients that counted, `(rounds, 5)`; NaN in rounds without any.
        tier_pruning: The mean pruning ratio by tier, `(rounds,)` each; NaN in rounds in which no client of the tier
            counted. Tiers of which none ever did are left out.
        seconds: Percentiles of the seconds of clients that counted, `(rounds, 5)`.
        counted: In how many rounds each client counted, `(clients,)`.
        mean_pruning: The mean pruning ratio of each client, `(clients,)`; NaN for clients that never counted.
        tier_of: The tier of each client that was selected, `(clients,)`; empty for the others.
        shown: All rows of some rounds, by round.
        never_counted: The tiers and clients whose work never counted; None: the devices are not known.
    """

    round: NDArray[np.int64]
    outcomes: dict[str, NDArray[np.int64]]
    pruning: NDArray[np.float64]
    tier_pruning: dict[str, NDArray[np.float64]]
    seconds: NDArray[np.float64]
    counted: NDArray[np.int64]
    mean_pruning: NDArray[np.float64]
    tier_of: NDArray[np.str_]
    shown: dict[int, Columns]
    never_counted: Mapping[str, Any] | None = None

    @property
    def pruning_ratio(self) -> float:
        """The mean over all rounds and clients that counted; NaN if none did."""
        known = self.counted > 0
        total = int(self.counted.sum())
        return float((self.mean_pruning * self.counted)[known].sum()) / total if total else np.nan


def by_round(path: Path, names: Sequence[str] = COLUMNS) -> Iterator[Columns]:
    """Yield the rows of each round; one row group is in memory at a time, and holds whole rounds.

    Text columns are encoded: `tier` holds indices into `tier_names`, and so on.
    """
    with pq.ParquetFile(path) as file:
        known = [name for name in names if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            columns = _columns(file.read_row_group(group, columns=known, use_threads=False))
            for round in np.unique(columns["round"]):
                here = columns["round"] == round
                yield {
                    name: column if name.endswith("_names") or here.all() else column[here]
                    for name, column in columns.items()
                }


def _columns(table: pa.Table) -> Columns:
    columns: Columns = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            encoded = column.dictionary_encode()
            columns[name] = encoded.indices.to_numpy()
            columns[f"{name}_names"] = np.array(encoded.dictionary.to_pylist(), dtype=np.str_)
        else:
            columns[name] = column.to_numpy(zero_copy_only=False)
    return columns


def where(rows: Columns, name: str, values: Sequence[str]) -> NDArray[np.bool_]:
    """Return in which rows a text column has one of some values, `(rows,)`."""
    return np.asarray(np.isin(rows[f"{name}_names"], values)[rows[name]])


def texts(rows: Columns, name: str) -> NDArray[np.str_]:
    """Return an encoded text column as text, `(rows,)`."""
    return np.asarray(rows[f"{name}_names"][rows[name]])


class ClientStatisticsBuilder:
    """Adds up the statistics of clients, round by round."""

    def __init__(self, num_clients: int, shown: Sequence[int], tiers: Sequence[str] = ()) -> None:
        """Start without any round.

        Args:
            num_clients: The number of clients in the population.
            shown: The rounds whose rows are kept.
            tiers: The order of tiers; other tiers follow as they occur.
        """
        self._shown_rounds, self._shown = set(shown), dict[int, Columns]()
        self._rounds: list[dict[str, Any]] = []
        self._counted = np.zeros(num_clients, dtype=np.int64)
        self._pruned = np.zeros(num_clients)
        self._tiers = list(tiers)
        self._tier_of = np.full(num_clients, -1)

    def add(self, rows: Columns) -> None:
        """Add the rows of a round."""
        round, counted = int(rows["round"][0]), where(rows, "fate", [outcomes.COUNTED])
        if round in self._shown_rounds:
            self._shown[round] = rows
        ratios = rows["pruning_ratio"][counted]
        self._counted += np.bincount(rows["client"][counted], minlength=len(self._counted))
        self._pruned += np.bincount(rows["client"][counted], ratios, len(self._counted))
        tier = self._tiers_of(rows)
        self._tier_of[rows["client"]] = tier
        sums = np.bincount(tier[counted], ratios, len(self._tiers))
        sizes = np.bincount(tier[counted], minlength=len(self._tiers))
        self._rounds.append(
            {
                "round": round,
                "outcomes": dict(zip(rows["fate_names"].tolist(), np.bincount(rows["fate"]).tolist(), strict=False)),
                "pruning": _percentiles(ratios),
                "seconds": _percentiles(rows["total_s"][counted]),
                "tiers": {self._tiers[index]: sums[index] / sizes[index] for index in np.flatnonzero(sizes)},
            }
        )

    def _tiers_of(self, rows: Columns) -> NDArray[np.int64]:
        """Return the tier of each row as a number that is the same in all rounds."""
        names = rows["tier_names"].tolist()
        self._tiers += [name for name in names if name not in self._tiers]
        return np.array([self._tiers.index(name) for name in names], dtype=np.int64)[rows["tier"]]

    def result(self) -> ClientStatistics:
        """Return the statistics of all rounds that were added, in their order."""
        rounds = sorted(self._rounds, key=lambda each: int(each["round"]))
        seen = list(dict.fromkeys(outcome for each in rounds for outcome in each["outcomes"]))
        with np.errstate(invalid="ignore"):
            mean = self._pruned / self._counted
        return ClientStatistics(
            round=np.array([each["round"] for each in rounds]),
            outcomes={outcome: np.array([each["outcomes"].get(outcome, 0) for each in rounds]) for outcome in seen},
            pruning=np.array([each["pruning"] for each in rounds]),
            tier_pruning={
                tier: np.array([each["tiers"].get(tier, np.nan) for each in rounds])
                for tier in self._tiers
                if any(tier in each["tiers"] for each in rounds)
            },
            seconds=np.array([each["seconds"] for each in rounds]),
            counted=self._counted,
            mean_pruning=mean,
            tier_of=np.array([*self._tiers, ""])[self._tier_of],
            shown=self._shown,
        )


def _percentiles(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if not len(values):
        return np.full(len(PERCENTILES), np.nan)
    return np.asarray(np.percentile(values, PERCENTILES))
