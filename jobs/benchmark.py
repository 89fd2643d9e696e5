"""Share timing in turns, output and machine details among the benchmarks."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def medians_in_turns(sides: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each side; in every repeat all sides run, each time another one first."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for repeat in range(repeats):
        for index in range(len(names)):
            name = names[(repeat + index) % len(names)]
            started = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def print_figures(parser: argparse.ArgumentParser, measure: Callable[[argparse.Namespace], dict[str, Any]]) -> None:
    """Read the command line, measure, and print the figures: a table, or with `--json` one line."""
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each side, 3 or more [5]")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    arguments = parser.parse_args()
    if arguments.repeats < 3:
        parser.error(f"--repeats={arguments.repeats} is not allowed; allowed: 3 or more")
    figures = measure(arguments)
    if arguments.json:
        print(json.dumps({**figures, "repeats": arguments.repeats, **surroundings()}))
        return
    for name, value in figures.items():
        print(f"{name:32} {value:.4g}" if isinstance(value, float) else f"{name:32} {value}")


def surroundings() -> dict[str, object]:
    """Return the machine, the versions and the commit a benchmark runs on."""
    return {
        "machine": {
            "cpus": os.cpu_count(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "type": platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": version("torch"),
            "raysim": version("raysim"),
        },
        "commit": git_commit(),
    }


def git_commit() -> str | None:
    """Return the commit the code is at, marked where it has been changed since."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
