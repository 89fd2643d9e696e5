"""The metrics that trials can be held against each other by: those that every scored round has."""

from collections.abc import Iterable

from raysim.config import ExperimentSettings
from raysim.metrics import PERCENTS

ALWAYS = (
    "accuracy/global", "accuracy/best", "loss/global", "loss/train",
    "traffic/total_bytes", "traffic/percent_of_fedavg", "traffic/down_bytes", "traffic/up_bytes",
    "compute/total_train_flops", "compute/percent_of_fedavg", "compute/train_flops",
    "clock/simulated_s", "clock/round_s", "clock/wall_s", "energy/total_j", "energy/round_j",
    "coverage/mean", "coverage/min", "coverage/untrained_share", "coverage/untrained_channel_share",
    *(f"{group}/p{percent}" for group in ("pruning_ratio", "client_s") for percent in PERCENTS),
    "pruning_ratio/mean", "clients/counted",
)  # fmt: skip
OF_SUBMODELS = (
    "accuracy/submodel_mean", *(f"accuracy/submodel_p{percent}" for percent in PERCENTS), "loss/submodel_mean",
    "fairness/slowest_decile_accuracy", "fairness/worst_tier_accuracy",
)  # fmt: skip
"""Where clients score their submodels on rows of their own."""


def metrics_of(settings: ExperimentSettings, tiers: Iterable[str]) -> list[str]:
    """Return the names of the metrics that a scored round has, unless nobody's work counted.

    A tier has its metrics in rounds in which a client of it took part.

    Args:
        settings: The experiment.
        tiers: Names of the population's tiers.
    """
    groups = ["pruning_ratio", "client_s"]
    found = list(ALWAYS)
    if settings.evaluation.client_share and settings.data.heldout_share:
        groups.append("accuracy")
        found += OF_SUBMODELS
    return found + [f"{group}/tier/{tier}" for group in groups for tier in tiers]
