"""A run whose driver actor is on a machine that is lost, on a real cluster of two.

Usage: python -m tests.executors.ray.lost_node FOLDER

A process of its own, since a process joins one Ray only. Ends with a JSON object: digest, rounds reported, rounds
recorded.
"""

import json
import sys
from pathlib import Path

import psutil
import ray
from ray.cluster_utils import Cluster

from raysim.core import tensors
from raysim.core.storage.local import storage_path
from raysim.executors.ray.runner import RayRunner
from raysim.simulation import records
from raysim.simulation.build import build_scenario
from raysim.simulation.state import Storage
from tests.conftest import tiny_settings
from tests.executors.ray.test_runner import LONG


def raylet_of(actor) -> int:
    """Return the process id of the node's daemon that an actor was started by."""
    return psutil.Process(ray.get(actor.process_id.remote())).ppid()


def main(folder: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    lost = cluster.add_node(num_cpus=0)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    raylet = lost.all_processes["raylet"][0].process.pid
    scenario, rounds = build_scenario(tiny_settings(*LONG)), []
    with RayRunner(2, None, on_this_machine=False) as runner:
        while raylet_of(runner.driver_actor) != raylet:  # Ray places what needs no CPU anywhere
            runner._driver = runner._new_driver()
        for report in runner.run(scenario, Storage(folder, 2, 2)):
            rounds.append(report.round)
            if report.round == 5 and rounds.count(5) == 1:
                cluster.remove_node(lost, allow_graceful=False)
        digest = tensors.digest(runner.final_state().params)
    ray.shutdown()
    cluster.shutdown()
    parts = storage_path(folder) / "rounds"
    recorded = [records.logged(parts, round).round for round in range(1, scenario.rounds + 1)]
    print(json.dumps({"digest": digest, "reported": rounds, "recorded": recorded}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
