"""How many client actors a cluster has room for, and how they are started."""

from dataclasses import replace
from functools import partial
from math import ceil, floor
from typing import Any, Literal

import ray

from raysim import messages
from raysim.actors.cast import CastRules
from raysim.actors.connection import num_workers
from raysim.actors.readiness import wait_saying
from raysim.errors import SettingError
from raysim.scenario import Scenario

ACTOR_BYTES = 600_000_000
"""Memory of a client actor with a small model: measured are 350 MB of its own, and 370 MB of libraries that those of
one machine share."""


def rules(
    num_actors: int | Literal["clients"] | None, num_clients: int, client_timeout_s: float | None
) -> tuple[CastRules, int]:
    """Return how client actors are started, and how many.

    Raises:
        SettingError: If the cluster has no room for them.
    """
    if num_actors != "clients":
        return CastRules(num_actors, client_timeout_s=client_timeout_s), num_workers(num_actors)
    per_cpu, cpus = actors_per_cpu(num_clients)
    share = floor(10_000 / per_cpu) / 10_000  # Ray counts in ten-thousandths
    found = CastRules(
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


def on_gpus(rules: CastRules, scenario: "ray.ObjectRef[Scenario]", wanted: int | None) -> tuple[CastRules, int]:
    """Return how actors that share GPUs are started, and how many: as many as fit, or as are wanted.

    Raises:
        SettingError: If more are wanted than fit.
    """
    measuring = replace(rules, num_gpus=1.0).start()
    up = measuring.presence.remote()
    wait_saying([up], lambda _: "a client actor of 1 GPU, which measures how many share one", of="GPU")
    share, remarks = ray.get(measuring.gpu_share.remote([scenario]))
    messages.pass_on(remarks)
    ray.kill(measuring)
    fits = min(floor(1 / share) * check_gpus(), num_workers(None))
    if wanted is not None and wanted > fits:
        raise SettingError(
            f"executor.num_actors={wanted} is more than fit: the largest client needs {share:.0%} of a GPU; "
            f"allowed: 1 to {fits}"
        )
    return replace(rules, num_actors=wanted or fits, num_gpus=share), wanted or fits


def start(rules: CastRules, count: int, actors: list[Any]) -> None:
    """Start client actors and add them to a list; those that share CPUs not all at once."""
    starting: list[Any] = []
    for started in range(count):
        if rules.at_once is not None and len(starting) >= rules.at_once:
            starting = wait_saying(starting, partial(_yet_to_start, started, count, rules.num_cpus), enough=1)
        actors.append(rules.start())
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
