"""Does the loss change as equation 14 predicts when channels are pruned? `python jobs/predicted_loss.py`.

Runs `ca-hfp` on digits and devices of four widths with diagnostics, and compares predicted with measured changes of
the held-out loss: by zero-filling the global model, and by the clients' masks. The estimator is `variation`, which
estimates gradient and curvature of every entry. A case is one diagnosed round.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from benchmark import surroundings
from overrides import as_overrides
from pages import with_table
from scipy.stats import spearmanr

from raysim.config import loader
from raysim.core.storage import atomic
from raysim.executors.in_process import InProcessExecutor
from raysim.simulation.build import build_scenario
from raysim.simulation.round import run_round
from raysim.simulation.transition import initial_state

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "jobs" / "configs" / "digits.yaml"
RESULTS = ROOT / "docs" / "predicted_loss.json"
PAGE = ROOT / "docs" / "significance.md"
SEEDS = (0, 1, 2)
ROUNDS, EVERY = 20, 2
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "without normalization": {"channels": [16, 32], "hidden": 64},
    "with BatchNorm": {"channels": [16, 32], "hidden": 64, "norm": "batch"},
}
SHARED = {
    "method.name": "ca-hfp",
    "method.estimator": "variation",
    "model.name": "convnet",
    "diagnostics.every": EVERY,
    "evaluation.client_share": 0.0,
}
PAIRS = (
    ("zero-filling", "held-out rows", "predicted_zero_fill", "measured_zero_fill"),
    ("zero-filling", "held-out rows, whole Hessian", "predicted_zero_fill_full_hessian", "measured_zero_fill"),
    ("zero-filling", "clients", "estimated_zero_fill", "measured_zero_fill"),
    ("clients' masks", "held-out rows", "predicted_submodels", "measured_submodels"),
    ("clients' masks", "clients", "estimated_submodels", "measured_submodels"),
)
"""What is removed, where gradient and curvature are from, the prediction's name, and that of the measured change."""

Case = Mapping[str, float]


def cases_of(network: str, seed: int, more: tuple[str, ...] = (), rounds: int = ROUNDS) -> Iterator[Case]:
    """Run a network with one seed, and yield the diagnostics of each diagnosed round."""
    settings = {**SHARED, "model.options": NETWORKS[network], "seed": seed, "rounds": rounds}
    scenario = build_scenario(loader.load(CONFIG, (*as_overrides(settings), *more)))
    state, executor = initial_state(scenario), InProcessExecutor(scenario.workload)
    for _ in range(rounds):
        state, report = run_round(scenario, state, executor)
        if report.diagnostics:
            yield {"round": state.round, **report.diagnostics}


def figures_of(cases: Sequence[Case], predicted: str, measured: str) -> dict[str, float]:
    """Return how a prediction follows what was measured.

    Returns:
        `cases`; `correlation`: Spearman's over all cases; `within`: Spearman's after each round's mean over the seeds
        is taken away from both, which leaves out what all runs have in common; `ratio`: median of predicted over
        measured.
    """
    pairs = np.array([(case["round"], case[predicted], case[measured]) for case in cases if predicted in case])
    rounds, values = pairs[:, 0], pairs[:, 1:]
    within = values - np.stack([values[rounds == round].mean(axis=0) for round in rounds])
    return {
        "cases": len(pairs),
        "correlation": float(spearmanr(*values.T).statistic),
        "within": float(spearmanr(*within.T).statistic),
        "ratio": float(np.median(values[:, 0] / values[:, 1])),
    }


def table_of(results: Mapping[str, Any]) -> str:
    """Return the results as a table of the page."""
    names = ("removed", "gradient and curvature of", "network", "rank correlation", "within a round")
    lines = [f"| {' | '.join((*names, 'predicted / measured'))} |", "|---|---|---|" + "---:|" * 3]
    for removed, source, predicted, measured in PAIRS:
        for network, cases in results["networks"].items():
            found = figures_of(cases, predicted, measured)
            cells = [removed, source, network, f"{found['correlation']:.2f}", f"{found['within']:.2f}"]
            lines.append(f"| {' | '.join(cells)} | {found['ratio']:.2g} |")
    return "\n".join(lines) + "\n"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--network", "networks", type=click.Choice([*NETWORKS]), multiple=True, help="Networks to run [all].")
@click.option("--set", "more", multiple=True, metavar="NAME=VALUE", help="Change a setting.")
def main(networks: tuple[str, ...], more: tuple[str, ...]) -> None:
    """Run the networks, and write results and table of the docs anew; networks that are not run keep theirs."""
    results: dict[str, Any] = {"networks": {}}
    if RESULTS.is_file():
        results = json.loads(RESULTS.read_text(encoding="utf-8"))
    for network in networks or NETWORKS:
        results["networks"][network] = [case for seed in SEEDS for case in cases_of(network, seed, more)]
        results |= {"seeds": [*SEEDS], "set": [*more], **surroundings()}
        atomic.write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    click.echo(table_of(results), nl=False)
    atomic.write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8"), table_of(results)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
