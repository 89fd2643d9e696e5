"""Metrics of a round, for the records and for MLflow: numbers by name."""

from collections.abc import Mapping, Sequence
from math import ceil, isfinite, isnan

import numpy as np
from numpy.typing import NDArray

from raysim.clock import outcomes
from raysim.config.metric import ACCURACY, PrimaryMetric
from raysim.core.tensors import Columns
from raysim.population.profiles import Devices
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import RoundReport, width_name
from raysim.task.metrics import is_per_class, names_of

CURVE_OF_OUTCOME = dict.fromkeys((outcomes.DROPPED, outcomes.OFFLINE, outcomes.BATTERY, outcomes.UNREACHABLE), "away")
"""Outcomes that share a curve; the table of clients and the summary keep them apart."""
PERCENTS = (10, 50, 90)
"""Percentiles that have a curve."""
SLOWEST = 10
"""One in this many clients belongs to the slowest, whose score is a fairness metric."""

MOST = 60
"""Most metric names of a run in MLflow, without those of `system/`; more make its pages slow."""
RECORDED = (
    "pruning_ratio/min", "pruning_ratio/max", "clock/preparation_s", "traffic/preparation_bytes",
    "compute/preparation_flops",
)  # fmt: skip
"""In the records alone: extremes that follow from the tiers, and values that are equal in every round."""
OF_ONE_ROUND = (
    "traffic/down_bytes", "traffic/up_bytes", "compute/train_flops", "energy/round_j", "coverage/min",
    "coverage/untrained_channel_share", "loss/submodel_mean",
)  # fmt: skip
"""Left out of MLflow where a run has diagnostics, to make room: amounts whose totals stay, and details."""
TIERS, TIERS_DIAGNOSED = 4, 1
"""Tiers with curves of their own: in any run, and in one with diagnostics."""
SPARE, SPARE_DIAGNOSED = 1, 0
"""Names of the 60 that are free in any run, and in one with diagnostics."""
OF_PERCENTS = ("pruning_ratio/", "primary/submodel_", "client_s/")
OF_VALIDATION = ("primary/validation", "loss/validation")
WIDTHS_RECORDED = ("width_loss", "width_validation_primary")
"""Of each width in the records alone."""
OF_TIER = ("pruning_ratio/tier/", "primary/tier/", "client_s/tier/")
"""In all of these, `primary` stands for the name of the primary metric."""


def metrics_of(report: RoundReport) -> dict[str, float]:
    """Return all metrics of a round; MLflow gets those that `left_out` does not name."""
    totals, clients, name = report.totals, report.clients, report.primary.name
    down, up = int(clients["down_bytes"].sum()), int(clients["up_bytes"].sum())
    metrics = {
        "traffic/down_bytes": down,
        "traffic/up_bytes": up,
        "traffic/total_bytes": totals.down_bytes + totals.up_bytes,
        "compute/train_flops": int(clients["train_flops"].sum()),
        "compute/total_train_flops": totals.train_flops,
        "clock/simulated_s": totals.simulated_s,
        "clock/round_s": report.round_s,
        "clock/wall_s": report.wall_s,
        **_against_fedavg(report),
        **_energy(report),
        **_outcomes(report),
        "coverage/mean": report.coverage.mean,
        "coverage/min": report.coverage.min,
        "coverage/untrained_share": report.coverage.untrained_share,
        "coverage/untrained_channel_share": report.coverage.untrained_channel_share,
        **_pruning_ratios(report),
        **_submodels(report),
        **_seconds(report),
        **_fairness(report),
        **{f"diagnostics/{name}": value for name, value in report.diagnostics.items()},
        **{f"method/{name}": value for name, value in report.figures.items()},
    }
    if report.incidents:
        metrics["faults/retries"] = len(report.incidents)
    if isfinite(report.train_loss):
        metrics["loss/train"] = report.train_loss
    if totals.preparation_s:
        metrics["clock/preparation_s"] = totals.preparation_s
        metrics["traffic/preparation_bytes"] = totals.preparation_bytes
        metrics["compute/preparation_flops"] = totals.preparation_flops
    if report.score is not None:
        metrics[f"{name}/global"] = report.score.primary
        metrics["loss/global"] = report.score.loss
    if report.validation is not None:
        metrics[f"{name}/validation"] = report.validation.primary
        metrics["loss/validation"] = report.validation.loss
    metrics |= _further(report)
    metrics |= {f"width_{name}/{each.name}": each.primary for each in report.widths}
    metrics |= _recorded_of_widths(report)
    if totals.best_primary is not None:
        metrics[f"{name}/best"] = totals.best_primary
    return {key: float(value) for key, value in metrics.items()}


def left_out_of(scenario: Scenario) -> frozenset[str]:
    """Return the metrics of a run that MLflow does not get."""
    narrower = [width for width in scenario.widths if width < 1]
    more = len(narrower) + (len(OF_VALIDATION) if len(scenario.validation_rows) else 0)
    primary = scenario.primary
    recorded = {
        f"{primary.recorded(group)}/{width_name(width)}" for group in WIDTHS_RECORDED for width in scenario.widths
    }
    recorded.add(f"width_{primary.name}/1.00")  # it is that of the global model
    further = names_of(scenario.workload.task.further)
    splits = ("test", "validation") if len(scenario.validation_rows) else ("test",)
    recorded |= {f"{split}/{name}" for split in splits for name in further if is_per_class(name)}
    more += len(splits) * sum(not is_per_class(name) for name in further)
    devices = scenario.workload.population.devices
    return left_out(devices, scenario.diagnose_every > 0, more, primary) | recorded


def left_out(
    devices: Devices, is_diagnosed: bool, more: int = 0, primary: PrimaryMetric = ACCURACY
) -> frozenset[str]:
    """Return the metrics that MLflow does not get, so that a run has at most 60 names, the same in every round.

    Args:
        devices: Devices of the whole population.
        is_diagnosed: Whether the run has diagnostics.
        more: Number of further metrics that the settings ask for; details make room for them.
        primary: The metric by which models are compared.
    """
    tiers, shown = by_interest(devices), TIERS_DIAGNOSED if is_diagnosed else TIERS
    names = {*RECORDED, *(OF_ONE_ROUND if is_diagnosed else ())}
    names |= {f"{group}{tier}" for group in OF_TIER for tier in tiers[shown:]}
    details = (
        *reversed(OF_ONE_ROUND),
        *(f"{group}p{percent}" for percent in PERCENTS[:-1] for group in OF_PERCENTS),
        *(f"{group}{tier}" for tier in reversed(tiers[:shown]) for group in OF_TIER),
    )
    known = [name for name in details if name not in names]
    left = (*names, *known[: max(0, more - (SPARE_DIAGNOSED if is_diagnosed else SPARE))])
    return frozenset(map(primary.recorded, left))


def by_interest(devices: Devices) -> tuple[str, ...]:
    """Return the tiers of a population: the slowest, the fastest, then by number of clients; empty ones last."""
    tier_of, tiers = devices.tier_of, devices.tiers
    counts = np.bincount(tier_of, minlength=len(tiers))
    flops_per_s = np.bincount(tier_of, devices.column("flops_per_s"), minlength=len(tiers)) / np.maximum(counts, 1)
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda tier: float(flops_per_s[tier]))
    ends = list(dict.fromkeys([*order[:1], *order[-1:]]))
    others = sorted((tier for tier in range(len(tiers)) if tier not in ends), key=lambda tier: -int(counts[tier]))
    return tuple(tiers[tier] for tier in (*ends, *others))


def _against_fedavg(report: RoundReport) -> dict[str, float]:
    """Return what the run has spent in percent of FedAvg's; nothing where that is not known."""
    groups = {"bytes": "traffic", "flops": "compute", "simulated": "clock", "energy": "energy"}
    found = report.totals.percent_of_fedavg.items()
    return {f"{groups[name]}/percent_of_fedavg": percent for name, percent in found if percent is not None}


def _further(report: RoundReport) -> dict[str, float]:
    """Return the further metrics of the global model, under the rows that they are of."""
    scores = {"test": report.score, "validation": report.validation}
    return {
        f"{split}/{name}": value
        for split, score in scores.items()
        if score is not None
        for name, value in score.further.items()
    }


def _recorded_of_widths(report: RoundReport) -> dict[str, float]:
    found = {f"width_loss/{each.name}": each.loss for each in report.widths}
    return found | {
        f"width_validation_{report.primary.name}/{each.name}": each.validation_primary
        for each in report.widths
        if each.validation_primary is not None
    }


def _energy(report: RoundReport) -> dict[str, float]:
    """Return the joules of the devices; nothing before any have been spent, and never where devices have no watts."""
    if not report.totals.energy_j:
        return {}
    return {"energy/round_j": float(report.clients["energy_j"].sum()), "energy/total_j": report.totals.energy_j}


def _pruning_ratios(report: RoundReport) -> dict[str, float]:
    """Return the pruning ratios of the clients whose work counts."""
    counted = report.clients["fate"] == outcomes.COUNTED
    if not counted.any():
        return {}
    ratios = report.clients["pruning_ratio"][counted].astype(np.float64)
    metrics = {"mean": float(ratios.mean()), "min": float(ratios.min()), "max": float(ratios.max())}
    metrics |= _percentiles(ratios) | _by_tier(report, counted, "pruning_ratio")
    return {f"pruning_ratio/{name}": value for name, value in metrics.items()}


def _submodels(report: RoundReport) -> dict[str, float]:
    """Return the scores of submodels on their clients' held-out rows; nothing where none was scored."""
    name = report.primary.name
    values = report.clients[name].astype(np.float64)
    scored = ~np.isnan(values)
    if report.submodel is None or not scored.any():
        return {}
    shares = {f"submodel_{name}": value for name, value in _percentiles(values[scored]).items()}
    shares |= {"submodel_mean": report.submodel.primary} | _by_tier(report, scored, name)
    return {
        "loss/submodel_mean": report.submodel.loss,
        **{f"{name}/{part}": value for part, value in shares.items()},
    }


def _seconds(report: RoundReport) -> dict[str, float]:
    """Return the simulated seconds that clients were at work, lost work included."""
    started = np.isin(report.clients["fate"], outcomes.ABSENT, invert=True)
    if not started.any():
        return {}
    seconds = report.clients["lasts_s"][started].astype(np.float64)
    return {
        f"client_s/{name}": value
        for name, value in (_percentiles(seconds) | _by_tier(report, started, "lasts_s")).items()
    }


def _percentiles(values: NDArray[np.float64]) -> dict[str, float]:
    found = np.percentile(values, PERCENTS)
    return {f"p{percent}": float(value) for percent, value in zip(PERCENTS, found, strict=True)}


def _by_tier(report: RoundReport, chosen: NDArray[np.bool_], column: str) -> dict[str, float]:
    """Return the mean of a column over some clients, by tier; tiers without any are left out."""
    return {f"tier/{tier}": mean for tier, mean in _tier_means(report.clients, report.tiers, chosen, column).items()}


def _tier_means(clients: Columns, tiers: Sequence[str], chosen: NDArray[np.bool_], column: str) -> dict[str, float]:
    values, names = clients[column][chosen].astype(np.float64), clients["tier"][chosen]
    members = {tier: names == tier for tier in tiers}
    return {tier: float(values[which].mean()) for tier, which in members.items() if which.any()}


def _fairness(report: RoundReport) -> dict[str, float]:
    """Return fairness metrics, from the scores of submodels on their clients' held-out rows.

    `slowest_decile_accuracy`: mean accuracy over the slowest tenth of the clients scored in the round, rounded up;
    clients are ordered by the FLOP/s of their devices, then by the seconds of their work, then by id.
    `worst_tier_accuracy`: the lowest of the tiers' mean accuracies. Every client counts once. Nothing where none was
    scored. Another primary metric takes the place of the accuracy, with its name; its worst is by its direction.
    """
    clients, primary = report.clients, report.primary
    scored = ~np.isnan(clients[primary.name].astype(np.float64))
    if not scored.any():
        return {}
    values, flops_per_s, total_s = (
        clients[name][scored].astype(np.float64) for name in (primary.name, "flops_per_s", "total_s")
    )
    means = _tier_means(clients, report.tiers, scored, primary.name)
    return {
        f"fairness/slowest_decile_{primary.name}": float(values[_slowest(flops_per_s, total_s)].mean()),
        f"fairness/worst_tier_{primary.name}": primary.worst(means.values()),
    }


def _slowest(flops_per_s: NDArray[np.float64], total_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the indices of the slowest tenth.

    >>> _slowest(np.array([1.0, 2.0, 1.0] * 4), np.array([5.0, 9.0, 7.0] * 4)).tolist()
    [2, 5]
    """
    return np.lexsort((-total_s, flops_per_s))[: ceil(len(total_s) / SLOWEST)]


def _outcomes(report: RoundReport) -> dict[str, float]:
    """Return how many clients of the round had each outcome that has occurred in the run."""
    outcome_of = report.clients["fate"]
    names = (outcomes.COUNTED, *report.totals.outcomes)
    metrics = dict.fromkeys((f"clients/{CURVE_OF_OUTCOME.get(name, name)}" for name in names), 0.0)
    for outcome, number in zip(*np.unique(outcome_of, return_counts=True), strict=True):
        metrics[f"clients/{CURVE_OF_OUTCOME.get(str(outcome), outcome)}"] += int(number)
    staleness = report.round - report.clients["started_round"][outcome_of == outcomes.COUNTED]
    if report.is_asynchronous and len(staleness):
        metrics["clients/staleness_mean"] = float(staleness.mean())
    return metrics


def for_mlflow(metrics: Mapping[str, float], without: frozenset[str]) -> dict[str, float]:
    """Return the metrics that MLflow gets: those with a value."""
    return {name: value for name, value in metrics.items() if name not in without and not isnan(value)}
