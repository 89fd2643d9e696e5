"""The curves of a run: metrics by round, and the main ones again over simulated time, as `time/<name>`."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from raysim.config.metric import ACCURACY
from raysim.simulation.records import Logged, Point


def main_of(primary: str) -> tuple[str, ...]:
    """Return the metrics that are also drawn over simulated time, from the name of the primary metric."""
    return (f"{primary}/global", f"{primary}/submodel_mean", "loss/global", "traffic/total_bytes")


MAIN = main_of(ACCURACY.name)
EVERY_SECOND = "time/traffic/total_bytes"
"""A curve with a point in each second in which a round ended: its last step is the last second that MLflow has."""
POINTS_PER_CALL = 1000
"""The most that MLflow accepts."""


class LoggedSoFar(NamedTuple):
    """How much of a run MLflow has: the last round, its wall time, and the last second of simulated time."""

    round: int = 0
    wall_s: float = 0.0
    second: int = -1


class RunCurves:
    """Logs rounds to MLflow, several in one call, each with its points over simulated time.

    In a second of simulated time each curve has one point: the last value of the rounds that ended in that second.
    MLflow never deletes a point, so a second is logged only when a later one has begun, or the run is over.
    """

    def __init__(
        self,
        read: Callable[[int], Logged],
        send: Callable[[Sequence[Point]], None],
        last_logged: int = 0,
        second: int = -1,
        main: Sequence[str] = MAIN,
    ) -> None:
        """Begin after what MLflow has.

        Args:
            read: Returns the metrics of a round.
            send: Logs up to 1,000 points, all or none of them; raises if it cannot.
            last_logged: The last round that MLflow has.
            second: The last simulated second that it has.
            main: The metrics that are also drawn over simulated time.
        """
        self._read, self._send = read, send
        self._last_logged, self._second, self._main = last_logged, second, main
        self._newest: list[Point] | None = None
        self.num_calls = 0
        """How many calls MLflow has accepted so far."""

    @property
    def last_logged(self) -> int:
        """The last round that MLflow has."""
        return self._last_logged

    def flush(self, last: int, hurry: bool) -> None:
        """Log as many rounds as fit into one call, but at least one."""
        newest, points, rounds = self._points_of_newest_second(), list[Point](), 0
        while self._last_logged + rounds < last:
            round = self._read(self._last_logged + rounds + 1)
            over, newest_then = over_time(newest, [round], self._main)
            more = [*round.points, *self._unknown(over)]
            if points and len(points) + len(more) > POINTS_PER_CALL:
                break
            points, newest, rounds = points + more, newest_then, rounds + 1
        self._log(points)
        self._last_logged, self._newest = self._last_logged + rounds, newest

    def finish(self) -> None:
        """Log the last second of simulated time."""
        points = self._unknown(self._points_of_newest_second())
        if points:
            self._log(points)
        self._newest = []

    def abort(self, status: str) -> None:
        """Do nothing: the last second is not over if the run is resumed."""

    def _log(self, points: Sequence[Point]) -> None:
        self._send(points)
        self.num_calls += 1

    def _points_of_newest_second(self) -> list[Point]:
        """Return the points so far of the second in which the last round ended that MLflow has."""
        if self._newest is None:
            rounds: list[Logged] = []
            for round in range(self._last_logged, 0, -1):
                rounds.insert(0, self._read(round))
                if second_of(rounds[0]) != second_of(rounds[-1]):
                    break
            self._newest = over_time([], rounds, self._main)[1]
        return self._newest

    def _unknown(self, points: Sequence[Point]) -> list[Point]:
        return [point for point in points if point.step > self._second]


def second_of(round: Logged) -> int:
    """Return the whole simulated seconds that had passed when a round ended."""
    return int(round.metrics["clock/simulated_s"])


def over_time(
    newest: Sequence[Point], rounds: Sequence[Logged], main: Sequence[str] = MAIN
) -> tuple[list[Point], list[Point]]:
    """Return the points of the seconds that are over, and those of the second that is not.

    Args:
        newest: The points so far of the second that was not over before these rounds.
        rounds: The rounds that followed, in their order.
        main: The metrics that are drawn.
    """
    over: list[Point] = []
    current = {point.key: point for point in newest}
    for each in rounds:
        now = second_of(each)
        if any(point.step < now for point in current.values()):
            over += current.values()
            current = {}
        current |= {
            f"time/{name}": Point(f"time/{name}", each.metrics[name], each.timestamp_ms, now)
            for name in main
            if name in each.metrics
        }
    return over, list(current.values())
