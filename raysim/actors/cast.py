"""The client actors of a run: how they start, who is ready, and who takes the place of one that was lost."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from raysim.actors.calls import Call
from raysim.actors.client import ClientActor
from raysim.actors.readiness import presence
from raysim.scenario import Scenario


@dataclass(frozen=True, slots=True)
class CastRules:
    """How many client actors there are, and what each takes.

    Attributes:
        num_actors: How many; none = one per CPU, also of machines that join while the run goes on.
        own_clients: Whether each plays one client only, that of its place.
        num_cpus: Share of a CPU each takes.
        num_gpus: Share of a GPU each takes.
        memory_bytes: Memory each reserves.
        at_once: How many may work at a time; none = all.
        client_timeout_s: Seconds after which the training of a client is taken to hang; none = never.
    """

    num_actors: int | None = None
    own_clients: bool = False
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    memory_bytes: int = 0
    at_once: int | None = None
    client_timeout_s: float | None = None

    def start(self) -> Any:
        """Start a client actor and return its handle; calls wait until there is room for it.

        Ray neither restarts it nor repeats its calls: both are done here, where they are counted and told.
        """
        remote: Any = ray.remote
        return remote(
            num_cpus=self.num_cpus, num_gpus=self.num_gpus, memory=self.memory_bytes or None, max_restarts=0
        )(ClientActor).remote()  # fmt: skip


@dataclass(slots=True, eq=False)
class Sent:
    """A call an actor was sent, what it will answer, and since when it has been the actor's turn."""

    call: Call
    answer: Any
    since: float


@dataclass(slots=True, eq=False)
class Member:
    """A client actor.

    Attributes:
        place: Where it stands in the cast.
        handle: The actor.
        prepared: What it answers once it has started and fetched the scenario; none = it has.
        sent: The calls it has not answered, the one it works on first.
    """

    place: int
    handle: Any
    prepared: Any
    sent: deque[Sent] = field(default_factory=deque)

    @property
    def awaited(self) -> Any:
        """What it answers next; none = nothing."""
        if self.prepared is not None:
            return self.prepared
        return self.sent[0].answer if self.sent else None


class Cast:
    """The client actors of a run, each prepared for its scenario."""

    def __init__(self, rules: CastRules, handles: Sequence[Any], scenario: "ray.ObjectRef[Scenario]") -> None:
        self.rules = rules
        self._scenario = [scenario]
        self.members = [self._member(place, handle) for place, handle in enumerate(handles)]

    def fit(self) -> None:
        """Start actors on CPUs that have joined, and give up those that wait for CPUs that are gone."""
        wanted = self._wanted()
        waiting = [member for member in self.members if member.prepared is not None]
        for member in waiting[: max(0, len(self.members) - wanted)]:
            ray.kill(member.handle)
            self.members.remove(member)
        while len(self.members) < wanted:
            self.members.append(self._member(len(self.members), self.rules.start()))

    def replace(self, member: Member) -> None:
        """End an actor that is lost or hangs, and start another in its place, if there is still a CPU for it."""
        ray.kill(member.handle)
        if len(self.members) > self._wanted():
            self.members.remove(member)
            return
        self.members[self.members.index(member)] = self._member(member.place, self.rules.start())

    def _member(self, place: int, handle: Any) -> Member:
        return Member(place, handle, handle.prepare.remote(self._scenario, presence()))

    def _wanted(self) -> int:
        return self.rules.num_actors or max(1, int(ray.cluster_resources().get("CPU", 0)))  # type: ignore[no-untyped-call]
