"""Waits until actors are up, saying for what, and refuses those that would not do the same work."""

import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import ray

from raysim.core.errors import SettingError
from raysim.core.log import info, warning

SAID_AFTER_S, SAID_AGAIN_S = 10.0, 60.0
SAME_EVERYWHERE = ("raysim", "torch")
"""Packages whose versions decide what comes out."""


@dataclass(frozen=True, slots=True)
class Presence:
    """What a process says of itself: the machine it runs on, and its versions of `SAME_EVERYWHERE`."""

    host: str
    versions: dict[str, str]


def presence() -> Presence:
    """Return what this process says of itself."""
    return Presence(socket.gethostname(), {name: version(name) for name in SAME_EVERYWHERE})


def wait_for(actors: Sequence[Any], driver: Any, num_cpus: float, address: str | None) -> list[Presence]:
    """Wait until the client actors and the driver actor are up, saying for what.

    Args:
        actors: Handles of actors with a method `presence`.
        driver: Handle of the driver actor, which has one, too.
        num_cpus: CPUs that each client actor takes.
        address: The cluster's address; none = a local Ray of our own.

    Returns:
        What the client actors say of themselves.

    Raises:
        SettingError: If one cannot start, or has other versions than this process.
    """
    asked = [actor.presence.remote() for actor in actors]
    drives = driver.presence.remote()
    wait_saying(asked, lambda missing: f"{missing} of {len(asked)} client actors of {num_cpus:g} CPU each")
    wait_saying([drives], lambda _: "the driver actor")
    try:
        present = ray.get(asked)
        driving = ray.get(drives)
    except ray.exceptions.RayError as error:
        last = str(error).strip().splitlines()[-1]
        raise SettingError(
            f"executor.address={address!r}: an actor cannot start there ({last}); "
            "every machine needs raysim and its dependencies"
        ) from None
    check_versions([driving, *present], presence())
    if address:
        machines = Counter(each.host for each in present)
        info("client actors: " + ", ".join(f"{count} on {host}" for host, count in sorted(machines.items())))
    return present


def wait_saying(
    awaited: Sequence[Any], what: Callable[[int], str], enough: int | None = None, of: str = "CPU"
) -> list[Any]:
    """Wait for answers of actors; what is waited for is said after ten seconds, and then once a minute.

    Args:
        awaited: References.
        what: Names what is waited for, given how many are missing.
        enough: How many are waited for; none = all.
        of: What the cluster may be short of.

    Returns:
        Those that have not answered.
    """
    waiting, patience_s = list(awaited), SAID_AFTER_S
    left_over = 0 if enough is None else len(waiting) - enough
    while True:
        _, waiting = ray.wait(waiting, num_returns=len(waiting) - left_over, timeout=patience_s)
        if len(waiting) <= left_over:
            return waiting
        there, free = ray.cluster_resources(), ray.available_resources()  # type: ignore[no-untyped-call]
        room = f"the cluster has {there.get(of, 0):g} {of}s, {free.get(of, 0):g} free"
        warning(f"waiting for {what(len(waiting))}: {room}")
        patience_s = SAID_AGAIN_S


def check_versions(present: Sequence[Presence], started: Presence) -> None:
    """Refuse processes that have other versions than the one a run was started in.

    Raises:
        SettingError: If there are any; the message names both versions, and the machines.
    """
    for name, own in started.versions.items():
        others = sorted({(each.versions[name], each.host) for each in present if each.versions[name] != own})
        if others:
            found = ", ".join(f"{name} {other} on {host}" for other, host in others)
            raise SettingError(
                f"the cluster is one of mixed versions: {found}, {name} {own} on {started.host}, where the run was "
                "started; allowed: the same versions of raysim and torch on all machines"
            )
