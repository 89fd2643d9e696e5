"""How many client actors a run has, and which share of a CPU or a GPU each takes."""

from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Any, Literal

import ray

from raysim.core.errors import SettingError
from raysim.core.log import relay
from raysim.executors.ray.client_actor import ClientActor
from raysim.executors.ray.cluster import num_at_once
from raysim.executors.ray.failures import run_error_of
from raysim.executors.ray.readiness import wait_and_report
from raysim.simulation.scenario import Scenario


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """How many client actors there are, and what each takes.

    Attributes:
        num_actors: Number of actors; None: one per CPU, also of machines that join during the run.
        own_clients: Whether each trains one client only, the one whose id is its index.
        num_cpus: Share of a CPU that each takes.
        num_gpus: Share of a GPU that each takes.
        device: PyTorch's name of the device that trains clients, `cpu` or `cuda`.
        memory_bytes: Memory that each reserves.
        at_once: Largest number that work at a time; None: all.
        client_timeout_s: Seconds after which the training of a client is considered hanging; None: never.
    """

    num_actors: int | None = None
    own_clients: bool = False
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    device: str = "cpu"
    memory_bytes: int = 0
    at_once: int | None = None
    client_timeout_s: float | None = None

    def start(self) -> Any:
        """Start a client actor and return its handle; calls wait until there is room for it.

        Ray neither restarts it nor repeats its calls: `dispatch` does both, and counts and reports them.
        """
        remote: Any = ray.remote
        takes = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "memory": self.memory_bytes or None}
        return remote(**takes, max_restarts=0)(ClientActor).remote()


ACTOR_BYTES = 600_000_000
"""Memory of a client actor with a small model: measured are 350 MB of its own, and 370 MB of libraries that the
actors of one machine share."""


def pool_config(
    num_actors: int | Literal["clients"] | None, num_clients: int, client_timeout_s: float | None
) -> tuple[PoolConfig, int]:
    """Return how client actors are started, and how many.

    Raises:
        SettingError: If the cluster has no room for them.
    """
    if num_actors != "clients":
        return PoolConfig(num_actors, client_timeout_s=client_timeout_s), num_at_once(num_actors)
    per_cpu, cpus = actors_per_cpu(num_clients)
    config = PoolConfig(
        num_clients,
        own_clients=True,
        num_cpus=floor(10_000 / per_cpu) / 10_000,  # Ray counts in ten-thousandths
        memory_bytes=ACTOR_BYTES,
        at_once=cpus,
        client_timeout_s=client_timeout_s,
    )
    return config, num_clients


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
    share = _measured_share(config, scenario)
    fits = min(floor(1 / share) * check_gpus(), num_at_once(None))
    if wanted is not None and wanted > fits:
        raise SettingError(
            f"executor.num_actors={wanted} is more than the GPUs have room for: the largest client needs "
            f"{share:.0%} of a GPU; allowed: 1 to {fits}"
        )
    return replace(config, num_actors=wanted or fits, num_gpus=share, device="cuda"), wanted or fits


def _measured_share(config: PoolConfig, scenario: "ray.ObjectRef[Scenario]") -> float:
    """Return the share of a GPU that the largest client needs, measured by an actor that has one to itself."""
    measuring = replace(config, num_gpus=1.0).start()
    try:
        up = measuring.process_info.remote()
        wait_and_report([up], lambda _: "a client actor of 1 GPU, which measures how many share one", resource="GPU")
        share, lines = ray.get(measuring.gpu_share.remote([scenario]))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, SettingError):
            raise SettingError(str(cause)) from None
        raise run_error_of(error, 0) from None
    finally:
        ray.kill(measuring)
    relay(lines)
    return float(share)


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

    def num_actors(per_cpu: int) -> int:
        return sum(min(per_cpu * cpu, fit) for cpu, fit in zip(cpus, room, strict=True))

    fewest = ceil(num_clients / sum(cpus))
    return next(each for each in range(fewest, num_clients + 1) if num_actors(each) >= num_clients), sum(cpus)
