"""NeFL (arXiv 2308.07761): submodels of fewer blocks and channels, each with step sizes and norms of its own."""

from collections.abc import Mapping

import torch
from torch import nn

from raysim.client.hooks import LocalHooks, Report
from raysim.client.view import ClientView
from raysim.core.tensors import Params
from raysim.methods.method import CohortReport, RoundView
from raysim.methods.options import MethodOptions
from raysim.models.steps import STEP
from raysim.pruning import masks
from raysim.pruning.groups import ChannelGroup
from raysim.pruning.masks import Mask, Scores
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.significance import first_channels

SCALINGS = {"both": (0.5, 1.0), "width": (1.0, 0.0), "depth": (0.0, 2.0)}
"""By name, the exponents by which a keep ratio r becomes shares of channels and of blocks.

A submodel of shares w and d has about w^2 d of the parameters: r^2, as where other methods cut channels only.
"""
OWN = "own"
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def nested_submodels(view: RoundView, scores: Scores) -> list[Mask]:
    """Keep the first channels of each layer and the first blocks of each stage."""
    return masks.shared_by_ratio(view.keep_ratios, lambda ratio: _nested(view.plan, ratio, view.options))


def _nested(plan: ChannelPlan, keep_ratio: float, options: MethodOptions) -> Mask:
    width, depth = (keep_ratio**power for power in SCALINGS[options["scaling"]])
    kept = masks.keep_top(plan, first_channels(plan), width).kept.copy()
    for stage in stages(plan):
        for block in stage[masks.num_kept(len(stage), depth) :]:
            kept[plan.units[block.name]] = False
    return Mask(kept)


def stages(plan: ChannelPlan) -> list[list[ChannelGroup]]:
    """Return the blocks that can be dropped, those of equal shapes after one another together."""
    found: list[list[ChannelGroup]] = []
    shapes: object = None
    for block in (group for group in plan.groups if group.kind == "block"):
        own = [plan.shapes[slot.key] for slot in block.slots]
        if own != shapes:
            found.append([])
        found[-1].append(block)
        shapes = own
    return found


def with_own_parameters(view: ClientView, options: MethodOptions) -> LocalHooks:
    """Train with the norms and step sizes of the client's submodel, and report how they change.

    They replace those of the whole model, so that as many bytes travel.
    """
    name = name_of(view.assignment.budget)
    keys, own = inconsistent(view.model), view.extra(name)
    found = view.model.state_dict()
    for key in keys & own.keys():
        found[key].copy_(own[key])
        view.start[key] = own[key].clone()

    def read(update: Params) -> Report:
        return Report(sums={name: ({key: update[key] for key in sorted(keys)}, len(view.targets))})

    return LocalHooks(received=(read,)) if keys else LocalHooks()


def inconsistent(model: nn.Module) -> set[str]:
    """Return the keys of norms and of step sizes, which differ between submodels; counts are left out."""
    named = [(name, module) for name, module in model.named_modules() if isinstance(module, NORMS)]
    keys = {f"{name}.{key}".lstrip(".") for name, module in named for key in module.state_dict()}
    steps = {key for key, _ in model.named_parameters() if key.rpartition(".")[2] == STEP}
    return {key for key in keys | steps if model.state_dict()[key].is_floating_point()}


def name_of(keep_ratio: float) -> str:
    """Return the name of the parameters of the submodel of a keep ratio.

    >>> name_of(0.25)
    'own 0.25'
    """
    return f"{OWN} {keep_ratio:.9g}"


def own_parameters(view: RoundView) -> Params:
    """Return the parameters of all submodels, which are sent beside those of the whole model."""
    return {key: value for key, value in view.memory.items() if _is_own(key)}


def _is_own(key: str) -> bool:
    return key.startswith(f"{OWN} ")


def average_own(params: Params, memory: Params, report: CohortReport) -> tuple[Params, Params]:
    """Average norms and step sizes among the clients of equal submodels; the whole model has those of the widest.

    Source: NeFL, algorithm 1: FedAvg for inconsistent parameters, nested averaging for the others.
    """
    updated, view = dict(memory), report.view
    for ratio in sorted(set(view.budgets.tolist())):
        name = name_of(ratio)
        if name not in report.contribution.sums:
            continue
        total, rows = report.contribution.sums[name], int(view.examples[view.budgets == ratio].sum())
        for key in total.tensors:
            before = memory.get(f"{name}/{key}", view.params[key])
            updated[f"{name}/{key}"] = (before.double() + total.value(key) / rows).to(before.dtype)
    return {**params, **_of_widest(updated)}, updated


def _of_widest(memory: Mapping[str, torch.Tensor]) -> Params:
    names = {key.partition("/")[0] for key in memory if _is_own(key)}
    if not names:
        return {}
    return parameters_of(memory, max(float(name.removeprefix(f"{OWN} ")) for name in names))


def parameters_of(memory: Mapping[str, torch.Tensor], keep_ratio: float) -> Params:
    """Return the norms and step sizes of the submodel of a keep ratio; empty if it has not been trained."""
    prefix = f"{name_of(keep_ratio)}/"
    return {key.removeprefix(prefix): value for key, value in memory.items() if key.startswith(prefix)}


def serve_width(params: Params, memory: Params, width: float) -> Params:
    """Return the whole model with the norms and step sizes of one of its submodels."""
    return {**params, **parameters_of(memory, width)}
