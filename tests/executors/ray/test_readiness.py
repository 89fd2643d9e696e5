"""A cluster before the first round: waiting for actors, refused machines, and the number of times data is sent."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Timer

import numpy as np
import pytest

from raysim.core.errors import SettingError
from raysim.simulation.build import build_scenario
from tests.conftest import CONFIGS, ROOT, tiny_settings
from tests.stores import store_in

SMALL = (
    "rounds=1", "population.clients=6", "selection.clients_per_round=6", "training.epochs=1",
    "model.options={channels: [4, 8], hidden: 16}",
)  # fmt: skip
LOADER = """
import os, warnings
import numpy as np

def load(root):
    warnings.warn(f"loaded by {os.getpid()}")
    file = np.load(f"{root}/{os.environ.get('SITE', 'here')}.npz")
    return file["x"], file["y"], file["x"], file["y"]
"""


BUSY = """
import sys
from raysim.executors.ray.cluster import connect
import ray

class Busy:
    def ping(self):
        return "busy"

connect(None, sys.argv[1])
busy = ray.remote(num_cpus=1)(Busy).remote()
print(ray.get(busy.ping.remote()), flush=True)
sys.stdin.read()
"""


def command(folder: Path, name: str, *settings: str) -> list[str]:
    store = (f"tracking.uri={store_in(folder, 'm.db')}", *SMALL, *settings)
    given = [part for setting in store for part in ("--set", setting)]
    start = [sys.executable, "-m", "raysim", "run", str(CONFIGS / "digits.yaml")]
    return [*start, *given, "--output", str(folder / name), "--json"]


def digest_of(output: str) -> str:
    return json.loads(output.splitlines()[-1])["params_sha256"]


def run(folder: Path, name: str, *settings: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    return subprocess.run(
        command(folder, name, *settings), env=env, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Two machines of one CPU each, and a way to add others."""
    from ray.cluster_utils import Cluster

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = f"{ROOT}{os.pathsep}{tmp_path}"
    machine = {"num_cpus": 1, "object_store_memory": 100_000_000, "env_vars": {"PYTHONPATH": path}}
    running = Cluster(initialize_head=True, head_node_args={**machine, "include_dashboard": False})
    running.add_node(**machine)
    running.wait_for_nodes()
    yield running, machine
    running.shutdown()


@pytest.mark.ray
@pytest.mark.long
def test_a_busy_or_mixed_cluster_is_said_and_data_may_lie_on_its_machines(cluster, tmp_path) -> None:
    running, machine = cluster
    address = f"executor.address={running.address}"
    busy = subprocess.Popen(
        [sys.executable, "-c", BUSY, running.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert next(busy.stdout) == "busy\n"
    waiting = subprocess.Popen(
        command(tmp_path, "waiting", address, "executor.num_actors=2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    told = next(line for line in waiting.stderr if "waiting" in line)
    assert told == "waiting for 1 of 2 client actors of 1 CPU each: the cluster has 2 CPUs, 0 free\n"
    busy.communicate("", timeout=60)
    output, errors = waiting.communicate(timeout=300)
    assert waiting.returncode == 0, errors
    alone = digest_of(run(tmp_path, "alone", "executor.kind=in-process").stdout)
    assert digest_of(output) == alone

    rows = np.random.default_rng(0).integers(0, 255, (120, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(120) % 10
    (tmp_path / "places.py").write_text(LOADER)
    np.savez(tmp_path / "here.npz", x=rows, y=labels)
    np.savez(tmp_path / "elsewhere.npz", x=rows[::-1], y=labels)
    own = ("data.name=places:load", f"data.root={tmp_path}")
    loaded = run(tmp_path, "loaded", address, *own, "data.on_nodes=true")
    sent = run(tmp_path, "sent", *own, "executor.kind=in-process")
    assert loaded.returncode == 0, loaded.stderr
    assert len(set(re.findall(r"UserWarning: loaded by (\d+) ", sent.stderr))) == 1
    assert len(set(re.findall(r"UserWarning: loaded by (\d+) ", loaded.stderr))) == 4, "here, two clients, driver"
    assert digest_of(loaded.stdout) == digest_of(sent.stdout) != alone

    odd = tmp_path / "odd"
    (odd / "raysim-9.9.9.dist-info").mkdir(parents=True)
    (odd / "raysim-9.9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: raysim\nVersion: 9.9.9\n")
    paths = {"PYTHONPATH": os.pathsep.join([str(odd), machine["env_vars"]["PYTHONPATH"]])}
    third = running.add_node(**(machine | {"env_vars": paths}))
    running.wait_for_nodes()
    mixed = run(tmp_path, "mixed", address, "executor.num_actors=3")
    assert mixed.returncode == 2
    (line,) = [line for line in mixed.stderr.splitlines() if "different versions" in line]
    assert "raysim 9.9.9 on " in line
    assert "raysim 0.1.0 on " in line
    assert not (tmp_path / "mixed" / "config.yaml").exists()
    running.remove_node(third)

    running.add_node(**(machine | {"env_vars": machine["env_vars"] | {"SITE": "elsewhere"}}))
    running.wait_for_nodes()
    other = run(tmp_path, "other", address, *own, "data.on_nodes=true", "executor.num_actors=3")
    assert other.returncode == 2
    assert "data.on_nodes=true: " in other.stderr
    assert other.stderr.count("digest ") == 1
    assert "the run was started with" in other.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_the_data_set_reaches_a_machine_once(local_ray) -> None:
    """Three actors look at one copy: the memory they alone have does not grow by the data set's size."""
    import ray

    from raysim.executors.ray.client_actor import ClientActor
    from raysim.executors.ray.readiness import process_info

    class Probe(ClientActor):
        def private_mb(self) -> float:
            lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
            fields = (line.split() for line in lines)
            return sum(int(size) for name, size, _ in fields if name.startswith("Private")) / 1024

    scenario = build_scenario(tiny_settings())
    data = scenario.workload.data
    many = np.repeat(data.train_inputs, 1500, axis=0)
    assert many.nbytes > 100e6
    scenario = replace(scenario, workload=replace(scenario.workload, data=replace(data, train_inputs=many)))
    actors = [ray.remote(num_cpus=1)(Probe).remote() for _ in range(3)]
    before = ray.get([actor.private_mb.remote() for actor in actors])
    reference = ray.put(scenario)
    ray.get([actor.prepare.remote([reference], process_info()) for actor in actors])
    after = ray.get([actor.private_mb.remote() for actor in actors])
    assert max(np.subtract(after, before)) < 20
    for actor in actors:
        ray.kill(actor)


@pytest.mark.ray
def test_it_is_said_what_the_start_of_many_actors_waits_for(local_ray, monkeypatch) -> None:
    """Where not all of them start at once, too: until what holds the CPUs leaves."""
    import ray

    from raysim.executors.ray import pool, readiness
    from raysim.executors.ray.pool_config import PoolConfig

    class Busy:
        def ping(self) -> str:
            return "busy"

    cpus = int(ray.cluster_resources()["CPU"])
    busy = ray.remote(num_cpus=cpus)(Busy).remote()
    assert ray.get(busy.ping.remote()) == "busy"
    last = Timer(60, ray.kill, [busy])  # or nothing said would be a wait without end
    last.start()
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        last.cancel()
        ray.kill(busy)

    monkeypatch.setattr(readiness, "REPORT_AFTER_S", 0.2)
    monkeypatch.setattr(readiness, "warning", say)
    actors: list = []
    pool.start_actors(PoolConfig(cpus, at_once=2), cpus, actors)
    assert len(ray.get([actor.process_id.remote() for actor in actors])) == cpus
    assert said == [f"waiting for {cpus} of {cpus} client actors of 1 CPU each: the cluster has {cpus} CPUs, 0 free"]
    for actor in actors:
        ray.kill(actor)


@pytest.mark.ray
def test_a_driver_actor_with_other_versions_is_refused(local_ray) -> None:
    import ray

    from raysim.executors.ray.client_actor import ClientActor
    from raysim.executors.ray.driver_actor import DriverActor
    from raysim.executors.ray.readiness import ProcessInfo, process_info, wait_for

    class Odd(DriverActor):
        def process_info(self) -> ProcessInfo:
            return ProcessInfo("there", process_info().versions | {"torch": "1.0"})

    client = ray.remote(num_cpus=1)(ClientActor).remote()
    odd, even = (ray.remote(num_cpus=0)(each).remote() for each in (Odd, DriverActor))
    assert len(wait_for([client], even, 1.0, None)) == 1
    with pytest.raises(SettingError, match=r"torch 1\.0 on there"):
        wait_for([client], odd, 1.0, None)
    for actor in (client, odd, even):
        ray.kill(actor)


def test_a_driver_actor_of_a_machine_that_joins_later_drives_only_with_the_same_versions() -> None:
    from raysim.executors.ray.driver_actor import DriverActor
    from raysim.executors.ray.pool_config import PoolConfig
    from raysim.executors.ray.readiness import ProcessInfo
    from raysim.simulation.state import Start, Storage

    scenario = build_scenario(tiny_settings())
    rounds = DriverActor().run(
        scenario, [], [], PoolConfig(), Storage(Path("x"), 1, 1), Start(), ProcessInfo("there", {"torch": "1.0"})
    )
    with pytest.raises(SettingError, match=r"torch \S+ on \S+, torch 1.0 on there, where the run was started"):
        next(rounds)


def test_an_actor_of_a_machine_that_joins_later_trains_only_with_the_same_versions() -> None:
    from raysim.executors.ray.client_actor import ClientActor
    from raysim.executors.ray.readiness import ProcessInfo

    with pytest.raises(SettingError, match=r"torch \S+ on \S+, torch 1.0 on there, where the run was started"):
        ClientActor().prepare([], ProcessInfo("there", {"torch": "1.0"}))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("executor.kind=in-process", "data.on_nodes=true"), "data.on_nodes=True has no effect with"),
        (("executor.kind=ray", "data.on_nodes=true", "data.download=true"), "is not allowed with download=True"),
    ],
)
def test_data_on_the_machines_is_refused_where_it_makes_no_sense(settings, reason) -> None:
    with pytest.raises(SettingError, match=reason):
        tiny_settings(*settings)
