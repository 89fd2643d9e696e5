"""The progress of a run: a live screen on a terminal, plain lines elsewhere."""

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from math import inf, isnan
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from raysim.config.metric import ACCURACY, PrimaryMetric
from raysim.core.formatting import duration
from raysim.core.log import LogLine, info, is_quiet, relay
from raysim.simulation.state import RoundReport
from raysim.terminal.tier_lines import TierLine, tier_lines
from raysim.tracking.observer import RunInfo, RunOutcome

REFRESHES_PER_S = 2.0
ALL_SHOWN, LINE_EVERY_S = 20, 1.0
"""The first rounds, which have a line each without a terminal, and the seconds between lines after them."""
TIERS_EVERY_S, TIERS_IN_LINE = 10.0, 4
"""Seconds between lines of tiers without a terminal, and the tiers in such a line."""
RECENT = 50
"""The last rounds, from whose pace the remaining time is computed."""


class ProgressDisplay:
    """Shows rounds and their messages on standard error; with `--quiet` only warnings."""

    def __init__(self, rounds: int, done: int = 0) -> None:
        """Choose between a live screen and lines.

        Args:
            rounds: The last round, if nothing ends the run earlier.
            done: The last round of an earlier process.
        """
        console = Console(stderr=True)
        self._view: _View | None = None
        if not is_quiet():
            pace = Pace(rounds, done)
            self._view = _Screen(console, rounds, pace) if is_live(console) else _PlainLines(rounds, pace)

    def __enter__(self) -> "ProgressDisplay":
        if self._view is not None:
            self._view.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._view is not None:
            self._view.stop()

    def show(self, report: RoundReport) -> None:
        """Show a round, and above it its messages and incidents."""
        relay(report.remarks)
        relay(LogLine(incident, report.round, is_warning=True) for incident in report.incidents)
        if self._view is not None:
            self._view.show(report)


class ProgressObserver:
    """Shows the rounds of a run while they are run."""

    def __init__(self) -> None:
        self._display: ProgressDisplay | None = None

    def on_begin(self, run: RunInfo, resumed_from: int) -> None:
        """Open the display."""
        self._display = ProgressDisplay(run.settings.rounds, resumed_from)
        self._display.__enter__()

    def on_round(self, report: RoundReport) -> None:
        """Show a round."""
        if self._display is not None:
            self._display.show(report)

    def on_end(self, outcome: RunOutcome) -> None:
        """Close the display."""
        if self._display is not None:
            self._display.__exit__()
            self._display = None


def is_live(console: Console) -> bool:
    """Whether lines can be overwritten; FORCE_COLOR adds colours, but does not make a pipe a terminal."""
    return sys.stderr.isatty() and console.is_terminal and not console.is_dumb_terminal


class _View(Protocol):
    def start(self) -> None: ...

    def stop(self) -> None: ...

    def show(self, report: RoundReport) -> None: ...


class Pace:
    """Measures how long a run has taken in this process, and estimates how long the remaining rounds will take."""

    def __init__(self, rounds: int, done: int = 0, now: Callable[[], float] = time.monotonic) -> None:
        self._rounds, self.done, self._now = rounds, done, now
        self._started = now()
        self._ends: deque[tuple[int, float]] = deque([(done, self._started)], maxlen=RECENT + 1)

    def note(self, round: int) -> None:
        """Note that a round has ended."""
        self._ends.append((round, self._now()))

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self._now() - self._started

    @property
    def left_s(self) -> float | None:
        """Estimated seconds until the end; None: no round has ended yet."""
        (first, since), (last, until) = self._ends[0], self._ends[-1]
        if last <= first:
            return None
        expected = (self._rounds - last) * (until - since) / (last - first)
        return max(0.0, expected - (self._now() - until))


class _PlainLines:
    """Writes a line per round, of many quick rounds one a second, and the last; below some of them the tiers."""

    def __init__(self, rounds: int, pace: Pace) -> None:
        self._rounds, self._pace = rounds, pace
        self._num_shown = 0
        self._shown_at, self._tiers_at = 0.0, -inf
        self._left_out: RoundReport | None = None
        self._without_tiers: RoundReport | None = None

    def start(self) -> None:
        pass

    def stop(self) -> None:
        if self._left_out is not None:
            self._write(self._left_out)
        if self._without_tiers is not None:
            info(tiers_in_line(self._without_tiers))

    def show(self, report: RoundReport) -> None:
        self._pace.note(report.round)
        self._left_out = self._without_tiers = report
        if self._num_shown < ALL_SHOWN or time.monotonic() >= self._shown_at + LINE_EVERY_S:
            self._write(report)

    def _write(self, report: RoundReport) -> None:
        self._num_shown, self._shown_at, self._left_out = self._num_shown + 1, time.monotonic(), None
        score, simulated = _reached(report)
        left_s = self._pace.left_s if report.round < self._rounds else None
        left = "" if left_s is None else f"  left {duration(left_s)}"
        info(f"round {report.round}/{self._rounds}  {score}  simulated {simulated}{left}")
        if self._shown_at >= self._tiers_at + TIERS_EVERY_S:
            self._tiers_at, self._without_tiers = self._shown_at, None
            info(tiers_in_line(report))


class _Screen:
    """Draws a bar, the primary metric and a line per tier, a few times a second, however quick the rounds are."""

    def __init__(self, console: Console, rounds: int, pace: Pace) -> None:
        self._pace = pace
        self._report: RoundReport | None = None
        self._drawn: tuple[RoundReport | None, Text] = None, Text("")
        self._bar = Progress(
            TextColumn("[bold]round"),
            MofNCompleteColumn(),
            BarColumn(None),
            TaskProgressColumn(),
            TextColumn("{task.fields[time]}"),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task("", total=rounds, completed=pace.done, time="")
        self._live = Live(
            get_renderable=self._draw, console=console, refresh_per_second=REFRESHES_PER_S, transient=False
        )

    def start(self) -> None:
        self._live.start()

    def stop(self) -> None:
        self._live.stop()

    def show(self, report: RoundReport) -> None:
        self._pace.note(report.round)
        self._report = report

    def _draw(self) -> Group:
        report, left_s = self._report, self._pace.left_s
        spent = f"elapsed {clock_face(self._pace.elapsed_s)}  left {'-' if left_s is None else clock_face(left_s)}"
        self._bar.update(self._task, completed=report.round if report else None, time=spent)
        if report is not self._drawn[0] and report is not None:
            self._drawn = report, Text(_below(report), no_wrap=True, overflow="ellipsis")
        return Group(self._bar, self._drawn[1])


def _reached(report: RoundReport) -> tuple[str, str]:
    metric, value = report.primary, report.totals.primary
    return f"{metric.title} {'-' if value is None else metric.text(value)}", duration(report.totals.simulated_s)


def _below(report: RoundReport) -> str:
    """Return the lines under the bar."""
    score, simulated = _reached(report)
    lines = tier_lines(report.clients, report.tiers, primary=report.primary.name)
    more = len(report.tiers) - len(lines)
    return "\n".join(
        [
            f"{score}  simulated {simulated}",
            *tier_table(lines, report.primary),
            *([f"and {more} more tiers"] if more else []),
        ]
    )


def tier_table(lines: Sequence[TierLine], metric: PrimaryMetric = ACCURACY) -> list[str]:
    """Return lines of figures below their headings."""
    wide = max(8, len(metric.title))
    width = max([len("tier"), *(len(line.tier) for line in lines)])
    table = [f"{'tier':<{width}}  {'counted':>11}  {'pruned':>7}  {metric.title:>{wide}}  {'median s':>9}"]
    for line in lines:
        table.append(
            f"{line.tier:<{width}}  {f'{line.counted}/{line.selected}':>11}  {_figure(line.pruning_ratio, '.1%'):>7}"
            f"  {_score(line, metric):>{wide}}  {_figure(line.client_s, ',.2f'):>9}"
        )
    return table


def tiers_in_line(report: RoundReport) -> str:
    """Return the tiers of a round with the most clients in one line."""
    metric = report.primary
    lines = tier_lines(report.clients, report.tiers, TIERS_IN_LINE, metric.name)
    more = len(report.tiers) - len(lines)
    shown = [
        f"{line.tier} {line.counted}/{line.selected} {_figure(line.pruning_ratio, '.1%')} "
        f"{_score(line, metric)} {_figure(line.client_s, ',.2f')}"
        for line in lines
    ]
    listed = "; ".join([*shown, *([f"and {more} more"] if more else [])])
    return f"  tiers (counted, pruned, {metric.title}, median s): {listed}"


def _score(line: TierLine, metric: PrimaryMetric) -> str:
    return "-" if isnan(line.score) else metric.text(line.score)


def _figure(value: float, form: str) -> str:
    return "-" if isnan(value) else f"{value:{form}}"


def clock_face(seconds: float) -> str:
    """Write seconds as a clock shows them.

    >>> clock_face(75.2), clock_face(90061)
    ('1:15', '25:01:01')
    """
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
