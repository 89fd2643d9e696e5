"""The client actors of a run: how they start, who is ready, and who takes the place of one that was lost."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil, floor
from typing import Any, Literal

import ray

from raysim.core.errors import SettingError
from raysim.core.log import relay
from raysim.executors.ray.calls import Call
from raysim.executors.ray.client_actor import ClientActor
from raysim.executors.ray.cluster import num_workers
from raysim.executors.ray.readiness import presence, wait_saying
from raysim.simulation.scenario import Scenario


@dataclass(frozen=True, slots=True)
class PoolConfig:
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
class PendingCall:
    """A call an actor was sent, what it will answer, and since when it has been the actor's turn."""

    call: Call
    answer: Any
    since: float


@dataclass(slots=True, eq=False)
class PooledActor:
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
    sent: deque[PendingCall] = field(default_factory=deque)

    @property
    def awaited(self) -> Any:
        """What it answers next; none = nothing."""
        if self.prepared is not None:
            return self.prepared
        return self.sent[0].answer if self.sent else None


class ActorPool:
    """The client actors of a run, each prepared for its scenario."""

    def __init__(self, config: PoolConfig, handles: Sequence[Any], scenario: "ray.ObjectRef[Scenario]") -> None:
        self.rules = config
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

    def replace(self, member: PooledActor) -> None:
        """End an actor that is lost or hangs, and start another in its place, if there is still a CPU for it."""
        ray.kill(member.handle)
        if len(self.members) > self._wanted():
            self.members.remove(member)
            return
        self.members[self.members.index(member)] = self._member(member.place, self.rules.start())

    def _member(self, place: int, handle: Any) -> PooledActor:
        return PooledActor(place, handle, handle.prepare.remote(self._scenario, presence()))

    def _wanted(self) -> int:
        return self.rules.num_actors or max(1, int(ray.cluster_resources().get("CPU", 0)))  # type: ignore[no-untyped-call]


ACTOR_BYTES = 600_000_000
"""Memory of a client actor with a small model: measured are 350 MB of its own, and 370 MB of libraries that those of
one machine share."""


def pool_config(
    num_actors: int | Literal["clients"] | None, num_clients: int, client_timeout_s: float | None
) -> tuple[PoolConfig, int]:
    """Return how client actors are started, and how many.

    Raises:
        SettingError: If the cluster has no room for them.
    """
    if num_actors != "clients":
        return PoolConfig(num_actors, client_timeout_s=client_timeout_s), num_workers(num_actors)
    per_cpu, cpus = actors_per_cpu(num_clients)
    share = floor(10_000 / per_cpu) / 10_000  # Ray counts in ten-thousandths
    found = PoolConfig(
        num_clients, own_clients=True, num_cpus=share, memory_bytes=ACTOR_BYTES, at_once=cpus,
        client_timeout_s=client_timeout_s,
    )  # fmt: skip
    return found, num_clients


def check_gpus() -> int:
    """Return how many GPUs the cluster has.

    Raises:
        SettingError: If it has none.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
    if not gpus:
        raise SettingError("executor.device='cuda' is not allowed: the cluster has no GPU; allowed: cpu")
    return gpus


def pool_config_on_gpus(
    config: PoolConfig, scenario: "ray.ObjectRef[Scenario]", wanted: int | None
) -> tuple[PoolConfig, int]:
    """Return how actors that share GPUs are started, and how many: as many as fit, or as are wanted.

    Raises:
        SettingError: If more are wanted than fit.
    """
    measuring = replace(config, num_gpus=1.0).start()
    up = measuring.presence.remote()
    wait_saying([up], lambda _: "a client actor of 1 GPU, which measures how many share one", of="GPU")
    share, remarks = ray.get(measuring.gpu_share.remote([scenario]))
    relay(remarks)
    ray.kill(measuring)
    fits = min(floor(1 / share) * check_gpus(), num_workers(None))
    if wanted is not None and wanted > fits:
        raise SettingError(
            f"executor.num_actors={wanted} is more than fit: the largest client needs {share:.0%} of a GPU; "
            f"allowed: 1 to {fits}"
        )
    return replace(config, num_actors=wanted or fits, num_gpus=share), wanted or fits


def start_actors(config: PoolConfig, count: int, actors: list[Any]) -> None:
    """Start client actors and add them to a list; those that share CPUs not all at once."""
    starting: list[Any] = []
    for started in range(count):
        if config.at_once is not None and len(starting) >= config.at_once:
            starting = wait_saying(starting, partial(_yet_to_start, started, count, config.num_cpus), enough=1)
        actors.append(config.start())
        starting.append(actors[-1].process_id.remote())


def _yet_to_start(started: int, count: int, num_cpus: float, missing: int) -> str:
    return f"{count - started + missing} of {count} client actors of {num_cpus:g} CPU each"


def actors_per_cpu(num_clients: int) -> tuple[int, int]:
    """Return how many actors share a CPU if each client has one, and the cluster's CPUs.

    Raises:
        SettingError: If the machines have too little memory.
    """
    machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]  # type: ignore[no-untyped-call]
    machines = [machine for machine in machines if machine.get("CPU", 0) >= 1]
    cpus = [int(machine["CPU"]) for machine in machines]
    room = [int(machine.get("memory", 0) // ACTOR_BYTES) for machine in machines]
    if sum(room) < num_clients:
        available = sum(machine.get("memory", 0) for machine in machines) / 1e9
        raise SettingError(
            f"executor.num_actors='clients' needs {num_clients * ACTOR_BYTES / 1e9:.1f} GB for population.clients="
            f"{num_clients} actors of {ACTOR_BYTES / 1e6:.0f} MB; the cluster has {available:.1f} GB, room for "
            f"{sum(room)}; allowed: that many clients, or a number of actors"
        )
    fewest = ceil(num_clients / sum(cpus))
    fits = (
        per_cpu for per_cpu in range(fewest, num_clients + 1)
        if sum(min(per_cpu * cpu, there) for cpu, there in zip(cpus, room, strict=True)) >= num_clients
    )  # fmt: skip
    return next(fits), sum(cpus)
