"""Join a Ray cluster, or start a local one."""

import logging
import os
import signal
from typing import Any

import ray

from raysim import dotted
from raysim.actors import tokens
from raysim.errors import SettingError

RESTARTS = 3
"""How often a process that died is started again; its task is repeated, since tasks are pure."""


def connect(num_cpus: int | None, address: str | None) -> None:
    """Join the Ray at an address, or start a local one.

    Raises:
        SettingError: If there is none at the address.
    """
    on_termination = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address and address != "local":
        tokens.use_one_where_asked(address)
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = f"{error}; {tokens.WAY_IN}"
            raise SettingError(f"executor.address={address!r} cannot be reached: {reason}") from None
    else:
        count = num_cpus or len(os.sched_getaffinity(0))
        ray.init(address="local", num_cpus=count, include_dashboard=False, **quiet)  # makes a token if there is none
        tokens.keep_private()
    ray._private.worker._worker_logs_enabled = False  # or Ray tells of lost actors on standard output
    signal.signal(signal.SIGTERM, on_termination)  # Ray installs one that aborts the process


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
