"""List the metrics by which trials can be compared: those that every run has, sooner or later."""

from raysim.config.experiment import ExperimentSettings
from raysim.config.metric import ACCURACY, FIELD, PER_CLASS, Direction, PrimaryMetric, name_of
from raysim.population import sources
from raysim.simulation.fedavg import why_not_compared
from raysim.simulation.metrics import PERCENTS

ALWAYS = (
    "primary/global", "primary/best", "loss/global",
    "traffic/total_bytes", "traffic/down_bytes", "traffic/up_bytes",
    "compute/total_train_flops", "compute/train_flops",
    "clock/simulated_s", "clock/round_s", "clock/wall_s",
    "coverage/mean", "coverage/min", "coverage/untrained_share", "coverage/untrained_channel_share",
    "clients/counted",
)  # fmt: skip
"""Metrics of every scored round; `primary` stands for the name of the primary metric, here and below."""
OF_TEST_ROWS = ("primary/global", "primary/best", "loss/global")
OF_VALIDATION_ROWS = ("primary/validation", "loss/validation")
OF_FEDAVG = ("traffic/percent_of_fedavg", "compute/percent_of_fedavg", "clock/percent_of_fedavg")
"""Metrics of rounds after FedAvg's first byte, where it is known what FedAvg would have spent."""
OF_COHORT = (
    "loss/train", "pruning_ratio/mean",
    *(f"{group}/p{percent}" for group in ("pruning_ratio", "client_s") for percent in PERCENTS),
)  # fmt: skip
"""Metrics of rounds in which a client took part."""
OF_ENERGY = ("energy/total_j", "energy/round_j")
"""Metrics of rounds after the first joule was spent."""
OF_SUBMODELS = (
    "primary/submodel_mean", *(f"primary/submodel_p{percent}" for percent in PERCENTS), "loss/submodel_mean",
    "fairness/slowest_decile_primary", "fairness/worst_tier_primary",
)  # fmt: skip
"""Metrics of rounds in which clients scored their submodels on their own rows."""
DRAWING = ("train_watts", "idle_watts", "radio_j_per_byte")
"""Figures of a device that spends joules."""


def primary_of(settings: ExperimentSettings) -> str:
    """Return the primary metric by which trials are compared: on validation rows, or on test rows without them."""
    name = settings.task.primary_metric.name
    return f"{name}/validation" if settings.data.validation_share else f"{name}/global"


def test_metrics(settings: ExperimentSettings) -> list[str]:
    """Return the metrics that look at test rows alone, apart from those of widths."""
    return [*map(settings.task.primary_metric.recorded, OF_TEST_ROWS), *further_names(settings, "test")]


def direction_of(metric: str, primary: PrimaryMetric) -> Direction:
    """Return whether a high or a low metric is better: that of the primary one is known; of others it is `up`.

    >>> direction_of("rmse/validation", PrimaryMetric("rmse", "down")), direction_of("accuracy/best", PrimaryMetric())
    ('down', 'up')
    """
    group, _, name = metric.partition("/")
    fair = [each.partition("/")[2] for each in map(primary.recorded, OF_SUBMODELS) if each.startswith("fairness/")]
    is_primary = group == primary.name or (group == "fairness" and name in fair)
    return primary.direction if is_primary else "up"


def further_names(settings: ExperimentSettings, split: str) -> list[str]:
    """Return the further metrics on test or validation rows, apart from those of single classes."""
    return [f"{split}/{name}" for name in map(name_of, settings.task.metrics) if name != PER_CLASS]


def rows_of(metric: str, primary: PrimaryMetric = ACCURACY) -> str:
    """Return the rows that a metric looks at: `test rows`, `validation rows`, or nothing for metrics of neither."""
    named = {"test rows": OF_TEST_ROWS, "validation rows": OF_VALIDATION_ROWS}
    prefixes = {"test": "test rows", f"width_{primary.name}": "test rows", "validation": "validation rows"}
    prefixed = prefixes.get(metric.partition("/")[0], "")
    return next((rows for rows, metrics in named.items() if metric in map(primary.recorded, metrics)), prefixed)


def comparable_metrics(settings: ExperimentSettings) -> list[str]:
    """Return the names of the metrics by which trials with these settings can be compared.

    Raises:
        SettingError: If the devices cannot be read.
    """
    devices = sources.of_settings(settings.population, settings.split_seed)
    groups, found = ["pruning_ratio", "client_s"], [*ALWAYS, *OF_COHORT]
    if not why_not_compared(settings.selection.rule, settings.stop.given):
        found += OF_FEDAVG
    if any(devices.column(name).any() for name in DRAWING):
        found += OF_ENERGY
    found += further_names(settings, "test")
    if settings.data.validation_share:
        found += [*OF_VALIDATION_ROWS, *further_names(settings, "validation")]
    if settings.evaluation.client_share and settings.data.heldout_share:
        groups.append(FIELD)
        found += OF_SUBMODELS
    tiers = [devices.tiers[tier] for tier in sorted(set(devices.tier_of.tolist()))]
    recorded = settings.task.primary_metric.recorded
    return [recorded(name) for name in found] + [
        f"{recorded(group)}/tier/{tier}" for group in groups for tier in tiers
    ]
