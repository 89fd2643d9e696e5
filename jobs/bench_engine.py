"""How fast is the engine? One workload at a time, against plain PyTorch loops where there is a floor.

Both sides first prove that they did the same work, W1 with loops in contiguous memory, which draw raysim's dropout;
only then are they timed, in turns. Prints one JSON line with `--json`, else a table. The workloads are described in
docs/benchmarks.md.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import torch
from bench_floor import Floor, FloorJob
from bench_training import of_widths
from benchmark import medians_in_turns, print_figures
from numpy.typing import NDArray

from raysim.config import loader
from raysim.core.tensors import Params, one_thread
from raysim.executors.ray.client_actor import keep_freed_memory
from raysim.executors.ray.runner import RayRunner
from raysim.simulation.build import build_scenario
from raysim.simulation.loop import run_rounds
from raysim.simulation.planning import plan_round
from raysim.simulation.round import run_round
from raysim.simulation.scenario import Executor, Scenario
from raysim.simulation.state import ServerState, Storage
from raysim.simulation.transition import initial_state

CONFIGS = Path(__file__).parent / "configs"
CORES = len(os.sched_getaffinity(0))
SAME_WORK = 1e-3
"""Largest difference of the two sides' summed updates, as a share of their norm: float sums in another order."""


class Rounds:
    """Rounds of a scenario, each from the model as it was built, so that they can be run again."""

    def __init__(self, scenario: Scenario, count: int) -> None:
        self.scenario, self.start = scenario, initial_state(scenario)
        self.numbers = range(1, count + 1)

    @property
    def cohorts(self) -> dict[int, NDArray[np.int64]]:
        """Ids of the clients that train in each round."""
        states = {round: replace(self.start, round=round - 1) for round in self.numbers}
        return {round: plan_round(self.scenario, state).ended[0].cohort.clients for round, state in states.items()}

    def run(self, executor: Executor) -> list[Params]:
        """Run the rounds; return the parameters after each."""
        with one_thread():
            return [run_round(self.scenario, self._before(round), executor)[0].params for round in self.numbers]

    def _before(self, round: int) -> ServerState:
        """Return the state before a round; its tensors are new, as those of a run are in every round."""
        params = {key: tensor.clone() for key, tensor in self.start.params.items()}
        return replace(self.start, round=round - 1, params=params)

    @property
    def num_clients(self) -> int:
        """Clients that train in all rounds together."""
        return len(self.numbers) * self.scenario.cohort_size


def build(name: str, *overrides: str) -> Scenario:
    """Return the scenario of a configuration."""
    return build_scenario(loader.load(CONFIGS / f"bench_{name}.yaml", overrides))


def floor_of(rounds: Rounds, memory_format: str = "contiguous") -> Floor:
    """Start plain loops for the clients of some rounds."""
    workload = rounds.scenario.workload
    clients = np.unique(np.concatenate(list(rounds.cohorts.values())))
    rows = {}
    for client in clients.tolist():
        inputs, labels = workload.data.train_rows(workload.population.train[client])
        rows[client] = (cast("torch.Tensor", inputs).numpy(), labels.numpy())
    local = workload.local
    job = FloorJob(workload.model, local.learning_rate, local.batch_size, workload.seed, memory_format)
    return Floor(job, rows, CORES)


def prove_same_work(rounds: Rounds, after: Sequence[Params], floor: Floor) -> float:
    """Check that both sides summed the same updates; return their difference as a share of the norm."""
    names = [name for name, _ in rounds.scenario.workload.model.named_parameters()]
    examples = rounds.scenario.workload.population.train
    totals = [int(examples.counts_of(clients).sum()) for clients in rounds.cohorts.values()]
    ours = [
        sum(
            (state[name].double() - rounds.start.params[name].double()) * total
            for state, total in zip(after, totals, strict=True)
        )
        for name in names
    ]
    theirs = [torch.from_numpy(sums) for sums in floor.summed(rounds.cohorts)]
    norm = float(torch.stack([sums.norm() for sums in theirs]).norm())
    apart = float(torch.stack([(our - their).norm() for our, their in zip(ours, theirs, strict=True)]).norm())
    if not norm > 0 or not apart <= SAME_WORK * norm:
        raise SystemExit(f"the two sides did not do the same work: they differ by {apart / norm:.2g} of the norm")
    return apart / norm


def against_floor(rounds: Rounds, repeats: int, with_one: bool, formats: Sequence[str]) -> dict[str, float]:
    """Time rounds on as many actors as cores and on plain loops, in turns; with one also on one of each.

    This process does the work of a driver actor. The floor is the fastest of the loops, one for each memory format;
    only loops on contiguous images draw the dropout of raysim's clients, so that they are held against it.
    """
    keep_freed_memory()
    with RayRunner(CORES, None) as runner, ExitStack() as stack:
        executor = runner.executor(rounds.scenario)
        loops = {each: stack.enter_context(floor_of(rounds, each)) for each in formats}
        apart = prove_same_work(rounds, rounds.run(executor), loops["contiguous"])
        sides: dict[str, Callable[[], object]] = {"raysim": lambda: rounds.run(executor)}
        sides |= {each: partial(loop.train, rounds.cohorts) for each, loop in loops.items()}
        if with_one:
            alone = runner.executor(rounds.scenario, num_actors=1)
            rounds.run(alone)
            sides["raysim_1"] = lambda: rounds.run(alone)
            sides |= {f"{each}_1": partial(loop.train, rounds.cohorts, 1) for each, loop in loops.items()}
        seconds = medians_in_turns(sides, repeats)
    fastest = min(formats, key=seconds.__getitem__)
    found = {f"{name}_s": value for name, value in seconds.items()} | {"floor_s": seconds[fastest]}
    return found | {"difference": apart} | ({"floor_1_s": seconds[f"{fastest}_1"]} if with_one else {})


def w1(repeats: int, quick: bool) -> dict[str, Any]:
    """Samples a second on images of CIFAR-10's shape, and how they grow with the number of actors."""
    cohort = ["selection.clients_per_round=4"] if quick else []
    rounds = Rounds(build("w1", *cohort), 1)
    found = against_floor(rounds, repeats, with_one=True, formats=("contiguous", "channels_last"))
    samples = rounds.num_clients * 50
    growth, floor_growth = found["raysim_1_s"] / found["raysim_s"], found["floor_1_s"] / found["floor_s"]
    return {
        "ratio_to_floor": found["floor_s"] / found["raysim_s"],
        "ratio_to_contiguous_loops": found["contiguous_s"] / found["raysim_s"],
        "ratio_to_channels_last_loops": found["channels_last_s"] / found["raysim_s"],
        "scaling": growth / floor_growth,
        "samples_per_s": samples / found["raysim_s"],
        "floor_samples_per_s": samples / found["floor_s"],
        "growth": growth,
        "floor_growth": floor_growth,
        "actors": CORES,
        "difference": found["difference"],
    }


def w2(repeats: int, quick: bool) -> dict[str, Any]:
    """Clients a second of a linear model: what a client costs beyond its training."""
    rounds = Rounds(build("w2", "evaluation.every=1000", "evaluation.client_share=0.0"), 2 if quick else 20)
    found = against_floor(rounds, repeats, with_one=False, formats=("contiguous",))
    scored = ("data.heldout_share=0.2", "data.partition.examples_per_client=25")
    whole = whole_run("w2", f"rounds={20 if quick else 200}", *scored)
    return {
        "clients_per_s": rounds.num_clients / found["raysim_s"],
        "ratio_to_floor": found["floor_s"] / found["raysim_s"],
        "floor_clients_per_s": rounds.num_clients / found["floor_s"],
        "clients_per_s_with_everything": 500 * whole["rounds_per_s"],
        "driver_growth": whole["driver_growth"],
        "first_round_s": whole["first_round_s"],
        "actors": CORES,
        "difference": found["difference"],
    }


def w3(repeats: int, quick: bool) -> dict[str, Any]:
    """Seconds of VGG16 with half and a quarter of the filters against the dense network."""
    torch.set_num_threads(1)
    return of_widths(1 if quick else 4, repeats)


class Timed:
    """An executor that measures the seconds of training."""

    def __init__(self, executor: Any) -> None:
        self._executor, self.seconds = executor, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def train_versions(self, groups: Any) -> Any:
        """Train, and add up the seconds."""
        started = time.perf_counter()
        found = self._executor.train_versions(groups)
        self.seconds += time.perf_counter() - started
        return found


def population(repeats: int, quick: bool) -> dict[str, Any]:
    """Measure the cost of a million registered clients: start, memory, and seconds of a round beyond training."""
    fewer = ["population.clients=10000"] if quick else []
    whole = whole_run("population", f"rounds={max(4, repeats)}", *fewer)
    scenario, beyond = build("population", *fewer), []
    with tempfile.TemporaryDirectory() as folder, RayRunner(CORES, None) as runner:
        executor = Timed(runner.executor(scenario))
        rounds = run_rounds(scenario, initial_state(scenario), executor, Storage(Path(folder), 1, 2))
        next(rounds)
        for _ in range(repeats):
            started, executor.seconds = time.perf_counter(), 0.0
            next(rounds)
            beyond.append(time.perf_counter() - started - executor.seconds)
    return {
        "clients": len(scenario.workload.population),
        "start_s": whole["first_round_s"],
        "driver_gb": whole["driver_gb"],
        "round_beyond_training_s": float(np.median(beyond)),
    }


def whole_run(name: str, *overrides: str) -> dict[str, float]:
    """Run a configuration as a user does, with all its files, and read the seconds of its rounds."""
    with tempfile.TemporaryDirectory() as folder:
        output, store = Path(folder) / "run", f"tracking.uri=sqlite:///{folder}/mlflow.db"
        settings = [part for override in (store, *overrides) for part in ("--set", override)]
        command = ["run", str(CONFIGS / f"bench_{name}.yaml"), "--output", str(output), "--json", *settings]
        started = time.time()
        done = subprocess.run([sys.executable, "-m", "raysim", *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"raysim {' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
        rounds: Mapping[str, list[float]] = pq.read_table(output / "rounds.parquet").to_pydict()
    walls, driver_bytes, settled = rounds["wall_s"], rounds["driver_bytes"], len(rounds["wall_s"]) // 10
    return {
        "rounds_per_s": (len(walls) - 1 - settled) / (walls[-1] - walls[settled]),
        "first_round_s": rounds["timestamp_ms"][0] / 1000 - walls[0] - started,
        "driver_gb": max(driver_bytes) / 1e9,
        "driver_growth": driver_bytes[-1] / driver_bytes[min(4, len(driver_bytes) - 1)] - 1,
    }


WORKLOADS: dict[str, Callable[[int, bool], dict[str, Any]]] = {
    "W1": w1, "W2": w2, "W3": w3, "population": population,
}  # fmt: skip


def _figures_of(arguments: argparse.Namespace) -> dict[str, Any]:
    return WORKLOADS[arguments.workload](arguments.repeats, arguments.quick)


def main() -> None:
    """Run a workload and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--quick", action="store_true", help="a small part of the work: to see that it runs")
    print_figures(parser, lambda arguments: {"workload": arguments.workload, **_figures_of(arguments)})


if __name__ == "__main__":
    main()
