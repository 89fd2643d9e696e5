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
from raysim.methods.scores import LEARNED, SCORES, random_score, with_bonus
from raysim.methods.table import ESTIMATES, METHODS
from raysim.pruning.costs import CostTable
from raysim.pruning.masks import CohortMasks, Mask, keep_top_for_cohort
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.significance import FORMS, Scores, first_channels, form_of
from raysim.server.fill import FILLS
from raysim.task.task import Task

NORMALIZATIONS = ("batch", "static", "group")
SMALLEST_RATE = 2.0**-126
"""Smallest learning rate that gradients are read with from displacements: float32's smallest normal number."""


def resolve(name: str, given: Mapping[str, Any], local: LocalTraining) -> Method:
    """Look up a method and apply the given options.

    Args:
        name: A row of the table, or a dotted path to a user's `Method`.
        given: Options by name; `options` holds the row's own.
        local: Optimizer, epochs and batch size of local training.

    Raises:
        SettingError: If the method is unknown, does not read an option, or an option's value is unknown.
    """
    row, chosen = _row(name), f"method.name={name!r}"
    shared = {option: value for option, value in given.items() if option != "options"}
    if "score" in row.reads and shared.get("score") in SCORES:
        row, chosen = replace(row, reads=row.reads - ESTIMATES), f"{chosen} and method.score={shared['score']!r}"
    for option, value in shared.items():
        if option not in row.reads:
            allowed = ", ".join(sorted(row.reads)) or "none"
            raise SettingError(f"method.{option}={value!r} has no effect with {chosen}; options it reads: {allowed}")
    options = replace(row.options, **shared, own=own_options(name, row.own, given.get("options", {})))
    row = replace(
        row,
        options=options,
        score=_score(row, options),
        mask=row.mask or _named("mask", options.mask, MASKS),
        fill=_named("fill", options.fill, FILLS),
        objective=_known("objective", options.objective, OBJECTIVES),
    )
    _check(row, given, local)
    if "curvature_scale" not in given and ESTIMATORS[options.estimator].squares_mean_gradients:
        row = replace(row, options=replace(options, curvature_scale=float(local.batch_size)))
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
    """Return the row's score, or in its place a named one without estimates or the user's own."""
    if plugins.is_dotted(options.score):
        own: Callable[[RoundView], Scores] = _named("score", options.score, {})
        return own
    return SCORES.get(options.score, row.score)


def uses_estimator(method: Method) -> bool:
    """Whether the method estimates gradient and curvature from the clients' reports."""
    return "estimator" in method.reads


def _check(row: Method, given: Mapping[str, Any], local: LocalTraining) -> None:
    options = row.options
    if not plugins.is_dotted(options.score):
        _known("score", options.score, {**FORMS, **SCORES})
        if "score" in given and not uses_estimator(row) and options.score not in SCORES:
            raise SettingError(
                f"method.score={options.score!r} is not allowed with method.name={row.name!r}, which estimates no "
                f"curvature; allowed: {', '.join(SCORES)}, or a dotted path to a score of your own"
            )
    _known("estimator", options.estimator, ESTIMATORS)
    _known("normalization", options.normalization, dict.fromkeys(NORMALIZATIONS))
    for option, needed, wanted in (
        ("fill_gamma", "fill", "damped"),
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
    if "curvature_scale" in given and _ranks_by_curvature_alone(options):
        raise SettingError(
            f"method.curvature_scale={options.curvature_scale!r} has no effect with method.score={options.score!r} "
            f"and method.estimator={options.estimator!r}, which rank by curvature alone"
        )
    if options.mask == "coverage" and row.mask is MASKS["coverage"] and not uses_estimator(row):
        raise SettingError(
            f"method.mask='coverage' is not allowed with method.name={row.name!r}, which estimates no curvature"
            f"{f' for method.score={options.score!r}' if options.score in SCORES else ''}; "
            f"allowed: {', '.join(name for name in MASKS if name != 'coverage')}"
        )
    if row.mask is MASKS["coverage"]:
        own_score = ("score",) if plugins.is_dotted(options.score) else ()
        for option in ("refresh_rounds", "hysteresis", "unseen", *own_score):
            if option in given:
                raise SettingError(
                    f"method.{option}={given[option]!r} has no effect with method.mask='coverage', which reads the "
                    "estimates of each round and no ranking"
                )
    if given.get("silent_dormant") is False and options.silent_after:
        raise SettingError(
            f"method.silent_dormant=False has no effect with method.silent_after={options.silent_after}, which "
            "silences channels that were never trained, too; allowed: with method.silent_after=0"
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


def _ranks_by_curvature_alone(options: MethodOptions) -> bool:
    """Whether a factor of all curvatures changes nothing: neither the order of scores nor estimates that are kept."""
    reports_sums = ESTIMATORS[options.estimator].clients_report_sums
    return reports_sums and options.score in FORMS and FORMS[options.score].num_sums == 1


def _check_optimizer(row: Method, local: LocalTraining) -> None:
    """Refuse rules that read gradients from displacements where those are not of SGD, or none at a rate of zero."""
    readers = []
    if uses_estimator(row) and ESTIMATORS[row.options.estimator].needs_plain_sgd:
        readers.append((f"method.estimator={row.options.estimator!r}", ", or method.estimator='fisher'"))
    if row.objective.needs_plain_sgd:
        readers.append((f"method.objective={row.options.objective!r}", ""))
    lowest = min(local.learning_rate_in(round) for round in (1, local.schedule.rounds))
    for given, otherwise in readers:
        if local.optimizer != "sgd":
            raise SettingError(
                f"{given} is not allowed with training.optimizer={local.optimizer!r}; allowed: "
                f"training.optimizer='sgd'{otherwise}"
            )
        if local.nesterov:
            raise SettingError(f"{given} is not allowed with training.nesterov=true; allowed: false{otherwise}")
        if lowest < SMALLEST_RATE:
            raise SettingError(
                f"{given} is not allowed with a learning rate that falls to {lowest:.3g}: it divides by the rate; "
                f"allowed: {SMALLEST_RATE:.3g} or more in every round{otherwise}"
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
        empty = view.plan.emptied(mask.kept) if len(mask.kept) == view.plan.num_units else ["?"]
        if empty:
            raise ValueError(f"the mask rule of {method.name!r} leaves no unit in group {empty[0]!r}")
    return masks


def cost_masks(method: Method, view: RoundView) -> CohortMasks:
    """Return masks that cost what those of a cohort will cost, before anything is learned."""
    if method.cost_mask is not None:
        return CohortMasks.of(method.cost_mask(view, first_channels(view.plan)))
    return CohortMasks.of(keep_top_for_cohort(view.plan, first_channels(view.plan), view.keep_ratios))


def masks_of_width(method: Method, view: RoundView, scores: Scores) -> CohortMasks:
    """Return the masks by which the global model is cut to the widths of a view, to be scored."""
    if method.width_mask is not None:
        method = replace(method, mask=method.width_mask)
    return choose_masks(method, view, scores)


def extra(method: Method, view: RoundView) -> Params:
    """Return the tensors that are sent to all clients beside the parameters."""
    rules = [rule for rule in (method.objective.extra, method.extra) if rule is not None]
    return {key: value for rule in rules for key, value in rule(view).items()}


def served(method: Method, plan: ChannelPlan, params: Params, memory: Params) -> Params:
    """Return the global model as it is scored and served: a mask may hold, and channels be silent.

    The weights that read a channel that was never trained, or not for some rounds, are zero; this costs no bytes.
    """
    if method.serve is not None:
        params = method.serve(plan, params, memory)
    if not _has_silent_channels(method.options) or "trained" not in memory:
        return params
    silent = dict(params)
    dormant = ~memory["trained"].numpy()
    if method.options.silent_after:
        last = memory["last_trained"].numpy()
        dormant |= last <= last.max() - method.options.silent_after
    for group, slot in plan.slots():
        if slot.role == "consumer":
            indices = torch.from_numpy(slot.indices[dormant[plan.units[group.name]]].ravel())
            silent[slot.key] = silent[slot.key].index_fill(slot.dim, indices, 0)
    return silent


def _has_silent_channels(options: MethodOptions) -> bool:
    return options.silent_dormant or options.silent_after > 0


def served_at(method: Method, params: Params, memory: Params, width: float) -> Params:
    """Return the parameters from which the submodel of a width is cut to be scored, from those that are served."""
    return params if method.serve_width is None else method.serve_width(params, memory, width)


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
    if method.options.hysteresis or _has_silent_channels(method.options):
        memory = remember_kept(memory, report)
    for rule in (method.objective.after_round, method.after_round, LEARNED.get(method.options.score)):
        if rule is not None:
            params, memory = rule(params, memory, report)
    return params, memory


def remember_kept(memory: Params, report: CohortReport) -> Params:
    """Store the share of the cohort that kept each channel, which were ever trained, and in which round at last."""
    kept = report.masks.kept
    trained = torch.from_numpy(kept.any(axis=0))
    last = memory.get("last_trained", torch.zeros(len(trained), dtype=torch.int64))
    return {
        **memory,
        "last_trained": torch.where(trained, report.view.round, last),
        "kept_share": torch.from_numpy(kept.mean(axis=0)),
        "trained": trained | memory.get("trained", torch.zeros_like(trained)),
    }


def update_bytes(method: Method, costs: CostTable, mask: Mask) -> int:
    """Return the bytes of a client's update: its buffers and trained parameters, compressed where updates are."""
    compression = method.rules.compression
    if compression is None:
        return costs.of(mask).model_bytes - costs.pruned_bytes(mask) - costs.frozen_bytes(mask)
    return costs.buffer_bytes(mask) + compression.upload_bytes(costs.sent_entries(mask))


def remembered_bytes(method: Method, costs: CostTable) -> int:
    """Return the bytes of memory that a client needs for the residual of its compression.

    It is that of all trained parameters: entries outside today's mask wait for a mask that keeps them.
    """
    return VALUE_BYTES * costs.trained_entries if method.rules.remembers_updates else 0


def score_bytes(method: Method, mask: Mask) -> int:
    """Return the bytes of the channel sums a client uploads for the ranking, 4 per number."""
    if not uses_estimator(method) or not ESTIMATORS[method.options.estimator].clients_report_sums:
        return 0
    return 4 * form_of(method.options.score).num_sums * int(mask.kept.sum())
