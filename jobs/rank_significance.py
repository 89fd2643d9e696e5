"""Which form of CA-HFP's significance ranks channels as their loss does? `python jobs/rank_significance.py`.

Networks are trained with clients of full width, and with random masks of the widths of the tiers; neither depends on
the form. After some rounds each form ranks the channels by what the clients have reported so far. The ranking is
compared with the leave-one-channel-out loss on training rows: Spearman's rank correlation within each channel group,
where masks are chosen. A case is one group after one of these rounds with one seed.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from benchmark import surroundings
from overrides import as_overrides
from pages import with_table
from scipy.stats import spearmanr
from torch import nn

from raysim.config import loader
from raysim.core.storage import atomic
from raysim.executors.in_process import InProcessExecutor
from raysim.methods.estimators import ESTIMATORS
from raysim.pruning.masks import num_kept
from raysim.pruning.significance import FORMS, ScoreForm, Scores
from raysim.simulation import loss_surface
from raysim.simulation.build import build_scenario
from raysim.simulation.cohort import view_of
from raysim.simulation.diagnostics import leave_one_out
from raysim.simulation.loss_surface import LossSurface
from raysim.simulation.participants import respond, select_clients
from raysim.simulation.round import run_round
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import ServerState
from raysim.simulation.transition import initial_state

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "jobs" / "configs" / "digits.yaml"
RESULTS = ROOT / "docs" / "significance.json"
ESTIMATED = ROOT / "docs" / "significance"
"""Results of each estimator on CIFAR-10-JPEG."""
PAGE = ROOT / "docs" / "significance.md"
ROUNDS = (3, 6, 10)
"""After which the channels are ranked."""
SEEDS = (0, 1, 2)
ROWS = 200
"""Most training rows that the loss is measured on."""
CHANNELS = 20
"""Most channels of a group that are left out, drawn anew for each case."""
SIGNED_AND_ABSOLUTE = ("channel", "robust")
"""Forms whose sums are of g w, and of |g w|."""
FIRST_ORDER = ScoreForm("absolute", 1.0, 0.0)
"""The first-order score, sum |g w|."""
LEAST_DIFFERENT = 0.25
"""Least share of the cases in which the default keeps another half than the first-order score, and than without h."""

NETWORKS: dict[str, dict[str, Any]] = {
    "cnn": {"model.name": "cnn", "model.options": {"channels": [16, 32], "hidden": 64}},
    "cnn, BatchNorm": {"model.name": "rank_significance:conv_norm", "model.options": {}},
    "mlp": {"model.name": "mlp", "model.options": {"hidden": [64, 32]}},
}
SHARED: dict[str, Any] = {
    "method.name": "ca-hfp", "executor.kind": "in-process", "population.clients": 20,
    "selection.clients_per_round": 10, "evaluation.max_examples": 20, "evaluation.client_share": 0.0,
}  # fmt: skip
WIDTHS: dict[str, dict[str, Any]] = {
    "full": {f"population.tiers.{tier}.keep_ratio": 1.0 for tier in range(4)},
    "tiers": {},
}


def conv_norm(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return two convolutions with BatchNorm, and two poolings."""
    in_channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), num_classes),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One group after one round: each form's correlation, and whether it keeps another half than scores beside it."""

    form: str
    round: int
    correlation: float
    differs: bool
    differs_without_curvature: bool


def scenario_of(network: str, widths: str, seed: int, rounds: int, more: tuple[str, ...] = ()) -> Scenario:
    """Return a run whose masks are random, and whose clients report the sums of g w as well as those of |g w|."""
    settings = {**SHARED, **NETWORKS[network], **WIDTHS[widths], "seed": seed, "rounds": rounds}
    scenario = build_scenario(loader.load(CONFIG, (*as_overrides(settings), f"method.warmup_rounds={rounds}", *more)))
    method = scenario.method
    if not ESTIMATORS[method.options.estimator].clients_report_sums:
        return scenario  # the server keeps every entry's estimate
    kinds = [replace(method.options, score=form) for form in SIGNED_AND_ABSOLUTE]
    hooks = tuple(partial(ESTIMATORS[method.options.estimator].hook, options=options) for options in kinds)
    return replace(scenario, method=replace(method, rules=replace(method.rules, hooks=hooks)))


def reported_sums(scenario: Scenario, state: ServerState) -> dict[str, Scores]:
    """Return each channel's sums by which the method ranks in the next round, `(2, num_units)`: of g w, of |g w|."""
    cohort, _ = respond(scenario, state, select_clients(scenario, state, scenario.cohort_size))
    view, estimator = view_of(scenario, state, cohort), ESTIMATORS[scenario.method.options.estimator]
    if not estimator.clients_report_sums:
        views = [replace(view, options=replace(view.options, score=form)) for form in SIGNED_AND_ABSOLUTE]
        return dict(zip(("signed", "absolute"), map(estimator.sums, views), strict=True))
    sums = estimator.sums(view)
    return {"signed": sums[:2], "absolute": sums[3:]}  # two reports, each with the share of the channel that is held


def training_surface(scenario: Scenario) -> LossSurface:
    """Return the mean loss of some of the clients' training rows, which is what the significance estimates."""
    workload = scenario.workload
    owned = [workload.population.train[client] for client in range(len(workload.population))]
    rows = np.random.default_rng(0).permutation(np.concatenate(owned))[:ROWS]
    return loss_surface.of_model(workload.task, workload.model, *workload.data.train_rows(rows))


def cases_of(
    network: str, widths: str, seed: int, rounds: tuple[int, ...] = ROUNDS, more: tuple[str, ...] = ()
) -> Iterator[Case]:
    """Train a network with one seed, and yield its cases."""
    scenario = scenario_of(network, widths, seed, max(rounds), more)
    state, executor = initial_state(scenario), InProcessExecutor(scenario.workload)
    surface, rng = training_surface(scenario), np.random.default_rng(seed)
    for round in range(1, max(rounds) + 1):
        state, _ = run_round(scenario, state, executor)
        if round in rounds:
            yield from ranked(scenario, state, surface, rng)


def ranked(scenario: Scenario, state: ServerState, surface: LossSurface, rng: np.random.Generator) -> Iterator[Case]:
    """Yield the cases of one state: every form against the leave-one-channel-out loss, group by group."""
    reported, weights = reported_sums(scenario, state), loss_surface.in_float64(state.params)
    plan = scenario.workload.plan
    for units in plan.units.values():
        known = units.start + np.flatnonzero(~np.isnan(reported["signed"][:, units].sum(axis=0)))
        channels = np.sort(rng.permutation(known)[:CHANNELS])
        costs = leave_one_out(surface, plan, weights, channels)
        first = kept_half(FIRST_ORDER.combine(*reported["absolute"][:, known]))
        for name, form in FORMS.items():
            sums = reported["absolute" if form.gradient == "absolute" else "signed"]
            scores, without = form.combine(*sums), replace(form, curvature_factor=0.0).combine(*sums)
            half, correlation = kept_half(scores[known]), float(spearmanr(scores[channels], costs).statistic)
            yield Case(name, state.round, correlation, half != first, half != kept_half(without[known]))


def kept_half(scores: Scores) -> frozenset[int]:
    """Return the indices of the better half."""
    return frozenset(np.argsort(-scores, kind="stable")[: num_kept(len(scores), 0.5)].tolist())


def summary_of(cases: Iterable[Case]) -> dict[str, dict[str, Any]]:
    """Return each form's figures over some cases, of which there are equally many after each round."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(case.form, []).append(case)
    return {form: _figures_of(own) for form, own in found.items()}


def _figures_of(cases: list[Case]) -> dict[str, Any]:
    by_round: dict[str, list[float]] = {}
    for case in cases:
        by_round.setdefault(str(case.round), []).append(case.correlation)
    return {
        "cases": len(cases),
        "differs": sum(case.differs for case in cases),
        "differs_without_h": sum(case.differs_without_curvature for case in cases),
        "correlation": {name: round(float(np.mean(values)), 4) for name, values in by_round.items()},
    }


def mean_correlation(figures: Iterable[dict[str, Any]], after: str | None = None) -> float:
    """Return the mean correlation over the cases of some networks, after all rounds or after one."""
    several = list(figures)
    means = [
        np.mean([*each["correlation"].values()]) if after is None else each["correlation"][after] for each in several
    ]
    return float(np.average(means, weights=[each["cases"] for each in several]))


def share_of(figures: Iterable[dict[str, Any]], name: str) -> float:
    """Return the share of the cases of some networks that a name counts."""
    several = list(figures)
    return float(sum(each[name] for each in several) / sum(each["cases"] for each in several))


def default_of(results: dict[str, Any]) -> str:
    """Return the form that should be the default: of those in which curvature decides, the highest correlation."""
    allowed = [
        form
        for form in FORMS
        if min(share_of(of_form(results, form), name) for name in ("differs", "differs_without_h")) >= LEAST_DIFFERENT
    ]
    return max(allowed, key=lambda form: mean_correlation(of_form(results, form)))


def of_form(results: dict[str, Any], form: str) -> list[dict[str, Any]]:
    """Return a form's figures of every network and width."""
    return [figures[form] for figures in results["networks"].values()]


def json_of(folder: Path) -> list[dict[str, Any]]:
    """Return the results files of a folder."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def table_of(results: dict[str, Any]) -> str:
    """Return the results as a table of the page."""
    names = list(results["networks"])
    rounds = [str(round) for round in results["rounds"]]
    header = ["form", *names, "all", *(f"round {round}" for round in rounds), "other half", "other half without h"]
    lines = [f"| {' | '.join(header)} |", "|---|" + "---:|" * (len(header) - 1)]
    for form in FORMS:
        figures = of_form(results, form)
        correlations = [mean_correlation([results["networks"][name][form]]) for name in names]
        correlations += [mean_correlation(figures), *(mean_correlation(figures, after) for after in rounds)]
        shares = [share_of(figures, name) for name in ("differs", "differs_without_h")]
        cells = [f"{value:.2f}" for value in correlations] + [f"{100 * share:.0f} %" for share in shares]
        lines.append(f"| `{form}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def estimator_of(results: dict[str, Any]) -> str:
    """Return the estimator by which the forms ranked."""
    given = [text.partition("=")[2] for text in results["set"] if text.startswith("method.estimator=")]
    return given[-1] if given else "fisher"


def table_of_estimators(several: Iterable[dict[str, Any]]) -> str:
    """Return the mean correlations of each estimator and form, a column per network, over all rounds."""
    by_estimator = {estimator_of(results): results["networks"] for results in several}
    names = list(dict.fromkeys(name for networks in by_estimator.values() for name in networks))
    lines = [f"| estimator | form | {' | '.join(names)} |", "|---|---|" + "---:|" * len(names)]
    for estimator in (name for name in ESTIMATORS if name in by_estimator):
        networks = by_estimator[estimator]
        for form in FORMS:
            found = [mean_correlation([networks[name][form]]) if name in networks else None for name in names]
            cells = ["" if value is None else f"{value:.2f}" for value in found]
            lines.append(f"| `{estimator}` | `{form}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--network", type=click.Choice([*NETWORKS]), multiple=True, help="Networks to train [all].")
@click.option("--widths", type=click.Choice([*WIDTHS]), multiple=True, help="Widths of the clients [all].")
@click.option("--set", "more", multiple=True, metavar="NAME=VALUE", help="Change a setting, such as data.name=mnist.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Results file; networks it has and others keep theirs."
)
def main(network: tuple[str, ...], widths: tuple[str, ...], more: tuple[str, ...], output: Path | None) -> None:
    """Print the table. Without --output the table and the results of docs/ are written anew.

    With --output in docs/significance/ the page's table of estimators is made from the files in that folder.
    """
    path = output or RESULTS
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"networks": {}}
    for name in network or NETWORKS:
        for width in widths or WIDTHS:
            cases = (case for seed in SEEDS for case in cases_of(name, width, seed, more=more))
            results["networks"][f"{name}, {width}"] = summary_of(cases)
            results |= {"rounds": [*ROUNDS], "seeds": [*SEEDS], "set": [*more], **surroundings()}
            atomic.write_text(path, json.dumps(results, indent=1) + "\n")
    click.echo(table_of(results), nl=False)
    click.echo(f"default: {default_of(results)}")
    if PAGE.is_file() and (output is None or path.absolute().parent == ESTIMATED):
        page, several = PAGE.read_text(encoding="utf-8"), json_of(ESTIMATED)
        page = with_table(page, table_of(results)) if output is None else page
        atomic.write_text(PAGE, with_table(page, table_of_estimators(several)) if several else page)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
