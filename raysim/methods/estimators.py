"""Estimators of gradient and curvature, from the clients' reports."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from raysim.client.hooks import GradientMoments, LocalHooks, Report
from raysim.client.training import effective_steps
from raysim.client.view import ClientView
from raysim.clock.timing import CohortLoad
from raysim.core.inputs import predict, take
from raysim.core.tensors import Params
from raysim.data.batches import batch_slices
from raysim.methods.method import CohortReport, LocalHook, RoundView
from raysim.methods.options import MethodOptions
from raysim.pruning.masks import CohortMasks
from raysim.pruning.significance import (
    Scores,
    form_of,
    gradient_and_curvature_sums,
    held_share,
    running_mean,
)
from raysim.server.fill import divide

HUTCHINSON_ROWS = 256
"""Most rows a client computes Hessian-vector products on."""


@dataclass(frozen=True, slots=True)
class Estimator:
    """An estimator: the clients' report, the update of running estimates, and each channel's sums of g w and h w^2.

    Attributes:
        hook: The client's report.
        update: Returns the memory after a round, from memory and report.
        sums: Returns the sums at the current weights, `(2, num_units)`, scaled to whole channels; NaN for channels
            of which nothing is known, since no client has held them yet.
        clients_report_sums: Whether clients upload numbers per channel.
        needs_plain_sgd: Whether displacements must be those of SGD.
        squares_mean_gradients: Whether h is the square of a gradient that is the mean of B rows, and so about B times
            smaller than the curvature: `curvature_scale` is then the batch size by default, else 1.
        load: Adds bytes and FLOPs beyond training and channel sums.
    """

    hook: LocalHook
    update: Callable[[Params, CohortReport], Params]
    sums: Callable[[RoundView], Scores]
    clients_report_sums: bool
    needs_plain_sgd: bool
    squares_mean_gradients: bool
    load: Callable[[RoundView, CohortMasks, CohortLoad], CohortLoad] | None = None


def report_moments(view: ClientView, options: MethodOptions) -> LocalHooks:
    """Report sums of g w and h w^2 per kept channel, h the mean squared minibatch gradient (empirical Fisher).

    The square of a minibatch with fewer rows than `batch_size`, or one more, counts in proportion to its rows.
    """
    moments = GradientMoments(_shares_of_batch(view))
    return LocalHooks(observe=(moments,), finish=(lambda: _sums_report(view, options, *moments.means(view.model)),))


def _shares_of_batch(view: ClientView) -> list[float]:
    """Return the rows of each minibatch of an epoch as a share of `batch_size`."""
    size = view.workload.local.batch_size
    return [(batch.stop - batch.start) / size for batch in batch_slices(len(view.targets), size)]


def report_hutchinson(view: ClientView, options: MethodOptions) -> LocalHooks:
    """Report the same sums with h = mean of v (H v) over Rademacher v, at the round's start weights.

    Source: Hutchinson (1990); the diagonal form of Bekas et al. (2007).
    """
    gradient, curvature = hutchinson(view, options.hutchinson_draws)
    return LocalHooks(finish=(lambda: _sums_report(view, options, gradient, curvature),))


def hutchinson(view: ClientView, draws: int) -> tuple[Params, Params]:
    """Return gradient and estimated diagonal of the Hessian on a client's first rows, in eval mode."""
    view.model.eval()
    parameters = [parameter for parameter in view.model.parameters() if parameter.requires_grad]
    rows = slice(0, HUTCHINSON_ROWS)
    loss = view.workload.task.minimised(predict(view.model, take(view.inputs, rows)), view.targets[rows])
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    diagonal = [torch.zeros_like(parameter) for parameter in parameters]
    for _ in range(draws):
        signs = [torch.randint(0, 2, parameter.shape).to(parameter) * 2 - 1 for parameter in parameters]
        products = torch.autograd.grad(gradients, parameters, signs, retain_graph=True, materialize_grads=True)
        for total, sign, product in zip(diagonal, signs, products, strict=True):
            total += sign * product / draws
    names = view.trainable
    first = {name: gradient.detach() for name, gradient in zip(names, gradients, strict=True)}
    return first, dict(zip(names, diagonal, strict=True))


def _sums_report(view: ClientView, options: MethodOptions, gradient: Params, curvature: Params) -> Report:
    """Report both sums and the share of each channel's entries that is held; the server could compute the share."""
    plan, form, consumers = view.workload.plan, form_of(options.score), options.include_consumers
    sums = gradient_and_curvature_sums(plan, form, view.start, gradient, curvature, view.cut, consumers)
    sums[1] *= options.curvature_scale
    if not np.isfinite(sums).all():
        raise OverflowError("the channel sums of its gradients are not finite")
    ones = {key: torch.ones((), dtype=torch.float64).expand(value.shape) for key, value in gradient.items()}
    share = held_share(plan, ones, view.cut, consumers)
    return Report(channel_sums=np.concatenate([sums, share[None]]))


def hutchinson_load(view: RoundView, masks: CohortMasks, load: CohortLoad) -> CohortLoad:
    """Count the Hessian-vector products: one backward through the gradient's graph costs about two steps."""
    rows = np.minimum(view.examples, HUTCHINSON_ROWS)
    per_row = masks.each(lambda mask: view.costs.of(mask).train_flops)
    return replace(load, train_flops=load.train_flops + rows * per_row * (1 + 2 * view.options.hutchinson_draws))


def report_gradients(view: ClientView, options: MethodOptions) -> LocalHooks:
    """Report n_k g_k and n_k g_k^2, g_k = -D_k / (rate a_n) the client's pseudo-gradient, its local variation.

    D_k is the update as the server receives it, compressed where updates are. Where minibatches have fewer rows than
    `batch_size` on average, or more, the square counts in proportion.
    """

    def read(update: Params) -> Report:
        steps = effective_steps(view.num_steps, view.workload.local.momentum)
        gradient = {name: -update[name] / (view.learning_rate * steps) for name in view.trainable}
        share_of_batch = float(np.mean(_shares_of_batch(view)))
        squared = {name: share_of_batch * value**2 for name, value in gradient.items()}
        examples = len(view.targets)
        return Report(sums={"gradient": (gradient, examples), "squared_gradient": (squared, examples)})

    return LocalHooks(received=(read,))


def update_fisher(memory: Params, report: CohortReport) -> Params:
    """Update running means of the channel sums that clients computed from their minibatch gradients.

    Sums over the holders, weighted with their example counts, are divided by the weighted shares of the channel's
    entries that they held: narrow clients hold fewer inputs, and their sums are smaller.
    """
    weights = report.masks.kept * report.view.examples[:, None].astype(np.float64)
    *sums, share = (report.contribution.channel_sums * weights[:, None]).sum(axis=0)
    observed, held = torch.from_numpy(np.stack([*sums])), torch.from_numpy(share)
    old = memory.get("channel_sums", torch.zeros_like(observed))
    seen = memory.get("seen", torch.zeros(len(share), dtype=torch.bool))
    decay = report.view.options.score_decay
    mean = running_mean(old, divide(observed, held), held > 0, seen, decay)
    return {**memory, "channel_sums": mean, "seen": seen | (held > 0)}


def fisher_sums(view: RoundView) -> Scores:
    """Return the running means, which already are sums per channel; NaN where no client has held the channel."""
    return np.where(view.memory["seen"].numpy(), view.memory["channel_sums"].numpy(), np.nan)


def update_variation(memory: Params, report: CohortReport) -> Params:
    """Update running means of g = sum p_k m_k g_k / c and h = scale x sum p_k m_k g_k^2 / c, entry by entry."""
    curvature = report.contribution.sums["squared_gradient"]
    scale = report.view.options.curvature_scale
    observed = {}
    for key in curvature.tensors:
        held = report.coverage[key] > 0
        observed[key] = (scale * divide(curvature.value(key), report.coverage[key]), held, held)
    return _update_estimates(memory, report, observed)


def update_secant(memory: Params, report: CohortReport) -> Params:
    """Update running means of g, and of h = scale x clip((g_t - g_s) / (w_t - w_s), 0, curvature_max).

    s is the last round in which a client held the entry; h keeps its value where the weight moved by less
    than 1e-8, and that value is known to be 0 if there was no other.
    """
    updated, observed = dict(memory), {}
    gradients, options = report.contribution.sums["gradient"], report.view.options
    for key in gradients.tensors:
        covered = (report.coverage[key] > 0).expand(report.view.params[key].shape)
        gradient = divide(gradients.value(key), report.coverage[key])
        weight = report.view.params[key].double()
        last_gradient = memory.get(f"last_gradient/{key}", torch.full_like(gradient, torch.nan))
        last_weight = memory.get(f"last_weight/{key}", weight)
        moved = weight - last_weight
        usable = covered & (moved.abs() >= 1e-8) & ~last_gradient.isnan()
        secant = torch.where(usable, (gradient - last_gradient) / torch.where(usable, moved, 1.0), 0.0)
        curvature = options.curvature_scale * secant.clamp(0, options.curvature_max)
        observed[key] = (curvature, usable, covered & ~last_gradient.isnan())
        updated[f"last_gradient/{key}"] = torch.where(covered, gradient, last_gradient)
        updated[f"last_weight/{key}"] = torch.where(covered, weight, last_weight)
    return _update_estimates(updated, report, observed)


def _update_estimates(
    memory: Params, report: CohortReport, curvature: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
) -> Params:
    """Update the running means of g where a client held an entry, and of h where it could be observed.

    Args:
        memory: The estimates so far.
        report: The round.
        curvature: Observations of h by key, where they are usable, and where h is known from now on.
    """
    updated, decay = dict(memory), report.view.options.score_decay
    gradients = report.contribution.sums["gradient"]
    for key, (value, usable, known) in curvature.items():
        covered = report.coverage[key] > 0
        gradient = divide(gradients.value(key), report.coverage[key])
        for name, observed, held in (("gradient", gradient, covered), ("curvature", value, usable)):
            seen = memory.get(f"{name}_seen/{key}", torch.zeros_like(held))
            old = memory.get(f"{name}/{key}", torch.zeros_like(observed))
            updated[f"{name}/{key}"] = running_mean(old, observed, held, seen, decay)
            updated[f"{name}_seen/{key}"] = seen | held
        updated[f"curvature_known/{key}"] = memory.get(f"curvature_known/{key}", torch.zeros_like(known)) | known
    return updated


def entrywise_sums(view: RoundView) -> Scores:
    """Return each channel's sums at the current weights, from estimates entry by entry.

    Entries of a channel of which nothing is known yet count as the mean of its others.
    """
    plan, form, consumers = view.plan, form_of(view.options.score), view.options.include_consumers
    gradient, curvature = estimates(view.memory, "gradient"), estimates(view.memory, "curvature")
    sums = gradient_and_curvature_sums(plan, form, view.params, gradient, curvature, consumers=consumers)
    for row, name in enumerate(("gradient_seen", "curvature_known")):
        known = {key: entries.expand(plan.shapes[key]) for key, entries in estimates(view.memory, name).items()}
        share = held_share(plan, known, consumers=consumers)
        sums[row] = np.where(share > 0, sums[row] / np.where(share > 0, share, 1), np.nan)
    return sums


def estimates(memory: Params, name: str) -> Params:
    """Return the estimates of a name in a method's memory, by state-dict key."""
    prefix = f"{name}/"
    return {key.removeprefix(prefix): value for key, value in memory.items() if key.startswith(prefix)}


def is_ready(memory: Params) -> bool:
    """Whether any curvature has been estimated yet; a secant needs two rounds."""
    return "channel_sums" in memory or any(bool(seen.any()) for seen in estimates(memory, "curvature_seen").values())


ESTIMATORS: dict[str, Estimator] = {
    "fisher": Estimator(report_moments, update_fisher, fisher_sums, True, False, True),
    "hutchinson": Estimator(report_hutchinson, update_fisher, fisher_sums, True, False, False, hutchinson_load),
    "variation": Estimator(report_gradients, update_variation, entrywise_sums, False, True, True),
    "secant": Estimator(report_gradients, update_secant, entrywise_sums, False, True, False),
}
