"""Spreads calls of one function over Ray's CPUs."""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray

from raysim.core.errors import RunFailedError
from raysim.executors.ray.cluster import RESTARTS, connect, let_modules_travel, num_workers


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
