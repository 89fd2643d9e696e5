"""The client actors of a run: which are ready, what each has been sent, and how one that was lost is replaced."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray

from raysim.executors.ray.calls import Call
from raysim.executors.ray.pool_config import PoolConfig
from raysim.executors.ray.readiness import process_info, wait_and_report
from raysim.simulation.scenario import Scenario


@dataclass(slots=True, eq=False)
class PendingCall:
    """A call that an actor was sent.

    Attributes:
        call: The call.
        result: Reference to its result.
        since: Time from which the actor may have worked on it.
    """

    call: Call
    result: Any
    since: float


@dataclass(slots=True, eq=False)
class PooledActor:
    """A client actor.

    Attributes:
        index: Its position in the pool; with `own_clients` the id of its client.
        handle: The actor.
        preparing: Reference to its answer once it has started and fetched the scenario; None: it has.
        sent: The calls it has not finished, the one it works on first.
    """

    index: int
    handle: Any
    preparing: Any
    sent: deque[PendingCall] = field(default_factory=deque)

    @property
    def is_ready(self) -> bool:
        """Whether it can be sent calls."""
        return self.preparing is None

    @property
    def awaited(self) -> Any:
        """Reference to what it answers next; None: nothing."""
        if self.preparing is not None:
            return self.preparing
        return self.sent[0].result if self.sent else None

    @property
    def load(self) -> float:
        """Predicted FLOPs of the calls it has not finished."""
        return sum(pending.call.cost for pending in self.sent)

    def finish(self) -> Call:
        """Remove and return the call that it has finished; it now works on the next one."""
        call = self.sent.popleft().call
        if self.sent:
            self.sent[0].since = time.monotonic()
        return call


class ActorPool:
    """The client actors of a run, each prepared for its scenario."""

    def __init__(self, config: PoolConfig, handles: Sequence[Any], scenario: "ray.ObjectRef[Scenario]") -> None:
        self.config = config
        self._scenario = [scenario]
        self.actors = [self._prepared(index, handle) for index, handle in enumerate(handles)]

    def resize(self) -> None:
        """Start actors on CPUs that have joined, and drop those that wait for CPUs that are gone."""
        wanted = self._wanted()
        waiting = [actor for actor in self.actors if not actor.is_ready]
        for actor in waiting[: max(0, len(self.actors) - wanted)]:
            ray.kill(actor.handle)
            self.actors.remove(actor)
        while len(self.actors) < wanted:
            self.actors.append(self._prepared(len(self.actors), self.config.start()))

    def replace(self, actor: PooledActor) -> None:
        """End an actor that is lost or hangs, and start another one if there is still a CPU for it."""
        ray.kill(actor.handle)
        if len(self.actors) > self._wanted():
            self.actors.remove(actor)
            return
        self.actors[self.actors.index(actor)] = self._prepared(actor.index, self.config.start())

    def _prepared(self, index: int, handle: Any) -> PooledActor:
        return PooledActor(index, handle, handle.prepare.remote(self._scenario, process_info(), self.config.device))

    def _wanted(self) -> int:
        return self.config.num_actors or max(1, int(ray.cluster_resources().get("CPU", 0)))  # type: ignore[no-untyped-call]


def start_actors(config: PoolConfig, count: int, actors: list[Any]) -> None:
    """Start client actors and add them to a list; those that share CPUs not all at once."""
    starting: list[Any] = []
    for started in range(count):
        if config.at_once is not None and len(starting) >= config.at_once:
            starting = wait_and_report(starting, partial(_yet_to_start, started, count, config.num_cpus), enough=1)
        actors.append(config.start())
        starting.append(actors[-1].process_id.remote())


def _yet_to_start(started: int, count: int, num_cpus: float, missing: int) -> str:
    return f"{count - started + missing} of {count} client actors of {num_cpus:g} CPU each"
