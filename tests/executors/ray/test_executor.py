"""The executor that the driver actor uses, here in this process, on client actors of a local Ray."""

import os
import signal

import numpy as np
import pytest

from raysim.core import tensors
from raysim.executors.in_process import InProcessExecutor
from raysim.executors.ray.runner import RayRunner
from raysim.simulation.build import build_scenario
from raysim.simulation.round import run_round
from raysim.simulation.transition import initial_state
from tests.conftest import tiny_settings

WITH_STATISTICS = (
    "model.name=resnet32", "model.options={}", "method.normalization=static", "selection.clients_per_round=4",
    "data.max_train_examples=120",
)  # fmt: skip


@pytest.mark.ray
@pytest.mark.slow
def test_rounds_on_actors_are_the_rounds_in_this_process_also_when_an_actor_is_lost(local_ray: None) -> None:
    import ray

    scenario = build_scenario(tiny_settings(*WITH_STATISTICS))
    here, expected = InProcessExecutor(scenario.workload), initial_state(scenario)
    with RayRunner(2, None) as runner:
        executor, state = runner.executor(scenario), initial_state(scenario)
        for round in (1, 2):
            if round == 2:
                os.kill(ray.get(runner.client_actors[0].process_id.remote()), signal.SIGKILL)
            expected, theirs = run_round(scenario, expected, here)
            state, ours = run_round(scenario, state, executor)
            assert tensors.digest(state.params) == tensors.digest(expected.params)
            assert (ours.score, ours.totals) == (theirs.score, theirs.totals)
            for column, values in ours.clients.items():
                np.testing.assert_array_equal(values, theirs.clients[column])
            assert len(ours.incidents) == round - 1
        assert ours.incidents[0].startswith("a client actor was lost (its process ended)")
