"""Resolve a method from names and options, and run its rules: rank, mask, load, learn, serve."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from raysim.client.compression import VALUE_BYTES
from raysim.client.training import LocalTraining
from raysim.clock.timing import CohortLoad
from raysim.core import plugins
from raysim.core.errors import SettingError, nearest_first, unknown_name
from raysim.core.options import own_options
from raysim.core.tensors import Params
from raysim.methods.estimators import ESTIMATORS
from raysim.methods.mask_rules import MASKS
from raysim.methods.method import CohortReport, Method, RoundView
from raysim.methods.objectives import OBJECTIVES
from raysim.methods.options import MethodOptions
from raysim.methods.scores import random_score, with_bonus
from raysim.methods.table import METHODS
from raysim.pruning.costs import CostTable
from raysim.pruning.masks import CohortMasks, Mask
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.significance import FORMS, Scores, form_of
from raysim.server.fill import FILLS
from raysim.task.task import Task

NORMALIZATIONS = ("batch", "static", "group")


def resolve(name: str, given: Mapping[str, Any], local: LocalTraining) -> Method:
    """Look up a method and apply the given options.

    Args:
        name: A row of the table, or a dotted path to a user's `Method`.
        given: Options by name; `options` holds the row's own.
        local: Optimizer, epochs and batch size of local training.

    Raises:
        SettingError: If the method is unknown, does not read an option, or an option's value is unknown.
    """
    row = _row(name)
    shared = {option: value for option, value in given.items() if option != "options"}
    for option, value in shared.items():
        if option not in row.reads:
            allowed = ", ".join(sorted(row.reads)) or "none"
            raise SettingError(
                f"method.{option}={value!r} has no effect with method.name={name!r}; options it reads: {allowed}"
            )
    options = replace(row.options, **shared, own=own_options(name, row.own, given.get("options", {})))
    if "curvature_scale" not in given:
        options = replace(options, curvature_scale=float(local.batch_size))
    row = replace(
        row,
        options=options,
        score=_score(row, options),
        mask=row.mask or _named("mask", options.mask, MASKS),
        fill=_named("fill", options.fill, FILLS),
        objective=_known("objective", options.objective, OBJECTIVES),
    )
    _check(row, given, local)
    return replace(row, rules=_rules(row))


def _row(name: str) -> Method:
    if not plugins.is_dotted(name):
        check_name(name)
        return METHODS[name]
    row = plugins.load("method.name", name)
    if not isinstance(row, Method):
        raise SettingError(f"method.name={name!r} is {type(row).__name__}; allowed: a raysim.Method")
    return row


def check_name(name: str) -> None:
    """Raise SettingError if there is no method of this name."""
    if not plugins.is_dotted(name) and name not in METHODS:
        raise unknown_name("method.name", name, METHODS)


def _named(option: str, name: str, table: Mapping[str, Any]) -> Any:
    """Return a member of a table, or the user's own by its dotted path."""
    if plugins.is_dotted(name):
        member = plugins.load(f"method.{option}", name)
        if not callable(member):
            raise SettingError(f"method.{option}={name!r} is {type(member).__name__}; allowed: a function")
        return member
    return _known(option, name, table)


def _known(option: str, name: str, table: Mapping[str, Any]) -> Any:
    if name not in table:
        known = ", ".join(nearest_first(name, table))
        raise SettingError(f"method.{option}={name!r} is unknown; known: {known}")
    return table[name]


def _score(row: Method, options: MethodOptions) -> Callable[[RoundView], Scores]:
    """Return the row's score, or the user's own in its place."""
    if plugins.is_dotted(options.score):
        own: Callable[[RoundView], Scores] = _named("score", options.score, {})
        return own
    return row.score


def uses_estimator(method: Method) -> bool:
    """Whether the method estimates gradient and curvature from the clients' reports."""
    return "estimator" in method.reads


def _check(row: Method, given: Mapping[str, Any], local: LocalTraining) -> None:
    options = row.options
    if not plugins.is_dotted(options.score):
        if "score" in given and not uses_estimator(row):
            raise SettingError(
                f"method.score={options.score!r} is not allowed with method.name={row.name!r}, which estimates no "
                "curvature; allowed: a dotted path to a score of your own"
            )
        _known("score", options.score, FORMS)
    _known("estimator", options.estimator, ESTIMATORS)
    _known("normalization", options.normalization, dict.fromkeys(NORMALIZATIONS))
    for option, needed, wanted in (
        ("fill_gamma", "fill", "damped"),
        ("curvature_scale", "estimator", "variation"),
        ("curvature_max", "estimator", "secant"),
        ("hutchinson_draws", "estimator", "hutchinson"),
        ("proximal_mu", "objective", "proximal"),
    ):
        value = getattr(options, needed)
        if option in given and value != wanted and not (needed == "fill" and plugins.is_dotted(value)):
            raise SettingError(
                f"method.{option}={given[option]!r} has no effect with "
                f"method.{needed}={value!r}; it belongs to {wanted!r}"
            )
    if options.mask == "coverage" and row.mask is MASKS["coverage"] and not uses_estimator(row):
        raise SettingError(
            f"method.mask='coverage' is not allowed with method.name={row.name!r}, which estimates no curvature; "
            f"allowed: {', '.join(name for name in MASKS if name != 'coverage')}"
        )
    if row.mask is MASKS["coverage"]:
        for option in ("refresh_rounds", "hysteresis", *(("score",) if plugins.is_dotted(options.score) else ())):
            if option in given:
                raise SettingError(
                    f"method.{option}={given[option]!r} has no effect with method.mask='coverage', which reads the "
                    "estimates of each round and no ranking"
                )
    if local.epochs < row.min_epochs:
        raise SettingError(
            f"training.epochs={local.epochs} is not allowed with method.name={row.name!r}; "
            f"allowed: {row.min_epochs} or more"
        )
    if row.objective.needs_plain_sgd and row.rules.choose_locally is not None:
        raise SettingError(
            f"method.objective={options.objective!r} is not allowed with method.name={row.name!r}, whose clients "
            "do more than step along gradients; allowed: plain, proximal"
        )
    _check_optimizer(row, local)


def _check_optimizer(row: Method, local: LocalTraining) -> None:
    if local.optimizer == "sgd":
        return
    if uses_estimator(row) and ESTIMATORS[row.options.estimator].needs_plain_sgd:
        raise SettingError(
            f"method.estimator={row.options.estimator!r} is not allowed with training.optimizer="
            f"{local.optimizer!r}; allowed: training.optimizer='sgd', or method.estimator='fisher'"
        )
    if row.objective.needs_plain_sgd:
        raise SettingError(
            f"method.objective={row.options.objective!r} is not allowed with training.optimizer="
            f"{local.optimizer!r}; allowed: training.optimizer='sgd'"
        )


def _rules(row: Method) -> Any:
    hooks = [] if row.objective.hook is None else [row.objective.hook]
    hooks += [ESTIMATORS[row.options.estimator].hook] if uses_estimator(row) else []
    hooks += row.local
    return replace(
        row.rules,
        hooks=tuple(partial(hook, options=row.options) for hook in hooks),
        static_norm=row.rules.static_norm or row.options.normalization == "static",
    )


def check_task(method: Method, task: Task) -> None:
    """Raise SettingError if a method needs something that the task lacks."""
    if method.rules.own_classes_only:
        task.own_classes_for(f"method.name={method.name!r}")
    if method.options.own.get("distill"):
        task.distillation_for("method.options.distill=True")


def rank(method: Method, view: RoundView) -> tuple[Scores, Params]:
    """Score the channels, or return the last ranking if a refresh is not yet due.

    Returns:
        The scores, and the memory with a shared ranking stored.
    """
    every = method.options.refresh_rounds
    due = (view.round - 1 - last_random_round(method)) % every == 0
    if "ranking" in view.memory and not due and view.round > last_random_round(method):
        return np.asarray(view.memory["ranking"].numpy(), dtype=np.float64), view.memory
    scores = checked_scores(method, view)
    if every == 1 or scores.ndim == 2:
        return scores, view.memory
    return scores, {**view.memory, "ranking": torch.from_numpy(scores)}


def checked_scores(method: Method, view: RoundView) -> Scores:
    """Return a method's scores.

    Raises:
        ValueError: If their shape is wrong or one is not a number.
    """
    is_random = view.round <= last_random_round(method)
    scores = np.asarray(random_score(view) if is_random else method.score(view), dtype=np.float64)
    allowed = ((view.plan.num_units,), (len(view.clients), view.plan.num_units))
    if scores.shape not in allowed:
        raise ValueError(f"the score of method {method.name!r} has shape {scores.shape}; allowed: {allowed}")
    if np.isnan(scores).any():
        raise ValueError(f"the score of method {method.name!r} is NaN for {int(np.isnan(scores).sum())} channels")
    return with_bonus(view, scores)


def choose_masks(method: Method, view: RoundView, scores: Scores) -> CohortMasks:
    """Return the mask of each client of the cohort.

    Raises:
        ValueError: If there are not as many masks as clients, or one does not fit the model.
    """
    if method.mask is None:
        raise ValueError(f"method {method.name!r} has not been resolved")
    masks = CohortMasks.of(method.mask(view, scores))
    if len(masks) != len(view.clients):
        raise ValueError(f"the mask rule of {method.name!r} gives {len(masks)} masks for {len(view.clients)} clients")
    for mask in masks.distinct:
        empty = [name for name, units in view.plan.units.items() if not mask.kept[units].any()]
        if len(mask.kept) != view.plan.num_units or empty:
            raise ValueError(f"the mask rule of {method.name!r} leaves no unit in group {(empty or ['?'])[0]!r}")
    return masks


def extra(method: Method, view: RoundView) -> Params:
    """Return the tensors that are sent to all clients beside the parameters."""
    return {} if method.objective.extra is None else method.objective.extra(view)


def served(method: Method, plan: ChannelPlan, params: Params, memory: Params) -> Params:
    """Return the global model as it is scored and served: channels that no client has trained yet may be silent.

    The weights that read a silent channel are zero; this costs no bytes.
    """
    if not method.options.silent_dormant or "trained" not in memory:
        return params
    silent = dict(params)
    dormant = ~memory["trained"].numpy()
    for group, slot in plan.slots():
        if slot.role == "consumer":
            indices = torch.from_numpy(slot.indices[dormant[plan.units[group.name]]].ravel())
            silent[slot.key] = silent[slot.key].index_fill(slot.dim, indices, 0)
    return silent


def last_random_round(method: Method) -> int:
    """Return the last round with random masks, 0 if there is none."""
    return method.options.warmup_rounds if "warmup_rounds" in method.reads else 0


def load_of(method: Method, view: RoundView, masks: CohortMasks, load: CohortLoad) -> CohortLoad:
    """Return the load with the bytes and FLOPs of the method beyond those of submodels."""
    rules = [method.load, method.objective.load]
    rules += [ESTIMATORS[method.options.estimator].load] if uses_estimator(method) else []
    for rule in rules:
        if rule is not None:
            load = rule(view, masks, load)
    return load


def learn(method: Method, params: Params, memory: Params, report: CohortReport) -> tuple[Params, Params]:
    """Return the parameters and memory that are kept after a round."""
    if uses_estimator(method):
        memory = ESTIMATORS[method.options.estimator].update(memory, report)
    if method.options.hysteresis or method.options.silent_dormant:
        memory = remember_kept(memory, report)
    for rule in (method.objective.after_round, method.after_round):
        if rule is not None:
            params, memory = rule(params, memory, report)
    return params, memory


def remember_kept(memory: Params, report: CohortReport) -> Params:
    """Store the share of the cohort that kept each channel, and which channels were ever trained."""
    kept = report.masks.kept
    trained = torch.from_numpy(kept.any(axis=0))
    return {
        **memory,
        "kept_share": torch.from_numpy(kept.mean(axis=0)),
        "trained": trained | memory.get("trained", torch.zeros_like(trained)),
    }


def update_bytes(method: Method, costs: CostTable, mask: Mask) -> int:
    """Return the bytes of a client's update: its buffers and its parameters, compressed where updates are."""
    compression = method.rules.compression
    if compression is None:
        return costs.of(mask).model_bytes - costs.pruned_bytes(mask)
    return costs.buffer_bytes(mask) + compression.upload_bytes(costs.sent_entries(mask))


def remembered_bytes(method: Method, costs: CostTable) -> int:
    """Return the bytes of memory that a client needs for the residual of its compression.

    It is that of the full model: entries outside today's mask wait for a mask that keeps them.
    """
    return VALUE_BYTES * costs.dense.parameters if method.rules.remembers_updates else 0


def score_bytes(method: Method, mask: Mask) -> int:
    """Return the bytes of the channel sums a client uploads for the ranking, 4 per number."""
    if not uses_estimator(method) or not ESTIMATORS[method.options.estimator].clients_report_sums:
        return 0
    return 4 * form_of(method.options.score).num_sums * int(mask.kept.sum())
