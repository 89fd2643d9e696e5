"""Ray: join or start it, and spread calls of one function over its CPUs."""

import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray

from raysim import dotted
from raysim.errors import RunFailedError, SettingError

RESTARTS = 3
"""How often a process that died is started again; its task is repeated, since tasks are pure."""


def run_tasks(
    function: Callable[[Any], Any], inputs: Iterable[Any], num_tasks: int | None, address: str | None
) -> Iterator[tuple[int, Any]]:
    """Call a function of raysim on each input, one CPU a call, and yield place and result as calls finish.

    Inputs are asked for as they are needed: one more than can run at a time is on its way. A call that is lost
    with its process is repeated, then gives a `RunFailedError` in place of a result.

    Args:
        function: What to call; does not raise.
        inputs: Its arguments, one each.
        num_tasks: Calls at a time; none = one per CPU.
        address: Ray cluster; none = RAY_ADDRESS if set, else a local Ray of our own.
    """
    owns_ray, waiting = not ray.is_initialized(), {}
    try:
        if owns_ray:
            connect(num_tasks, address or os.environ.get("RAY_ADDRESS"))
        count, task = num_workers(num_tasks), ray.remote(num_cpus=1, max_retries=RESTARTS)(function)
        for place, value in enumerate(inputs):
            let_modules_travel()
            waiting[task.remote(value)] = place
            if len(waiting) > count:
                yield _first_done(waiting)
        while waiting:
            yield _first_done(waiting)
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
        if owns_ray:
            ray.shutdown()


def _first_done(waiting: dict[Any, int]) -> tuple[int, Any]:
    reference = ray.wait(list(waiting))[0][0]
    place = waiting.pop(reference)
    try:
        return place, ray.get(reference)
    except ray.exceptions.RayError as error:
        return place, RunFailedError(0, -1, f"the process it ran in was lost: {error}")


def connect(num_cpus: int | None, address: str | None) -> None:
    """Join the Ray at an address, or start a local one.

    Raises:
        SettingError: If there is none at the address.
    """
    on_termination = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address and address != "local":
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise SettingError(f"executor.address={address!r} cannot be reached: {error}") from None
    else:
        count = num_cpus or len(os.sched_getaffinity(0))
        ray.init(address="local", num_cpus=count, include_dashboard=False, **quiet)
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
