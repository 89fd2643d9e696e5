"""Waits until client actors are up, saying for what, and refuses those that would not do the same work."""

import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import ray

from raysim.console import say
from raysim.errors import SettingError

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


def wait_for(actors: Sequence[Any], num_cpus: float, address: str | None) -> list[Presence]:
    """Wait until all client actors are up; what is waited for is said after ten seconds, and then once a minute.

    Args:
        actors: Handles of actors with a method `presence`.
        num_cpus: CPUs that each takes.
        address: The cluster's address; none = a local Ray of our own.

    Raises:
        SettingError: If one cannot start, or has other versions than this process.
    """
    asked = [actor.presence.remote() for actor in actors]
    waiting, patience_s = list(asked), SAID_AFTER_S
    while True:
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=patience_s)
        if not waiting:
            break
        say(_shortage(len(waiting), len(asked), num_cpus))
        patience_s = SAID_AGAIN_S
    try:
        present = ray.get(asked)
    except ray.exceptions.RayError as error:
        last = str(error).strip().splitlines()[-1]
        raise SettingError(
            f"executor.address={address!r}: a client actor cannot start there ({last}); "
            "every machine needs raysim and its dependencies"
        ) from None
    check_versions(present, presence())
    if address:
        machines = Counter(each.host for each in present)
        say("client actors: " + ", ".join(f"{count} on {host}" for host, count in sorted(machines.items())))
    return present


def _shortage(missing: int, asked: int, num_cpus: float) -> str:
    there, free = ray.cluster_resources(), ray.available_resources()  # type: ignore[no-untyped-call]
    return (
        f"waiting for {missing} of {asked} client actors of {num_cpus:g} CPU each: "
        f"the cluster has {there.get('CPU', 0):g} CPUs, {free.get('CPU', 0):g} free"
    )


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
