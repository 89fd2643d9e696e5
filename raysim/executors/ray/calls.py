"""What client actors are asked to do, and how a call that was lost is cut into smaller ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from raysim.client.assignments import Assignments

NAMED = 8
"""Clients that a message names one by one."""


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A call of a client actor's method; pure, so it may be repeated.

    Attributes:
        place: Which result it belongs to.
        method: `train`, `score` or `estimate_statistics`.
        work: Its first argument: assignments, or rows.
        others: Its other arguments.
        losses: How often it was lost, or a larger call it was part of.
        hung: Whether one of these did not answer in time.
    """

    place: int
    method: str
    work: Any
    others: tuple[Any, ...]
    losses: int = 0
    hung: bool = False

    def send(self, actor: Any) -> Any:
        """Send it to an actor and return a reference to what it will answer."""
        return getattr(actor, self.method).remote(self.work, *self.others)

    @property
    def clients(self) -> list[int]:
        """The clients that it trains."""
        return self.work.clients.tolist() if isinstance(self.work, Assignments) else []

    @property
    def client(self) -> int:
        """The client that it trains, -1 where it is not one."""
        return self.clients[0] if len(self.clients) == 1 else -1

    def apart(self) -> "list[Call]":
        """Return a call for each of its clients, or each of its packs."""
        if not isinstance(self.work, Assignments):
            return [self]
        return [replace(self, work=assignments) for assignments in self.work.apart()]

    @property
    def done_again(self) -> str:
        """What is done when it is repeated, as the end of a sentence."""
        if not self.clients:
            return {"score": "test rows are scored again"}.get(self.method, "running statistics are estimated again")
        return f"{named(self.clients)} {'is' if len(self.clients) == 1 else 'are'} trained again"


def named(clients: Sequence[int]) -> str:
    """Name clients, or count them where they are many.

    >>> named([4]), named([5, 1]), named(list(range(12)))
    ('client 4', 'clients 1, 5', '12 clients')
    """
    if len(clients) > NAMED:
        return f"{len(clients)} clients"
    return f"client{'s' if len(clients) > 1 else ''} {', '.join(map(str, sorted(clients)))}"
