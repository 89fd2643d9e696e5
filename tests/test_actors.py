from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_settings
from torch import nn

from raysim import simulation
from raysim.actors.executor import chunk_by_cost
from raysim.actors.runner import RayRunner
from raysim.errors import RunFailedError, SettingError
from raysim.pruning.plan import ChannelPlan
from raysim.types import ClientTask, Mask, Storage

MASK = Mask(np.ones(1, dtype=np.bool_))


def test_chunks_hold_every_task_once_balanced_and_costliest_first() -> None:
    costs = np.random.default_rng(0).integers(1, 100, 37)
    tasks = [ClientTask(client, MASK, 1.0, 1.0, 1, False, float(cost)) for client, cost in enumerate(costs)]
    chunks = chunk_by_cost(tasks, 4)
    assert sorted(task.client for chunk in chunks for task in chunk) == list(range(37))
    totals = [sum(task.cost for task in chunk) for chunk in chunks]
    assert totals == sorted(totals, reverse=True)
    assert max(totals) - min(totals) <= 100


def test_no_chunk_is_empty() -> None:
    tasks = [ClientTask(client, MASK, 1.0, 1.0, 1, False, 1.0) for client in range(3)]
    assert [len(chunk) for chunk in chunk_by_cost(tasks, 8)] == [1, 1, 1]


@pytest.mark.ray
@pytest.mark.slow
def test_a_failing_client_is_named_with_its_traceback(local_ray: None, tmp_path: Path) -> None:
    class Stumbling(nn.Module):
        """A user's layer that raises on batches of a certain length; local, so that Ray ships it by value."""

        def forward(self, inputs):
            if self.training and len(inputs) == 13:
                raise ValueError("thirteen rows are too many for me")
            return inputs

    scenario = simulation.build(tiny_settings("training.batch_size=13", "selection.clients_per_round=6"))
    model = nn.Sequential(Stumbling(), *scenario.workload.model)
    example, _ = scenario.workload.data.test_rows(np.arange(2))
    workload = replace(scenario.workload, model=model, plan=ChannelPlan.trace(model, example))
    scenario = replace(scenario, workload=workload)
    with RayRunner(2, None) as runner, pytest.raises(RunFailedError) as error:
        list(runner.run(scenario, Storage(tmp_path, 1, 1)))
    assert error.value.round == 1
    assert error.value.client in range(6)
    assert "thirteen rows" in error.value.cause
    assert "Stumbling" in error.value.details or "forward" in error.value.details


@pytest.mark.ray
@pytest.mark.slow
def test_more_actors_than_cpus_are_refused_on_a_running_cluster(local_ray: None) -> None:
    with pytest.raises(SettingError, match=r"executor.num_actors=50.*allowed: 1 to 3"), RayRunner(50, None):
        pass
