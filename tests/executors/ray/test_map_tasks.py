"""Calls of one function on Ray's CPUs."""

import os
import signal

import pytest

from raysim.core.errors import RunFailedError
from raysim.executors.ray.map_tasks import run_tasks


@pytest.mark.ray
@pytest.mark.slow
def test_results_come_with_their_inputs_index_and_a_lost_process_is_an_error_of_its_own(
    local_ray: None,
) -> None:
    import ray

    here = os.getpid()

    def square(value: int) -> tuple[int, bool]:
        """Local, so that Ray ships it by value."""
        if value == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return value**2, os.getpid() != here

    found = dict(run_tasks(square, iter(range(6)), 2, None))
    lost = found.pop(3)
    assert found == {index: (index**2, True) for index in (0, 1, 2, 4, 5)}
    assert isinstance(lost, RunFailedError)
    assert "the process it ran in was lost" in lost.cause
    assert ray.is_initialized(), "it was there before"
