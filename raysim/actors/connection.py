"""Join a Ray cluster, or start a local one."""

import logging
import os
import signal
from typing import Any

import ray

from raysim import dotted
from raysim.actors import tokens
from raysim.errors import SettingError
from raysim.messages import say

QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
RESTARTS = 3
"""How often a process that died is started again; its task is repeated, since tasks are pure."""


def connect(num_cpus: int | None, address: str | None, dashboard_host: str | None = None) -> None:
    """Join the Ray at an address, or start a local one, which has a token of its own.

    Args:
        num_cpus: CPUs of a local Ray; none = those of this machine.
        address: A cluster's; none or `local` = a local Ray.
        dashboard_host: Where a local Ray's dashboard listens; none = it has none.

    Raises:
        SettingError: If there is none at the address, or it has a dashboard already.
    """
    on_termination = signal.getsignal(signal.SIGTERM)
    try:
        try:
            _start(num_cpus, address, dashboard_host)
        finally:
            signal.signal(signal.SIGTERM, on_termination)  # Ray installs one that aborts the process
    except SystemExit:  # what Ray makes of SIGTERM while it starts
        signal.raise_signal(signal.SIGTERM)
        raise
    ray._private.worker._worker_logs_enabled = False  # or Ray tells of lost actors on standard output


def _start(num_cpus: int | None, address: str | None, dashboard_host: str | None) -> None:
    if address and address != "local":
        if dashboard_host:
            raise SettingError(
                f"executor.dashboard_host={dashboard_host!r} has no effect on the cluster at {address!r}, whose "
                "dashboard is there or not; allowed: null"
            )
        _join(address)
    else:
        count = num_cpus or len(os.sched_getaffinity(0))
        shown: dict[str, Any] = {"include_dashboard": bool(dashboard_host)}
        shown |= {"dashboard_host": dashboard_host} if dashboard_host else {}
        context = ray.init(address="local", num_cpus=count, **shown, **QUIET)
        tokens.keep_private()
        if dashboard_host:
            say(f"dashboard: http://{context.dashboard_url}")


def _join(address: str) -> None:
    tokens.use_one_where_asked(address)
    try:
        ray.init(address=address, **QUIET)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = f"{error}; {tokens.WAY_IN}"
        raise SettingError(f"executor.address={address!r} cannot be reached: {reason}") from None


def num_workers(wanted: int | None) -> int:
    """Return how many one-CPU actors or tasks to run at a time.

    Raises:
        SettingError: If the cluster has not as many CPUs.
    """
    cpus = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
    count = wanted or max(1, cpus)
    if count > cpus:
        raise SettingError(
            f"executor.num_actors={count} is more than the cluster's {cpus} CPUs; allowed: 1 to {cpus}"
        )
    return count


def let_modules_travel() -> None:
    """Send the code of users' own modules along with what refers to them."""
    for module in dotted.users_modules():
        ray.cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]
