"""Wait until actors have started, report what the wait is for, and refuse machines with other versions."""

import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import ray

from raysim.core.errors import SettingError
from raysim.core.log import info, warning

REPORT_AFTER_S, REPORT_EVERY_S = 10.0, 60.0
SAME_EVERYWHERE = ("raysim", "torch")
"""Packages whose versions decide the results."""


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """The machine that a process runs on, and its versions of `SAME_EVERYWHERE`."""

    host: str
    versions: dict[str, str]


def process_info() -> ProcessInfo:
    """Return the machine and the versions of this process."""
    return ProcessInfo(socket.gethostname(), {name: version(name) for name in SAME_EVERYWHERE})


def wait_for(actors: Sequence[Any], driver: Any, num_cpus: float, address: str | None) -> list[ProcessInfo]:
    """Wait until the client actors and the driver actor have started, and report what the wait is for.

    Args:
        actors: Handles of actors with a method `process_info`.
        driver: Handle of the driver actor, which has this method, too.
        num_cpus: Number of CPUs that each client actor takes.
        address: Address of the cluster; None: a local Ray.

    Returns:
        Machines and versions of the client actors.

    Raises:
        SettingError: If an actor cannot start, or has other versions than this process.
    """
    of_clients = [actor.process_info.remote() for actor in actors]
    of_driver = driver.process_info.remote()
    wait_and_report(
        of_clients, lambda missing: f"{missing} of {len(of_clients)} client actors of {num_cpus:g} CPU each"
    )
    wait_and_report([of_driver], lambda _: "the driver actor")
    try:
        found = ray.get(of_clients)
        driving = ray.get(of_driver)
    except ray.exceptions.RayError as error:
        last = str(error).strip().splitlines()[-1]
        raise SettingError(
            f"executor.address={address!r}: an actor cannot start there ({last}); "
            "every machine needs raysim and its dependencies"
        ) from None
    check_versions([driving, *found], process_info())
    if address:
        machines = Counter(each.host for each in found)
        info("client actors: " + ", ".join(f"{count} on {host}" for host, count in sorted(machines.items())))
    return found


def wait_and_report(
    awaited: Sequence[Any], what: Callable[[int], str], enough: int | None = None, resource: str = "CPU"
) -> list[Any]:
    """Wait for answers of actors; report what is missing after ten seconds, and then once a minute.

    Args:
        awaited: References to the answers.
        what: Names what is missing, given the number of missing answers.
        enough: Number of answers to wait for; None: all.
        resource: The resource that the cluster may lack.

    Returns:
        The references that have no answer yet.
    """
    waiting, timeout_s = list(awaited), REPORT_AFTER_S
    left_over = 0 if enough is None else len(waiting) - enough
    while True:
        _, waiting = ray.wait(waiting, num_returns=len(waiting) - left_over, timeout=timeout_s)
        if len(waiting) <= left_over:
            return waiting
        total, free = ray.cluster_resources(), ray.available_resources()  # type: ignore[no-untyped-call]
        room = f"the cluster has {total.get(resource, 0):g} {resource}s, {free.get(resource, 0):g} free"
        warning(f"waiting for {what(len(waiting))}: {room}")
        timeout_s = REPORT_EVERY_S


def check_versions(processes: Sequence[ProcessInfo], started: ProcessInfo) -> None:
    """Refuse processes that have other versions than the one that started the run.

    Raises:
        SettingError: If there are any; the message names both versions, and the machines.
    """
    for name, own in started.versions.items():
        others = sorted({(each.versions[name], each.host) for each in processes if each.versions[name] != own})
        if others:
            found = ", ".join(f"{name} {other} on {host}" for other, host in others)
            raise SettingError(
                f"the cluster's machines have different versions: {found}, {name} {own} on {started.host}, where the "
                "run was started; allowed: the same versions of raysim and torch on all machines"
            )
