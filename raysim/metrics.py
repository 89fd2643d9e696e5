"""What MLflow and the records are told of a round: numbers by name."""

from math import isfinite

import numpy as np

from raysim.fates import BATTERY, COUNTED, DROPPED, OFFLINE, UNREACHABLE
from raysim.types import RoundReport

WAYS = dict.fromkeys((DROPPED, OFFLINE, BATTERY, UNREACHABLE), "away")
"""Fates that share a curve; the clients' table and the summary tell them apart."""


def metrics_of(report: RoundReport) -> dict[str, float]:
    """Return a round's metrics: at most 60 keys, whatever the number of clients."""
    totals, clients = report.totals, report.clients
    down, up = int(clients["down_bytes"].sum()), int(clients["up_bytes"].sum())
    metrics = {
        "traffic/down_bytes": down,
        "traffic/up_bytes": up,
        "traffic/total_bytes": totals.down_bytes + totals.up_bytes,
        "traffic/percent_of_fedavg": totals.bytes_percent_of_fedavg,
        "compute/train_flops": int(clients["train_flops"].sum()),
        "compute/total_train_flops": totals.train_flops,
        "compute/percent_of_fedavg": totals.flops_percent_of_fedavg,
        "clock/simulated_s": totals.simulated_s,
        "clock/round_s": report.round_s,
        "clock/wall_s": report.wall_s,
        "energy/round_j": float(clients["energy_j"].sum()),
        "energy/total_j": totals.energy_j,
        **_fates(report),
        "coverage/mean": report.coverage.mean,
        "coverage/min": report.coverage.min,
        "coverage/untrained_share": report.coverage.untrained_share,
        "coverage/untrained_channel_share": report.coverage.untrained_channel_share,
        **_pruning_ratios(report),
        **{f"diagnostics/{name}": value for name, value in report.diagnostics.items()},
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
        metrics["accuracy/global"] = report.score.accuracy
        metrics["loss/global"] = report.score.loss
    if totals.best_accuracy is not None:
        metrics["accuracy/best"] = totals.best_accuracy
    if report.submodel is not None:
        metrics["accuracy/submodel_mean"] = report.submodel.accuracy
        metrics["loss/submodel_mean"] = report.submodel.loss
    return {key: float(value) for key, value in metrics.items()}


def _pruning_ratios(report: RoundReport) -> dict[str, float]:
    counted = report.clients["fate"] == COUNTED
    if not counted.any():
        return {}
    ratios = report.clients["pruning_ratio"][counted].astype(np.float64)
    metrics = {"mean": ratios.mean(), "min": ratios.min(), "max": ratios.max()}
    for tier in report.tiers:
        members = report.clients["tier"][counted] == tier
        if members.any():
            metrics[f"tier/{tier}"] = ratios[members].mean()
    return {f"pruning_ratio/{name}": float(value) for name, value in metrics.items()}


def _fates(report: RoundReport) -> dict[str, float]:
    """Return how many clients of the round counted, and how many were lost in each way that has occurred."""
    fates = report.clients["fate"]
    metrics = dict.fromkeys((f"clients/{WAYS.get(fate, fate)}" for fate in (COUNTED, *report.totals.fates)), 0.0)
    for fate in fates:
        metrics[f"clients/{WAYS.get(str(fate), fate)}"] += 1
    staleness = report.round - report.clients["started_round"][fates == COUNTED]
    if report.is_asynchronous and len(staleness):
        metrics["clients/staleness_mean"] = float(staleness.mean())
    return metrics
