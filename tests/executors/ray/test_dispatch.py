"""Faults inside a round, on real clusters: the run continues to the same bits, or names the client that ended it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from raysim.config.executor import ExecutorSettings
from raysim.core import tensors
from raysim.core.errors import RunFailedError, SettingError
from raysim.executors import in_process
from raysim.executors.ray.failure_policy import Activity, Attempt, Failure, Kind, decide
from raysim.pruning.plan import ChannelPlan
from raysim.simulation import checkpoint
from raysim.simulation.build import build_scenario
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import RoundReport, Storage
from tests.conftest import ROOT, start_local_ray, tiny_settings

PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
STORE_BYTES = 80 * 2**20
PATIENCE_S = 120
VICTIM = 3


def faulty(scenario: Scenario, folder: Path, fault: str = "") -> Scenario:
    """The scenario with a layer that, while it trains, obeys the files of a folder and harms one client.

    It notes where it trains in `played-MACHINE-PROCESS`, takes its time while there is a file `slow`, hangs once for
    a file `hang`, and, from the round after the first checkpoint on, does to client `VICTIM` what `fault` says.
    """
    first = Path(str(checkpoint.path_of(folder / "checkpoints", 1)))
    victim = scenario.workload.data.train_rows(scenario.workload.population.train[VICTIM][:1])[0]

    class Faulty(nn.Module):
        """Local, so that Ray ships it by value."""

        def forward(self, inputs):
            if not self.training:
                return inputs
            machine = "here"
            if (folder / "machines").exists():
                import ray

                machine = ray.get_runtime_context().get_node_id()
            (folder / f"played-{machine}-{os.getpid()}").touch()
            if (folder / "slow").exists():
                time.sleep(0.3)
            try:
                (folder / "hang").unlink()
                time.sleep(3600)
            except FileNotFoundError:
                pass
            if not first.exists() or not (inputs == victim).flatten(1).all(1).any():
                return inputs
            if fault == "raise":
                raise ValueError("these rows are too many for me")
            if fault == "crash":
                os._exit(1)
            if fault == "hang":
                time.sleep(3600)
            return inputs * float("nan") if fault == "nan" else inputs

    model = nn.Sequential(Faulty(), *scenario.workload.model)
    example, _ = scenario.workload.data.test_rows(np.arange(2))
    workload = replace(scenario.workload, model=model, plan=ChannelPlan.trace(model, example))
    return replace(scenario, workload=workload)


def scenario_of(*overrides: str) -> Scenario:
    return build_scenario(tiny_settings("selection.clients_per_round=6", *overrides))


@pytest.fixture(scope="module")
def machines() -> Iterator[Any]:
    """A cluster that starts with one machine of one CPU and little memory for objects; `add_node` gives it more."""
    import ray
    from ray.cluster_utils import Cluster

    others = ray.is_initialized()
    ray.shutdown()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False},
    )
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    if others:
        start_local_ray()


def wait_for(condition: Callable[[], Any]) -> Any:
    started = time.monotonic()
    while not (found := condition()):
        assert time.monotonic() < started + PATIENCE_S, "nothing happened"
        time.sleep(0.05)
    return found


def played_on(folder: Path, machine: Any, *but: int) -> Callable[[], int]:
    """A function that returns a process that has trained on a machine, 0 while there is none but those given."""

    def process() -> int:
        found = [int(path.name.rsplit("-", 1)[1]) for path in folder.glob(f"played-{machine.node_id}-*")]
        return next((pid for pid in found if pid not in but), 0)

    return process


def played(scenario: Scenario, folder: Path, num_actors: int | None, **rules: Any) -> tuple[str, list[RoundReport]]:
    from raysim.executors.ray.runner import RayRunner

    with RayRunner(num_actors, None, **rules) as runner:
        reports = list(runner.run(scenario, Storage(folder, 1, 2)))
        return tensors.digest(runner.final_state().params), reports


def meddled_with(
    scenario: Scenario, folder: Path, meddle: Callable[[], None], num_actors: int | None, **rules: Any
) -> tuple[str, list[RoundReport]]:
    """Play a scenario, slowly until something has been done to the cluster (in this thread: Ray needs the first)."""
    with ThreadPoolExecutor(1) as threads:
        found = threads.submit(played, scenario, folder, num_actors, **rules)
        try:
            meddle()
        finally:
            (folder / "slow").unlink()
        return found.result()


def expected_of(scenario: Scenario, folder: Path) -> tuple[str, list[RoundReport]]:
    runner = in_process.InProcessRunner()
    reports = list(runner.run(scenario, Storage(folder, 1, 2)))
    return tensors.digest(runner.final_state().params), reports


def assert_same(ours: tuple[str, list[RoundReport]], theirs: tuple[str, list[RoundReport]]) -> list[str]:
    """Compare digests, scores and tables of clients; return what happened on the way."""
    assert ours[0] == theirs[0]
    for mine, other in zip(ours[1], theirs[1], strict=True):
        assert (mine.score, mine.submodel, mine.totals) == (other.score, other.submodel, other.totals)
        for column, values in mine.clients.items():
            np.testing.assert_array_equal(values, other.clients[column])
    return [incident for report in ours[1] for incident in report.incidents]


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_survives_what_happens_to_actors_machines_and_memory(machines, tmp_path) -> None:
    """One per CPU: a machine joins and gets an actor, an actor is killed, a client hangs, a machine is lost.

    All the while the object store is full, so that Ray moves objects to disk.
    """
    import ray

    quiet, folder = tmp_path / "quiet", tmp_path / "run"
    for each in (quiet, folder):
        each.mkdir()
    (folder / "machines").touch()
    (folder / "slow").touch()
    overrides = ("rounds=40", "data.max_train_examples=180", "model.options={channels: [4, 8], hidden: 2048}")
    expected = expected_of(faulty(scenario_of(*overrides), quiet), quiet)
    filler = [ray.put(np.ones(STORE_BYTES // 8, np.uint8)) for _ in range(16)]
    held = ray.get(filler)

    def meddle() -> None:
        first = wait_for(played_on(folder, machines.head_node))
        joined = machines.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
        wait_for(played_on(folder, joined))
        os.kill(first, signal.SIGKILL)
        wait_for(played_on(folder, machines.head_node, first))
        so_far = {path.name for path in folder.glob("played-*")}
        (folder / "hang").touch()
        wait_for(lambda: {path.name for path in folder.glob("played-*")} - so_far)
        machines.remove_node(joined, allow_graceful=False)

    found = meddled_with(faulty(scenario_of(*overrides), folder), folder, meddle, None, client_timeout_s=8.0)
    assert held[0][0] == 1
    incidents = assert_same(found, expected)
    told = ("its process ended", "did not answer within executor.client_timeout_s=8 s per client", "lost (it")
    for fault in told:
        assert any(fault in incident for incident in incidents), (fault, incidents)
    assert len(incidents) >= len(told)


@pytest.mark.ray
@pytest.mark.long
def test_a_fixed_number_of_actors_is_kept_on_a_machine_that_joins(machines, tmp_path) -> None:
    quiet, folder = tmp_path / "quiet", tmp_path / "run"
    for each in (quiet, folder):
        each.mkdir()
    (folder / "machines").touch()
    (folder / "slow").touch()
    overrides = ("rounds=20", "data.max_train_examples=180")
    expected = expected_of(faulty(scenario_of(*overrides), quiet), quiet)
    lost = machines.add_node(num_cpus=1)

    def meddle() -> None:
        wait_for(played_on(folder, lost))
        machines.remove_node(lost, allow_graceful=False)
        wait_for(played_on(folder, machines.add_node(num_cpus=1)))

    found = meddled_with(faulty(scenario_of(*overrides), folder), folder, meddle, 2)
    assert any("a client actor was lost" in incident for incident in assert_same(found, expected))


CAUSES = {
    "raise": "ValueError: these rows are too many for me",
    "nan": "training diverged: loss is nan; lower training.learning_rate",
    "crash": "its client actor was lost 4 times, the last time while it trained client 3 alone: its process ended",
    "hang": "client 3 did not answer within executor.client_timeout_s=4 s per client, twice",
}


def test_the_page_shows_settings_and_messages_as_they_are() -> None:
    [block] = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert ExecutorSettings(**yaml.safe_load(block)["executor"]).client_timeout_s == 60
    assert str(RunFailedError(2, VICTIM, CAUSES["crash"])) in PAGE
    assert decide(Failure(Kind.MACHINE_LOST), Attempt(Activity.TRAIN, (34, 4, 19))).incident in PAGE


def assert_stopped(error: RunFailedError, fault: str, folder: Path, expected: dict[str, torch.Tensor]) -> None:
    """The error names round, client and cause, and the checkpoint of the round before is whole."""
    assert (error.round, error.client, error.cause) == (2, VICTIM, CAUSES[fault])
    kept = checkpoint.load(checkpoint.path_of(folder / "checkpoints", 1))
    assert tensors.digest(kept.params) == tensors.digest(expected)


@pytest.fixture(scope="module")
def first_round(tmp_path_factory) -> dict[str, torch.Tensor]:
    """The parameters after a round without faults."""
    folder = tmp_path_factory.mktemp("first")
    runner = in_process.InProcessRunner()
    list(runner.run(faulty(scenario_of("rounds=1"), folder), Storage(folder, 1, 1)))
    return runner.final_state().params


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["raise", "nan"])
def test_a_client_that_fails_in_this_process_is_named(fault: str, tmp_path: Path, first_round) -> None:
    with pytest.raises(RunFailedError) as failed:
        list(in_process.InProcessRunner().run(faulty(scenario_of(), tmp_path, fault), Storage(tmp_path, 1, 1)))
    assert_stopped(failed.value, fault, tmp_path, first_round)


@pytest.mark.ray
@pytest.mark.slow
def test_a_client_that_raises_diverges_hangs_or_ends_its_process_is_named(machines, tmp_path, first_round) -> None:
    from raysim.executors.ray.runner import RayRunner

    with RayRunner(1, None, client_timeout_s=4.0) as runner:
        for fault in CAUSES:
            folder = tmp_path / fault
            folder.mkdir()
            with pytest.raises(RunFailedError) as failed:
                list(runner.run(faulty(scenario_of(), folder, fault), Storage(folder, 1, 1)))
            assert_stopped(failed.value, fault, folder, first_round)


@pytest.mark.ray
@pytest.mark.slow
def test_more_clients_than_there_is_memory_for_cannot_have_an_actor_each(machines) -> None:
    from raysim.executors.ray.runner import RayRunner

    wanted = r"executor.num_actors='clients' needs 600.0 GB for population.clients=1000 actors of 600 MB; the cluster"
    with pytest.raises(SettingError, match=wanted), RayRunner("clients", None, num_clients=1000):
        pass


@pytest.mark.ray
@pytest.mark.long
def test_an_object_store_that_is_full_and_cannot_spill_ends_the_run_with_a_clear_message(tmp_path) -> None:
    """In a process of its own, since such a Ray has to be started for it."""
    script = tmp_path / "full.py"
    script.write_text(FULL_STORE.format(root=str(ROOT), bytes=STORE_BYTES), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script, tmp_path / "run"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert "round 1: Ray's object store is full and cannot move anything to disk; start Ray with more" in done.stdout
    assert "Traceback" not in done.stdout


FULL_STORE = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
import numpy as np
import ray
from tests.conftest import tiny_settings
from raysim.core.errors import RunFailedError
from raysim.executors.ray.runner import RayRunner
from raysim.simulation.build import build_scenario
from raysim.simulation.state import Storage

nothing_spills = {{"local_fs_capacity_threshold": 0.001}}
ray.init(address="local", num_cpus=1, object_store_memory={bytes}, _system_config=nothing_spills,
         include_dashboard=False, log_to_driver=False)
scenario = build_scenario(tiny_settings("model.options={{channels: [4, 8], hidden: 49152}}"))
held = [ray.put(np.ones({bytes} // 10, np.uint8)) for _ in range(9)]
with RayRunner(1, None) as runner:
    try:
        list(runner.run(scenario, Storage(Path(sys.argv[1]), 1, 1)))
    except RunFailedError as error:
        print(error)
ray.shutdown()
"""
