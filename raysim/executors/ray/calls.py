"""Calls of a client actor: what is sent, and how a call of several clients is split."""

from dataclasses import dataclass, replace
from typing import Any

from raysim.client.assignments import Assignments
from raysim.executors.ray.failure_policy import Activity, Attempt, Kind


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A call of a client actor's method; pure, so it may be repeated.

    Attributes:
        index: Which result it belongs to.
        method: The method that is called.
        argument: Its first argument: assignments, or rows.
        others: Its other arguments.
        losses: Number of times it was lost, or a larger call it was part of.
        timeouts: Number of times it did not finish in time, or a larger call it was part of.
    """

    index: int
    method: Activity
    argument: Any
    others: tuple[Any, ...]
    losses: int = 0
    timeouts: int = 0

    def send(self, actor: Any) -> Any:
        """Send the call to an actor and return a reference to its result."""
        return getattr(actor, self.method).remote(self.argument, *self.others)

    @property
    def clients(self) -> list[int]:
        """Ids of the clients that it trains."""
        return self.argument.clients.tolist() if isinstance(self.argument, Assignments) else []

    @property
    def cost(self) -> float:
        """Predicted FLOPs of its clients."""
        return float(self.argument.costs.sum()) if isinstance(self.argument, Assignments) else 0.0

    def attempt(self, timeout_s: float | None) -> Attempt:
        """Return the facts that the failure policy decides on."""
        return Attempt(self.method, tuple(self.clients), self.losses, self.timeouts, timeout_s or 0.0)

    def after(self, kind: Kind) -> "Call":
        """Return the call as it is repeated after a failure, which it counts."""
        if kind is Kind.TIMED_OUT:
            return replace(self, timeouts=self.timeouts + 1)
        return replace(self, losses=self.losses + 1)

    def split(self) -> "list[Call]":
        """Return a call for each of its clients, or each of its packs."""
        if not isinstance(self.argument, Assignments):
            return [self]
        return [replace(self, argument=each) for each in self.argument.apart()]
