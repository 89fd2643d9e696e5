"""Local objectives: what clients minimise beside the loss; each works with every method."""

from dataclasses import replace

import torch

from raysim.client.hooks import GradientMoments, LocalHooks, Report
from raysim.client.view import ClientView
from raysim.clock.timing import CohortLoad
from raysim.core.tensors import Params
from raysim.methods.method import CohortReport, Objective, RoundView
from raysim.methods.options import MethodOptions
from raysim.pruning import elements, submodel
from raysim.pruning.masks import CohortMasks


def proximal(view: ClientView, options: MethodOptions) -> LocalHooks:
    """Add mu (w - w_t) to the gradient: the proximal term mu/2 |w - w_t|^2 (FedProx, arXiv 1812.06127, eq 2)."""
    parameters = [parameter.data for parameter in view.model.parameters() if parameter.requires_grad]
    start = [view.start[name] for name in view.trainable]

    def correct(gradients: list[torch.Tensor]) -> list[torch.Tensor]:
        drift = torch._foreach_sub(parameters, start)
        return list(torch._foreach_add(gradients, drift, alpha=options.proximal_mu))

    return LocalHooks(correct=(correct,))


def control_variates(view: ClientView, options: MethodOptions) -> LocalHooks:
    """Correct each gradient by c - c_k on the submodel's coordinates (SCAFFOLD, arXiv 1910.06378, eq 3 and 4).

    The client's new variate is the mean of its own gradients over its steps, before correction, clipping and weight
    decay: for plain steps that is option II of the paper, c_k - c + (w_t - w_k) / (rate n).
    """
    server, own = view.extra("variate"), view.memory("variate")
    zeros = {name: torch.zeros_like(view.start[name]) for name in view.trainable}
    server, own = zeros | server, zeros | own
    shift, moments = [server[name] - own[name] for name in view.trainable], GradientMoments()

    def correct(gradients: list[torch.Tensor]) -> list[torch.Tensor]:
        return list(torch._foreach_add(gradients, shift))

    def finish() -> Report:
        mean, _ = moments.means(view.model)
        change = elements.apply(view.elements, {name: mean[name] - own[name] for name in view.trainable})
        new = {name: own[name] + change[name] for name in view.trainable}
        return Report(sums={"variate": (change, len(view.targets))}, memory=_in_full(view, new))

    return LocalHooks(observe=(moments,), correct=(correct,), finish=(finish,))


def _in_full(view: ClientView, variate: Params) -> Params:
    old = {
        name: view.assignment.memory.get(f"variate/{name}", torch.zeros_like(view.broadcast.params[name]))
        for name in variate
    }
    full = submodel.reconstruct(variate, {key: dims for key, dims in view.cut.items() if key in variate}, old)
    return {f"variate/{name}": value for name, value in full.items()}


def server_variate(view: RoundView) -> Params:
    """Return the server's variate c, which is sent beside the parameters."""
    return {
        f"variate/{key}": view.memory[f"variate/{key}"].to(value.dtype)
        for key, value in view.params.items()
        if f"variate/{key}" in view.memory
    }


def update_variate(params: Params, memory: Params, report: CohortReport) -> tuple[Params, Params]:
    """Move c by the clients' changes (SCAFFOLD, eq 5), each weighted with its share of all registered rows.

    This keeps c the mean of all clients' variates under the weights of the global objective; with equal weights
    the optimum of that objective would not be a fixed point.
    """
    change, updated = report.contribution.sums["variate"], dict(memory)
    for key in change.tensors:
        old = memory.get(f"variate/{key}", torch.zeros_like(params[key], dtype=torch.float64))
        updated[f"variate/{key}"] = old + change.value(key) / report.view.num_examples
    return params, updated


def doubled(view: RoundView, masks: CohortMasks, load: CohortLoad) -> CohortLoad:
    """Count the variates: as many bytes again as the submodel without its frozen parameters, both ways."""
    costs = view.costs
    own_bytes = masks.each(
        lambda mask: costs.of(mask).model_bytes - costs.pruned_bytes(mask) - costs.frozen_bytes(mask)
    )
    return replace(load, down_bytes=load.down_bytes + own_bytes, up_bytes=load.up_bytes + own_bytes)


OBJECTIVES: dict[str, Objective] = {
    "plain": Objective(),
    "proximal": Objective(hook=proximal),
    "scaffold": Objective(
        hook=control_variates,
        extra=server_variate,
        load=doubled,
        after_round=update_variate,
        needs_plain_sgd=True,
        sends_memory=True,
    ),
}
