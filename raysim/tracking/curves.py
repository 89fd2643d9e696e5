"""The curves of a run: metrics by round, and the main ones again over simulated time, as `time/<name>`."""

from collections.abc import Callable, Sequence

from raysim.simulation.records import Logged, Point

MAIN = ("accuracy/global", "accuracy/submodel_mean", "loss/global", "traffic/total_bytes")
"""Metrics that are drawn over simulated time, too."""
EVERY_SECOND = "time/traffic/total_bytes"
"""A curve that no second of rounds lacks: its last step is the last second that MLflow knows."""
POINTS_PER_CALL = 1000
"""MLflow takes no more."""


class RunCurves:
    """Tells MLflow of rounds, several by one call, each with its points over simulated time.

    A second has one point a curve: the last value of the rounds that ended in it. MLflow keeps all that it is given,
    so nothing is said of a second before a later one has begun or the run is over.
    """

    def __init__(
        self, read: Callable[[int], Logged], send: Callable[[Sequence[Point]], None], told: int = 0, second: int = -1
    ) -> None:
        """Begin after what MLflow knows.

        Args:
            read: Returns what MLflow is told of a round.
            send: Tells MLflow of up to 1,000 points, all or none; raises where it cannot.
            told: The last round that MLflow knows.
            second: The last simulated second that it knows.
        """
        self._read, self._send = read, send
        self._told, self._second = told, second
        self._newest: list[Point] | None = None
        self.taken = 0
        """How many calls MLflow has taken so far."""

    @property
    def told(self) -> int:
        """The last round that MLflow knows."""
        return self._told

    def tell(self, last: int, hurry: bool) -> None:
        """Tell MLflow of as many rounds as one call takes, one at least."""
        newest, points, rounds = self._points_of_newest_second(), list[Point](), 0
        while self._told + rounds < last:
            round = self._read(self._told + rounds + 1)
            over, newest_then = over_time(newest, [round])
            more = [*round.points, *self._unknown(over)]
            if points and len(points) + len(more) > POINTS_PER_CALL:
                break
            points, newest, rounds = points + more, newest_then, rounds + 1
        self._tell(points)
        self._told, self._newest = self._told + rounds, newest

    def finish(self) -> None:
        """Tell of the last simulated second."""
        points = self._unknown(self._points_of_newest_second())
        if points:
            self._tell(points)
        self._newest = []

    def leave(self, status: str) -> None:
        """Leave the last second untold: when the run goes on, there may be more of it."""

    def _tell(self, points: Sequence[Point]) -> None:
        self._send(points)
        self.taken += 1

    def _points_of_newest_second(self) -> list[Point]:
        """Return what is known of the second in which the last round ended that MLflow knows."""
        if self._newest is None:
            rounds: list[Logged] = []
            for round in range(self._told, 0, -1):
                rounds.insert(0, self._read(round))
                if second_of(rounds[0]) != second_of(rounds[-1]):
                    break
            self._newest = over_time([], rounds)[1]
        return self._newest

    def _unknown(self, points: Sequence[Point]) -> list[Point]:
        return [point for point in points if point.step > self._second]


def second_of(round: Logged) -> int:
    """Return the whole simulated seconds that had passed when a round ended."""
    return int(round.metrics["clock/simulated_s"])


def over_time(newest: Sequence[Point], rounds: Sequence[Logged]) -> tuple[list[Point], list[Point]]:
    """Return the points of the seconds that are over, and those of the second that still goes on.

    Args:
        newest: Points of the second that went on before.
        rounds: The rounds that followed, in their order.
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
            for name in MAIN
            if name in each.metrics
        }
    return over, list(current.values())
