"""The table of named methods: score, budget, fill and local rules, one row each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysim import budgets
from raysim.aggregation import FILLS
from raysim.budgets import BudgetRule
from raysim.errors import SettingError, nearest_first, unknown_name
from raysim.estimators import ESTIMATORS, CohortReport
from raysim.pruning import masks, significance
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.significance import FORMS, Scores
from raysim.training import LocalTraining
from raysim.types import LocalRules, Mask, Params


@dataclass(frozen=True, slots=True)
class MethodOptions:
    """What can be changed of a method; the fields are those of the `method` settings."""

    fill: str = "global"
    fill_gamma: float = 0.5
    score: str = "robust"
    estimator: str = "fisher"
    warmup_rounds: int = 3
    refresh_rounds: int = 1
    score_decay: float = 0.9
    curvature_scale: float = 1.0
    include_consumers: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """What a score may look at.

    Attributes:
        plan: The model's channel groups.
        params: Global parameters and buffers.
        memory: What the method remembers.
        options: The method's options.
        clients: The cohort's ids, `(cohort,)`.
        round: Counted from 1.
        seed: Seed of the experiment.
    """

    plan: ChannelPlan
    params: Params
    memory: Params
    options: MethodOptions
    clients: NDArray[np.int64]
    round: int
    seed: int


ScoreRule = Callable[[Ranking], Scores]
"""Returns scores, large = keep: shared `(num_units,)`, or one row per client `(cohort, num_units)`."""


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the table.

    Attributes:
        name: Name in the settings.
        source: Paper and equation.
        score: Ranks the channels.
        budget: How much of the model a device tier trains.
        options: The method's choices.
        reads: Which options it reads; the others are refused.
        rules: What it asks of clients beyond local training.
        claims: Laws of `tests/test_laws.py` it claims beyond those that hold for all.
    """

    name: str
    source: str
    score: ScoreRule
    budget: BudgetRule
    options: MethodOptions
    reads: frozenset[str]
    rules: LocalRules = field(default_factory=LocalRules)
    claims: frozenset[str] = frozenset()


def resolve(name: str, given: Mapping[str, Any], local: LocalTraining) -> Method:
    """Look up a method and apply the options that were given.

    Raises:
        SettingError: If the method is unknown, does not read an option, or an option's value is unknown.
    """
    check_name(name)
    row = METHODS[name]
    for option, value in given.items():
        if option not in row.reads:
            allowed = ", ".join(sorted(row.reads)) or "none"
            raise SettingError(
                f"method.{option}={value!r} has no effect with method.name={name!r}; options it reads: {allowed}"
            )
    options = replace(row.options, **given)
    if "curvature_scale" not in given:
        options = replace(options, curvature_scale=float(local.batch_size))
    _check_options(row, options, given, local)
    rules = row.rules
    if "estimator" in row.reads:
        rules = replace(
            rules,
            estimator=options.estimator,
            score_form=options.score,
            include_consumers=options.include_consumers,
        )
    return replace(row, options=options, rules=rules)


def check_name(name: str) -> None:
    """Raise SettingError if there is no method of this name."""
    if name not in METHODS:
        raise unknown_name("method.name", name, METHODS)


def _check_options(row: Method, options: MethodOptions, given: Mapping[str, Any], local: LocalTraining) -> None:
    for option, table in (("fill", FILLS), ("score", FORMS), ("estimator", ESTIMATORS)):
        value = getattr(options, option)
        if value not in table:
            known = ", ".join(nearest_first(value, table))
            raise SettingError(f"method.{option}={value!r} is unknown; known: {known}")
    for option, needed, wanted in (
        ("fill_gamma", "fill", "damped"),
        ("curvature_scale", "estimator", "variation"),
    ):
        if option in given and getattr(options, needed) != wanted:
            raise SettingError(
                f"method.{option}={given[option]!r} has no effect with "
                f"method.{needed}={getattr(options, needed)!r}; it belongs to {wanted!r}"
            )
    if "estimator" in row.reads and ESTIMATORS[options.estimator].needs_plain_sgd and local.optimizer != "sgd":
        raise SettingError(
            f"method.estimator={options.estimator!r} is not allowed with training.optimizer="
            f"{local.optimizer!r}; allowed: training.optimizer='sgd', or method.estimator='fisher'"
        )


def rank(method: Method, ranking: Ranking) -> tuple[Scores, Params]:
    """Score the channels, or repeat the last ranking where it is not yet due to be refreshed.

    Returns:
        The scores, and the memory with a shared ranking remembered.
    """
    every = method.options.refresh_rounds
    due = (ranking.round - 1 - last_random_round(method)) % every == 0
    if "ranking" in ranking.memory and not due and ranking.round > last_random_round(method):
        return np.asarray(ranking.memory["ranking"].numpy(), dtype=np.float64), ranking.memory
    scores = method.score(ranking)
    if every == 1 or scores.ndim == 2:
        return scores, ranking.memory
    return scores, {**ranking.memory, "ranking": torch.from_numpy(scores)}


def last_random_round(method: Method) -> int:
    """Return the last round with random masks, 0 if there is none."""
    return method.options.warmup_rounds if "warmup_rounds" in method.reads else 0


def learn(method: Method, memory: Params, report: CohortReport) -> Params:
    """Update what the method remembers from a round's contributions."""
    if method.rules.estimator == "none":
        return memory
    options = method.options
    update = ESTIMATORS[options.estimator].update
    return update(memory, report, options.score_decay, options.curvature_scale)


def score_bytes(method: Method, mask: Mask) -> int:
    """Return the bytes of the channel sums a client uploads for the ranking, 4 per number."""
    if method.rules.estimator == "none" or not ESTIMATORS[method.rules.estimator].clients_report_sums:
        return 0
    return 4 * FORMS[method.rules.score_form].num_sums * int(mask.kept.sum())


def random_score(ranking: Ranking) -> Scores:
    """Score by fresh noise for each client and round."""
    return masks.noise(ranking.plan, ranking.clients, ranking.round, ranking.seed)


def index_score(ranking: Ranking) -> Scores:
    """Score by minus the channel's index: everybody keeps the first channels."""
    return significance.first_channels(ranking.plan)


def l1_score(ranking: Ranking) -> Scores:
    """Score by the l1 norm of the channel's filters."""
    return significance.l1_norms(ranking.plan, ranking.params)


def curvature_score(ranking: Ranking) -> Scores:
    """Score by CA-HFP's significance (arXiv 2603.12591, eq 15); by noise in the warm-up rounds."""
    options = ranking.options
    if ranking.round <= options.warmup_rounds or not ranking.memory:
        return random_score(ranking)
    estimate = ESTIMATORS[options.estimator].sums
    gradient_sum, curvature_sum = estimate(
        ranking.memory, ranking.params, ranking.plan, options.score, options.include_consumers
    )
    return FORMS[options.score].combine(gradient_sum, curvature_sum)


FILL_OPTIONS = frozenset({"fill", "fill_gamma"})
ALL_OPTIONS = frozenset(field.name for field in fields(MethodOptions))

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "fedavg", "McMahan et al., arXiv 1602.05629",
            score=index_score, budget=budgets.whole_model, options=MethodOptions(), reads=frozenset(),
            claims=frozenset({"equals fedavg at keep 1", "nested masks"}),
        ),
        Method(
            "random", "CA-HFP, arXiv 2603.12591, warm-up masks",
            score=random_score, budget=budgets.of_tier, options=MethodOptions(), reads=FILL_OPTIONS,
            claims=frozenset({"equals fedavg at keep 1"}),
        ),
        Method(
            "magnitude", "Li et al., arXiv 1608.08710",
            score=l1_score, budget=budgets.of_tier, options=MethodOptions(),
            reads=FILL_OPTIONS | {"refresh_rounds"},
            claims=frozenset({"equals fedavg at keep 1", "nested masks"}),
        ),
        Method(
            "heterofl", "Diao et al., arXiv 2010.01264",
            score=index_score, budget=budgets.halving_level,
            options=MethodOptions(fill="holders"), reads=FILL_OPTIONS,
            rules=LocalRules(scale_by_keep_ratio=True, own_classes_only=True, static_norm=True),
            claims=frozenset({"nested masks"}),
        ),
        Method(
            "ca-hfp", "arXiv 2603.12591, eq 2-4, 14 and 15",
            score=curvature_score, budget=budgets.of_tier, options=MethodOptions(), reads=ALL_OPTIONS,
            claims=frozenset({"equals fedavg at keep 1", "nested masks"}),
        ),
    )
}  # fmt: skip
