"""Where does a round's time go? Runs rounds of a configuration on Ray, and draws the time of an actor as a stack.

    python jobs/round_stack.py jobs/configs/bench_w1.yaml --figure w1.svg

An actor cuts submodels, trains, takes the difference, puts it back into full coordinates and sums it, or scores
rows. The rest of the round it waits: for the driver while that plans, aggregates and records, else for messages, the
sums of other actors and their ends. Packed clients are cut and scored as a chunk. A checkpoint is written after the
last round alone, which is not measured.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import ray
from benchmark import surroundings
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from raysim.client import local_round, vmap
from raysim.client.pending import PendingUpdates
from raysim.client.trainer import ClientTrainer
from raysim.config import loader
from raysim.core.errors import SettingError
from raysim.executors.ray.runner import RayRunner
from raysim.simulation.build import build_scenario
from raysim.simulation.loop import run_rounds
from raysim.simulation.state import Storage
from raysim.simulation.transition import initial_state

PARTS = {
    "cut": "cut, load values and rows",
    "train": "train",
    "difference": "difference to the start",
    "put back": "put back, exact sum",
    "score": "score rows",
    "other": "rest of a chunk",
    "wait": "messages, waiting",
    "driver": "waiting for the driver",
}
FORMATS = (".svg", ".png", ".pdf")
CALLS = ("train", "train_versions", "score", "estimate_statistics")
"""Methods of an executor that wait for actors."""
COUNTED = (
    (local_round, "view_of", "cut"), (vmap, "pack_of", "cut"),
    (local_round, "train", "train"), (vmap, "train_pack", "train"),
    (local_round, "update_of", "difference"),
    (local_round, "add_update", "put back"), (local_round, "add_reports", "put back"),
    (PendingUpdates, "flush", "put back"), (ClientTrainer, "_add_pack", "put back"),
    (local_round, "_score_heldout", "score"), (ClientTrainer, "_score_pack", "score"),
    (ClientTrainer, "score", "score"), (ClientTrainer, "estimate_statistics", "score"),
    (ClientTrainer, "train", "other"),
)  # fmt: skip
"""Functions and the parts that they belong to; what one of them calls counts for its own part."""


def watch(actor: Any) -> None:
    """Count the seconds of each part in the process of an actor from now on."""
    actor.seconds, actor.inner_s = {}, 0.0
    for owner, name, part in COUNTED:
        setattr(owner, name, counted(actor, getattr(owner, name), part))


def counted(actor: Any, call: Callable[..., Any], part: str) -> Callable[..., Any]:
    """Return a function that counts its seconds, without those of counted functions that it calls."""

    def call_and_count(*values: Any, **options: Any) -> Any:
        started, before = time.perf_counter(), actor.inner_s
        actor.inner_s = 0.0
        try:
            return call(*values, **options)
        finally:
            taken = time.perf_counter() - started
            actor.seconds[part] = actor.seconds.get(part, 0.0) + taken - actor.inner_s
            actor.inner_s = before + taken

    return call_and_count


def seconds_of(actor: Any) -> dict[str, float]:
    """Return the seconds of each part that an actor has counted, and count anew."""
    found, actor.seconds = actor.seconds, {}
    return dict(found)


class Watched:
    """An executor that counts the seconds during which the driver waits for actors."""

    def __init__(self, executor: Any) -> None:
        self._executor, self.seconds, self.inner_s = executor, {"calls": 0.0}, 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._executor, name)
        return counted(self, found, "calls") if name in CALLS else found


def measure(config: Path, overrides: Sequence[str], num_actors: int, rounds: int) -> dict[str, Any]:
    """Run some rounds after a first one; return the seconds of an average round and of its parts for one actor."""
    scenario = build_scenario(loader.load(config, (*overrides, f"rounds={rounds + 2}")))
    with tempfile.TemporaryDirectory() as folder, RayRunner(num_actors, None) as runner:
        executor = Watched(runner.executor(scenario))
        ray.get([actor.__ray_call__.remote(watch) for actor in runner.client_actors])
        reports = run_rounds(scenario, initial_state(scenario), executor, Storage(Path(folder), rounds + 2, 1))
        next(reports)  # actors build submodels, libraries load
        ray.get([actor.__ray_call__.remote(seconds_of) for actor in runner.client_actors])
        executor.seconds["calls"], started = 0.0, time.perf_counter()
        rounds = sum(1 for _ in islice(reports, rounds))  # a rule of `stop` may end it earlier
        round_s, in_calls_s = (time.perf_counter() - started) / rounds, executor.seconds["calls"] / rounds
        found = ray.get([actor.__ray_call__.remote(seconds_of) for actor in runner.client_actors])
    parts = {part: sum(each.get(part, 0.0) for each in found) / len(found) / rounds for part in PARTS}
    parts["wait"], parts["driver"] = in_calls_s - sum(parts.values()), round_s - in_calls_s
    return {"rounds": rounds, "actors": len(found), "round_s": round_s, "parts_s": parts}


def show(found: Mapping[str, Any]) -> None:
    """Print the parts as a table."""
    table = Table(title="{round_s:.3g} s a round, {actors} actors, mean of {rounds} rounds".format(**found))
    for title in ("part", "seconds", "share", ""):
        table.add_column(title, justify="left" if title in ("part", "") else "right")
    for part, seconds in found["parts_s"].items():
        share = seconds / found["round_s"]
        table.add_row(PARTS[part], f"{seconds:.3g}", f"{share:.1%}", "█" * round(40 * share))
    Console().print(table)


def draw(found: Mapping[str, Any], name: str, file: Path) -> None:
    """Draw the parts as one bar."""
    figure = Figure(figsize=(8, 1.9), layout="constrained")
    axes, start = figure.subplots(), 0.0
    for index, (part, seconds) in enumerate(found["parts_s"].items()):
        axes.barh(0, seconds, left=start, color=f"C{index}", label=f"{part} {seconds / found['round_s']:.0%}")
        start += seconds
    axes.set(yticks=[], xlim=(0, start), xlabel="seconds of a round, for one actor", title=f"{name}: a round's time")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(file)


def main() -> None:
    """Measure, print, and draw if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="configuration file of an experiment")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that are measured, after a first one [5]")
    parser.add_argument("--actors", type=int, default=len(os.sched_getaffinity(0)), help="client actors [cores]")
    parser.add_argument("--figure", type=Path, help="file for the figure, such as stack.svg")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    arguments = parser.parse_args()
    for name in ("rounds", "actors"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}={getattr(arguments, name)} is not allowed; allowed: 1 or more")
    if arguments.figure and arguments.figure.suffix not in FORMATS:
        parser.error(f"--figure={str(arguments.figure)!r} is not allowed; allowed: {', '.join(FORMATS)}")
    try:
        found = measure(arguments.config, arguments.set, arguments.actors, arguments.rounds)
    except SettingError as error:
        parser.error(str(error))
    if arguments.json:
        print(json.dumps({**found, **surroundings()}))
    else:
        show(found)
    if arguments.figure:
        draw(found, arguments.config.stem, arguments.figure)


if __name__ == "__main__":
    main()
