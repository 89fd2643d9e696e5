"""Show the progress of a sweep: a bar on a live terminal, and one line for each trial that ends."""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from raysim.analysis.sweep.journal import FAILED, FINISHED, STOPPED, Entry, Journal
from raysim.analysis.sweep.plan import Sweep
from raysim.core.log import info, is_quiet, warning
from raysim.terminal.progress import is_live


class SweepDisplay:
    """Shows the progress of the trials on standard error."""

    def __init__(self, sweep: Sweep, journal: Journal) -> None:
        self._sweep, self._journal = sweep, journal
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._running: set[int] = set()

    def __enter__(self) -> "SweepDisplay":
        if is_quiet():
            return self
        if is_live(self._console):
            self._bar = Progress(
                TextColumn("[bold]trials"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[counts]}"),
                TextColumn("{task.fields[best]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=len(self._sweep.trials), counts="", best="")
            self._update()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def started(self, trial: int) -> None:
        """Show that a trial has been started."""
        self._running.add(trial)
        self._update()

    def show(self, entry: Entry) -> None:
        """Show a result, or the end of a trial."""
        if entry.ended:
            self._running.discard(entry.trial)
            self._print(self._line(entry), entry.ended == FAILED)
        self._update()

    def _line(self, entry: Entry) -> str:
        standing, metric = self._journal.standings[entry.trial], self._sweep.settings.metric
        over = sum(bool(each.ended) for each in self._journal.standings)
        name = f"{over}/{len(self._sweep.trials)}  {self._sweep.trials[entry.trial].title}"
        if entry.ended == FAILED:
            return f"{name}  failed: {entry.failure}"
        reached = "" if standing.value is None else f"  {metric} {standing.value:.4f}"
        ended = "" if entry.ended == FINISHED else f", {entry.ended}"
        return f"{name}  round {standing.round} of {self._sweep.base.rounds}{ended}{reached}"

    def _print(self, line: str, is_failure: bool) -> None:
        if self._bar is None:
            (warning if is_failure else info)(line)
        else:
            self._bar.console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def _update(self) -> None:
        if self._bar is None:
            return
        standings = self._journal.standings
        counts = [f"{len(self._running)} running", *_counts([each.ended for each in standings])]
        best = self._journal.best(self._sweep.mode)
        value = None if best is None else standings[best].value
        shown = "" if value is None else f"best {value:.4f} (trial {best})"
        over = sum(bool(each.ended) for each in standings)
        self._bar.update(self._task, completed=over, counts=", ".join(counts), best=shown)


def _counts(ended: Sequence[str]) -> list[str]:
    return [f"{ended.count(how)} {how}" for how in (FINISHED, STOPPED, FAILED) if how in ended]
