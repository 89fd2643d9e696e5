"""The page of the study of peers, from the lines of its results."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

Line = Mapping[str, Any]

UNITS = {"W1": "samples/s", "W2": "clients/s"}
HEAD = """# raysim beside its peers

The same clients, rows and start weights in raysim, in Flower's simulation, in pfl-research and in plain PyTorch
loops, on as many processes as processors: `W1` is a network with dropout of 1.6 M parameters on images of CIFAR-10's
shape, 50 clients of 50 rows in a round; `W2` is a linear model, 500 clients of 20 rows in a round. Plain SGD, one
epoch, batches of 10. Images are in `channels_last` memory for all but the first loops.

```
python studies/peers/run.py      # makes the environments of the peers; about half an hour on an idle machine
```

Contestants run in turns, each turn in new processes; the first round, in which libraries load, does not count.
Flower's clients train as PyTorch's tutorials do, pfl-research by its own loop. raysim trains the small clients of W2
several at a time, in packs; all others train them one by one. The loops send nothing, sum nothing and keep nothing.
That they do raysim's work is shown in contiguous memory: the sums of the updates are the same, to 0.1 % of the norm.
All others train every client of every cohort, or stop; and what training lowers the loss by is the same within a half
in W1, of which the draws of order and dropout are a fifth, and within a hundredth in W2. Seconds depend on the
machine; the ratios belong to one sitting.
"""


def text(lines: Sequence[Line]) -> str:
    """Return the page."""
    parts = [HEAD]
    for label in dict.fromkeys(line["workload"] for line in lines):
        own = [line for line in lines if line["workload"] == label]
        parts.append(f"## {label}\n\n{_table(label, own)}\n{_note(own)}\n")
    return "\n".join(parts)


def rate(line: Line) -> float:
    """Return the samples or clients a second of a turn, over the median of its rounds but the first."""
    units = line["clients"] * (line["rows"] if line["workload"] == "W1" else 1)
    return float(units / median(line["seconds"][1:]))


def _table(label: str, lines: Sequence[Line]) -> str:
    ours = median(rate(line) for line in lines if line["contestant"] == "raysim")
    rows = [
        f"| contestant | {UNITS[label]} | lowest | highest | raysim is | loss |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(line["contestant"] for line in lines):
        own = [line for line in lines if line["contestant"] == name]
        rates = sorted(rate(line) for line in own)
        loss = "" if own[-1]["loss"] is None else f"{own[-1]['loss']:.5f}"
        times = "" if name == "raysim" else f"{ours / median(rates):.2f} times as fast"
        rows.append(f"| {name} | {median(rates):,.0f} | {rates[0]:,.0f} | {rates[-1]:,.0f} | {times} | {loss} |")
    return "\n".join(rows) + "\n"


def _note(lines: Sequence[Line]) -> str:
    packages = sorted({line["package"] for line in lines if line["package"]})
    versions, machine = lines[-1]["versions"], lines[-1]["machine"]
    return (
        f"Loss before round 1: {lines[-1]['start_loss']:.5f}. {len({line['repeat'] for line in lines})} turns, "
        f"{len(lines[-1]['seconds']) - 1} rounds each. {', '.join(packages)}; torch {versions['torch']}, Python "
        f"{versions['python']}, {machine['cpus']} processors ({machine['capability']}), raysim at "
        f"{lines[-1]['commit']}, {lines[-1]['ended'][:10]}."
    )
