"""raysim beside Flower's simulation, pfl-research and plain PyTorch loops: `python studies/peers/run.py`.

Makes an environment for each of the two, trains the same clients with all contestants in turns, shows that they
reach the same loss, and writes a line to `results.jsonl` for each turn and the page from these lines. It takes about
half an hour and needs the package index; nothing else should run meanwhile.
"""

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "jobs")]

import page  # noqa: E402
from bench_engine import CORES, Rounds, build  # noqa: E402
from benchmark import surroundings  # noqa: E402

from raysim.core.storage import atomic, json_lines  # noqa: E402

ENVIRONMENTS = ROOT / "runs" / "peers"
PACKAGES = {"flower": "flwr[simulation]==1.42.0", "pfl-research": "pfl==0.6.0"}
LIMIT_S = 900
"""Longest time of a contestant's turn."""


@dataclass(frozen=True)
class Work:
    """A workload: the benchmark of `jobs/bench_engine.py`, changes to it, rounds and rows of a client.

    `apart` is the largest difference of two contestants' losses, as a share of what training has lowered the loss by:
    they draw other orders and other dropout. Four rounds on the noise of W1 lower the loss by 0.0005, of which the
    draws are a fifth; a contestant that does not train, or trains twice as much, is twice as far away.
    """

    benchmark: str
    overrides: tuple[str, ...]
    rounds: int
    rows: int
    apart: float


WORKS = {
    "W1": Work("w1", (), 4, 50, apart=0.5),
    "W2": Work("w2", ("evaluation.every=1000", "evaluation.client_share=0.0"), 16, 20, apart=0.01),
}
CONTESTANTS = {
    "W1": ("raysim", "loops, contiguous", "loops, channels_last", "pfl-research", "flower"),
    "W2": ("raysim", "loops, contiguous", "pfl-research", "flower"),
}


def environment(name: str) -> Path:
    """Return the interpreter of a contestant's own environment, made if it is not there; torch is raysim's."""
    folder = ENVIRONMENTS / name
    interpreter, made_of = folder / "bin" / "python", f"{PACKAGES[name]}, {torch.__file__}"
    ready = folder / "ready"
    if not ready.is_file() or ready.read_text() != made_of:
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([interpreter, "-m", "pip", "install", "-q", PACKAGES[name]], check=True)
        (site,) = (folder / "lib").glob("python*/site-packages")
        (site / "torch_of_raysim.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
        ready.write_text(made_of)
    return interpreter


def write_work(work: Work, path: Path) -> Mapping[str, Any]:
    """Write the model, the rows of all clients and the cohorts; return them."""
    rounds = Rounds(build(work.benchmark, *work.overrides), work.rounds)
    workload = rounds.scenario.workload
    cohorts = [ids.tolist() for ids in rounds.cohorts.values()]
    clients = sorted({client for cohort in cohorts for client in cohort})
    rows = {client: workload.data.train_rows(workload.population.train[client]) for client in clients}
    local = workload.local
    content = {
        "model": workload.model,
        "rows": {client: (inputs.clone(), labels.clone()) for client, (inputs, labels) in rows.items()},
        "cohorts": cohorts,
        "learning_rate": local.learning_rate,
        "batch_size": local.batch_size,
    }
    torch.save(content, path)
    return content


def command_of(name: str, work: Work, path: Path, result: Path) -> list[str]:
    """Return the command that runs a contestant."""
    folder, ours = HERE / "contestants", [sys.executable]
    more = [work.benchmark, str(work.rounds), str(result)]
    if name == "raysim":
        return [*ours, str(folder / "ours.py"), *more, *work.overrides]
    if name.startswith("loops, "):
        return [*ours, str(folder / "loops.py"), *more, name.removeprefix("loops, "), *work.overrides]
    interpreter = str(environment(name))
    if name == "flower":
        return [interpreter, str(folder / "flower.py"), str(path), str(result)]
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={CORES}"]
    return [interpreter, *launch, str(folder / "pfl_research.py"), str(path), str(result)]


def loss_of(content: Mapping[str, Any], params: Mapping[str, torch.Tensor]) -> float:
    """Return a model's mean loss over the rows of all clients."""
    model: nn.Module = content["model"]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(dict(params))
    model.eval()
    with torch.no_grad():
        losses = [nn.functional.cross_entropy(model(inputs), labels) for inputs, labels in content["rows"].values()]
    model.load_state_dict(before)
    return float(torch.stack(losses).mean())


def check_loss(name: str, start: float, ours: float, loss: float, apart: float) -> None:
    """Refuse to compare a contestant that did not reach raysim's loss."""
    lowered = start - ours
    if not lowered > 0 or not abs(loss - ours) <= apart * lowered:
        raise SystemExit(f"{name} reaches the loss {loss:.5f}, raysim {ours:.5f} from {start:.5f}")


def run_once(name: str, work: Work, path: Path, folder: Path) -> dict[str, Any]:
    """Run a contestant; return its seconds and its model."""
    result = folder / "result.pt"
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if name in PACKAGES:
        quiet.pop("PYTHONPATH")
    command = command_of(name, work, path, result)
    done = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    if done.returncode != 0 or not result.is_file():
        raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    found: dict[str, Any] = torch.load(result)
    result.unlink()
    return found


def measure(label: str, repeats: int) -> list[dict[str, Any]]:
    """Run all contestants of a workload in turns; return a line for each turn."""
    work, lines, ours = WORKS[label], [], None
    first, *others = CONTESTANTS[label]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        content = write_work(work, folder / "workload.pt")
        start = loss_of(content, content["model"].state_dict())
        clients = len(content["cohorts"][0])
        for repeat in range(repeats):
            for name in (first, *np.roll(others, -repeat).tolist()):
                found = run_once(name, work, folder / "workload.pt", folder)
                loss = loss_of(content, found["params"]) if found["params"] else None
                ours = loss if ours is None else ours
                if loss is not None and ours is not None:
                    check_loss(name, start, ours, loss, work.apart)
                seconds = [round(each, 4) for each in found["seconds"]]
                lines.append({
                    "workload": label, "contestant": name, "repeat": repeat, "clients": clients, "rows": work.rows,
                    "seconds": seconds, "start_loss": start, "loss": loss, "package": PACKAGES.get(name),
                    "ended": datetime.now(UTC).isoformat(timespec="seconds"), **surroundings(),
                })  # fmt: skip
                click.echo(f"{label}  {name}  {np.median(seconds[1:]):.3f} s a round  loss {loss}")
    return lines


@click.command()
@click.option("--workload", "workloads", type=click.Choice([*WORKS]), multiple=True, help="Workloads to run [all].")
@click.option("--repeats", default=3, show_default=True, help="Turns of each contestant.")
@click.option("--page", "only_page", is_flag=True, help="Only make the page.")
def main(workloads: Sequence[str], repeats: int, only_page: bool) -> None:
    """Run the contestants, replace the lines of these workloads, and make the page."""
    path = HERE / "results.jsonl"
    kept = json_lines.read(path, dict)
    for label in () if only_page else workloads or WORKS:
        lines = measure(label, repeats)
        kept = [line for line in kept if line["workload"] != label] + lines
        atomic.write_text(path, "".join(f"{json.dumps(line)}\n" for line in kept))
    atomic.write_text(HERE / "README.md", page.text(kept))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
