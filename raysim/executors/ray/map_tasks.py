"""Spread calls of one function over Ray's CPUs."""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray

from raysim.core.errors import RunFailedError
from raysim.executors.ray.cluster import connect, num_at_once, pickle_users_modules
from raysim.executors.ray.failure_policy import POLICY


def run_tasks(
    function: Callable[[Any], Any], inputs: Iterable[Any], num_tasks: int | None, address: str | None
) -> Iterator[tuple[int, Any]]:
    """Call a function of raysim on each input, one CPU a call, and yield its index and result as calls finish.

    Inputs are taken as they are needed: one more than can run at a time is sent ahead. A call that is lost with its
    process is repeated, then yields a `RunFailedError` instead of a result.

    Args:
        function: The function; does not raise.
        inputs: Its arguments, one for each call.
        num_tasks: Number of calls at a time; None: one per CPU.
        address: Address of a Ray cluster; None: RAY_ADDRESS if set, else a local Ray.
    """
    owns_ray, waiting = not ray.is_initialized(), {}
    try:
        if owns_ray:
            connect(num_tasks, address or os.environ.get("RAY_ADDRESS"))
        count, task = num_at_once(num_tasks), ray.remote(num_cpus=1, max_retries=POLICY.max_losses)(function)
        for index, value in enumerate(inputs):
            pickle_users_modules()
            waiting[task.remote(value)] = index
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
    index = waiting.pop(reference)
    try:
        return index, ray.get(reference)
    except ray.exceptions.RayError as error:
        return index, RunFailedError(0, -1, f"the process it ran in was lost: {error}")
