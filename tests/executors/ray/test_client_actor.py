import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from raysim.client.assignments import Assignment, Assignments
from raysim.client.trainer import ClientTrainer
from raysim.core import tensors
from raysim.core.errors import RunFailedError, SettingError
from raysim.executors import in_process
from raysim.executors.ray.client_actor import ClientActor, needed_share
from raysim.executors.ray.executor import chunk_shares
from raysim.executors.ray.runner import RayRunner
from raysim.pruning.masks import Mask, keep_top
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.significance import first_channels
from raysim.server.updates import merge
from raysim.simulation.build import build_scenario
from raysim.simulation.state import Storage
from tests.conftest import tiny_settings
from tests.planned import plan_round

MASK = Mask(np.ones(1, dtype=np.bool_))


def assignments_of(costs: list[float], packs: list[int] | None = None) -> Assignments:
    assignments = Assignments.of_rows(
        [Assignment(client, MASK, 1.0, 1.0, 1, False, cost) for client, cost in enumerate(costs)]
    )
    return assignments if packs is None else replace(assignments, packs=np.array(packs))


def test_chunks_hold_every_assignment_once_with_about_their_shares_of_the_cost_costliest_first() -> None:
    costs = np.random.default_rng(0).integers(1, 100, 370)
    shares = chunk_shares(4)
    assert sum(shares) == pytest.approx(1)
    chunks = assignments_of(costs.tolist()).chunks(shares)
    assert sorted(client for chunk in chunks for client in chunk.clients.tolist()) == list(range(370))
    found = [chunk.costs.sum() / costs.sum() for chunk in chunks]
    assert found == pytest.approx(shares, abs=100 / costs.sum())
    assert [chunk.costs.max() for chunk in chunks] == sorted((chunk.costs.max() for chunk in chunks), reverse=True)


def test_no_chunk_is_empty() -> None:
    chunks = assignments_of([1.0, 1.0, 1.0]).chunks(chunk_shares(3))
    assert [len(chunk) for chunk in chunks] == [1, 1, 1]


def test_a_pack_is_in_one_chunk() -> None:
    packs = [Assignments.ALONE, 0, 1, 0, Assignments.ALONE, 1, 0, 2]
    chunks = assignments_of([5.0, 1.0, 9.0, 1.0, 2.0, 1.0, 3.0, 4.0], packs).chunks([0.25] * 4)
    assert len(chunks) > 2
    homes = {}
    for place, chunk in enumerate(chunks):
        for pack in set(chunk.packs.tolist()) - {Assignments.ALONE}:
            assert homes.setdefault(pack, place) == place
    assert sorted(client for chunk in chunks for client in chunk.clients.tolist()) == list(range(8))


@pytest.mark.ray
@pytest.mark.slow
def test_a_failing_client_is_named_with_its_traceback(local_ray: None, tmp_path: Path) -> None:
    class Stumbling(nn.Module):
        """A user's layer that raises on batches of a certain length; local, so that Ray ships it by value."""

        def forward(self, inputs):
            if self.training and len(inputs) == 13:
                raise ValueError("thirteen rows are too many for me")
            return inputs

    scenario = build_scenario(tiny_settings("training.batch_size=13", "selection.clients_per_round=6"))
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


@pytest.mark.ray
@pytest.mark.long
def test_every_client_may_have_an_actor_of_its_own(local_ray: None, tmp_path: Path) -> None:
    """Twelve actors on three CPUs; each leaves a file with its process when it trains."""
    import ray

    class Signing(nn.Module):
        def forward(self, inputs):
            if self.training:
                (tmp_path / f"pid-{os.getpid()}").touch()
            return inputs

    scenario = build_scenario(tiny_settings("population.clients=12", "selection.clients_per_round=5", "rounds=1"))
    model = nn.Sequential(Signing(), *scenario.workload.model)
    example, _ = scenario.workload.data.test_rows(np.arange(2))
    workload = replace(scenario.workload, model=model, plan=ChannelPlan.trace(model, example))
    scenario = replace(scenario, workload=workload)
    here = in_process.InProcessRunner()
    list(here.run(scenario, Storage(tmp_path / "here", 1, 1)))
    for path in tmp_path.glob("pid-*"):
        path.unlink()
    with RayRunner("clients", None, num_clients=12) as runner:
        [report] = runner.run(scenario, Storage(tmp_path / "ray", 1, 1))
        assert tensors.digest(runner.final_state().params) == tensors.digest(here.final_state().params)
        pids = ray.get([actor.process_id.remote() for actor in runner.client_actors])
    assert len(set(pids)) == 12
    assert {f"pid-{pids[client]}" for client in report.clients["client"]} == {p.name for p in tmp_path.glob("pid-*")}


FAULTS = """
import resource
import numpy as np
from raysim.executors.ray.client_actor import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [np.ones(2**21) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such choice")
def test_memory_that_is_freed_is_taken_again_without_page_faults():
    printed = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    before, after = map(int, printed.split())
    assert after < before / 10


def test_the_share_of_a_gpu_covers_what_was_measured_with_a_margin() -> None:
    assert needed_share(10, 1000) == 0.02
    assert needed_share(999, 1000) == 1.0
    for used in (1, 17, 333):
        assert needed_share(used, 1000) * 1000 >= 1.25 * used


@pytest.mark.slow
def test_an_actor_in_this_process_trains_scores_and_estimates_as_the_in_process_executor_does() -> None:
    scenario = build_scenario(tiny_settings("model.name=resnet32", "model.options={}"))
    planned = plan_round(scenario)
    params, rows = planned.broadcast.params, np.arange(20)
    executor, actor = in_process.InProcessExecutor(scenario.workload), ClientActor()
    with pytest.raises(RuntimeError, match="no scenario has been prepared"):
        actor.score(rows, tensors.as_arrays(params))
    actor._trainer = ClientTrainer(scenario.workload)

    expected = executor.train(planned.assignments, planned.broadcast)
    arrays = tensors.as_arrays(params), tensors.as_arrays(planned.broadcast.extra)
    found, _ = actor.train(planned.assignments, *arrays, planned.broadcast.round, planned.broadcast.rules)
    sums = merge([found]).sums
    assert sums.keys() == expected.sums.keys()
    for name, exact in expected.sums.items():
        assert tensors.digest(sums[name].totals) == tensors.digest(exact.totals)
    np.testing.assert_array_equal(found.clients["client"], expected.clients["client"])
    np.testing.assert_array_equal(found.kept, expected.kept)

    score, _ = actor.score(rows, arrays[0])
    same = executor.score(params, rows)
    assert (score.count, score.loss, score.terms) == (same.count, same.loss, same.terms)
    half = keep_top(scenario.workload.plan, first_channels(scenario.workload.plan), 0.5)
    for split in ("test", "validation"):
        score, _ = actor.score(rows, arrays[0], split, half)
        same = executor.score(params, rows, split, half)
        assert (score.count, score.loss, score.terms) == (same.count, same.loss, same.terms)
    own, _ = actor.estimate_statistics(rows, arrays[0], half)
    of_half = executor.estimate_statistics(params, rows, half)
    assert tensors.digest(tensors.as_tensors(own)) == tensors.digest(of_half)
    estimated, lines = actor.estimate_statistics(rows, arrays[0])
    assert tensors.digest(tensors.as_tensors(estimated)) == tensors.digest(executor.estimate_statistics(params, rows))
    assert tensors.digest(tensors.as_tensors(estimated)) != tensors.digest(params)
    assert lines == ()
