"""PruneFL (arXiv 1909.12326): one shared mask, reconfigured for squared gradient per unit of round time."""

from dataclasses import replace
from functools import partial

import torch

from raysim.client.hooks import GradientMoments, LocalHooks, Report
from raysim.client.view import ClientView
from raysim.clock.timing import CohortLoad
from raysim.core import seeding
from raysim.core.tensors import Params
from raysim.methods import mask_rules
from raysim.methods.method import CohortReport, RoundView, Trainer
from raysim.methods.options import MethodOptions
from raysim.pruning import elements
from raysim.pruning.masks import CohortMasks
from raysim.server.updates import ClientUpdates

CANDIDATE_SHARE, HALVING_ROUNDS = 0.3, 10_000
STABLE_CHANGE, STABLE_TIMES = 0.1, 5


def initial_pruning(view: RoundView, train: Trainer) -> tuple[Params, Params]:
    """Prune on one client until the density changes by at most 10 % five times in a row (section 3.1)."""
    client = seeding.generator(view.seed, "initial pruning").choice(view.clients, 1)
    hook, params, stable = partial(report_squared_gradients, options=view.options), view.params, 0
    kept = {key: torch.ones_like(value, dtype=torch.bool) for key, value in _weights(view).items()}
    for step in range(view.options["initial_rounds"]):
        contribution, params = train(
            client, mask_rules.single_entries(view.plan, kept), 1, (hook,), params, travels=step == 0
        )
        before, kept = kept, reconfigured(view, params, kept, _squares(contribution))
        params = elements.apply(kept, params)
        is_small = abs(_count(kept) - _count(before)) <= STABLE_CHANGE * _count(before)
        stable = stable + 1 if is_small else 0
        if stable >= STABLE_TIMES:
            break
    return params, mask_rules.remember(view.memory, kept)


def report_squared_gradients(view: ClientView, options: MethodOptions) -> LocalHooks:
    """Report the squares of the minibatch gradients, pruned entries included, added up over the steps."""
    moments = GradientMoments()

    def finish() -> Report:
        _, squares = moments.means(view.model)
        steps = {key: value * view.num_steps for key, value in squares.items()}
        return Report(sums={"squares": (steps, 1.0)})

    return LocalHooks(observe=(moments,), finish=(finish,))


def reconfigure(params: Params, memory: Params, report: CohortReport) -> tuple[Params, Params]:
    """Add up squared gradients; every `reconfigure_rounds` choose the mask anew by them (algorithm 1)."""
    view, memory = report.view, mask_rules.remember_holders(memory, report)
    squares = {
        key: value + memory.get(f"squares/{key}", torch.zeros_like(value))
        for key, value in _squares(report.contribution).items()
    }
    if view.round % view.options["reconfigure_rounds"]:
        return params, {**memory, **{f"squares/{key}": value for key, value in squares.items()}}
    kept = reconfigured(view, params, mask_rules.current(view.plan, memory), squares)
    memory = {**memory, **{f"squares/{key}": torch.zeros_like(value) for key, value in squares.items()}}
    return elements.apply(kept, params), mask_rules.remember(memory, kept)


def reconfigured(view: RoundView, params: Params, kept: Params, squares: Params) -> Params:
    """Return the mask that maximises squared gradient per round time, among small and pruned weights.

    Source: PruneFL, theorem 1 and algorithm 2. Z_i / t_i is taken in descending order as long as it is above
    (sum of kept Z) / (constant + sum of kept t); biases and the like are always kept.
    """
    share = CANDIDATE_SHARE * 0.5 ** (view.round / HALVING_ROUNDS)
    constant, seconds = round_seconds(view)
    stays = {key: held & ~_smallest(params[key].abs(), held, share) for key, held in kept.items()}
    gain = torch.cat([squares[key].flatten() for key in kept])
    time = torch.cat([torch.full((held.numel(),), seconds[key], dtype=torch.float64) for key, held in kept.items()])
    chosen = torch.cat([held.flatten() for held in stays.values()])
    free = torch.nonzero(~chosen).flatten()
    order = free[torch.sort((gain / time)[free], descending=True, stable=True).indices]
    always = sum(float(value.sum()) for key, value in squares.items() if key not in kept)
    gains = always + float(gain[chosen].sum()) + torch.cumsum(gain[order], 0) - gain[order]
    times = constant + float(time[chosen].sum()) + torch.cumsum(time[order], 0) - time[order]
    worth = (gain / time)[order] > gains / times
    chosen[order[: int(worth.long().cumprod(0).sum())]] = True
    pieces = torch.split(chosen, [held.numel() for held in kept.values()])
    return {key: piece.view(held.shape) for (key, held), piece in zip(kept.items(), pieces, strict=True)}


def round_seconds(view: RoundView) -> tuple[float, dict[str, float]]:
    """Return a round's constant seconds, and the seconds each weight of a tensor adds, on the mean device.

    Updates take the seconds of their compressed bytes. Frozen parameters do not count: they travel once.
    """
    devices = view.devices
    examples = float(view.examples.mean()) * view.local.epochs

    def mean(name: str) -> float:
        return float((1 / devices.column(name)).mean())

    steps = view.local.num_steps(round(float(view.examples.mean())))
    overhead = 2 * devices.column("latency_s") + steps * devices.column("step_overhead_s")
    down_s, up_s, compute = mean("down_bytes_per_s"), mean("up_bytes_per_s"), examples * mean("flops_per_s")
    received, sent = view.costs.entry_bytes, {key: _sent_bytes(view, key) for key in _weights(view)}
    dense, others_up = view.costs.dense, float(view.update_bytes(mask_rules.single_entries(view.plan, {})))
    others_down = dense.model_bytes - dense.frozen_bytes
    for key, weight in _weights(view).items():
        others_down -= weight.numel() * received[key]
        others_up -= weight.numel() * sent[key]
    constant = float(overhead.mean()) + others_down * down_s + others_up * up_s
    flops = view.costs.weight_flops
    return constant, {key: received[key] * down_s + sent[key] * up_s + compute * flops[key] for key in sent}


def _sent_bytes(view: RoundView, key: str) -> float:
    """Return the bytes that a weight of a tensor adds to an update: the mean over half of the tensor.

    It is not the difference of one weight, since a compression rounds what it counts.
    """
    size = view.params[key].numel()
    half = (torch.arange(size) < size // 2).view(view.params[key].shape)
    saved = view.update_bytes(mask_rules.single_entries(view.plan, {})) - view.update_bytes(
        mask_rules.single_entries(view.plan, {key: half})
    )
    return max(0.0, saved / (size - size // 2))


def add_reconfiguration_bytes(view: RoundView, chosen: CohortMasks, load: CohortLoad) -> CohortLoad:
    """Count the squared gradients that clients upload, pruned entries included, and only masks that they do not hold.

    If all clients take part in every round, they add them up and send them when the mask is chosen anew; otherwise
    they send them in every round, since other clients may take part then.
    """
    load = mask_rules.without_known_masks(view, chosen, load)
    everybody = len(view.clients) == view.num_clients
    if everybody and view.round % view.options["reconfigure_rounds"]:
        return load
    return replace(load, up_bytes=load.up_bytes + 4 * view.costs.trained_entries)


def _smallest(magnitude: torch.Tensor, held: torch.Tensor, share: float) -> torch.Tensor:
    """Return which of the held entries are among the given share of lowest magnitude."""
    count = int(share * int(held.sum()))
    ranked = {"entry": torch.where(held, -magnitude.double(), -torch.inf)}
    return elements.keep_largest(ranked, count)["entry"]


def _weights(view: RoundView) -> Params:
    return {key: view.params[key] for key in view.costs.weight_flops}


def _squares(contribution: ClientUpdates) -> Params:
    total = contribution.sums["squares"]
    return {key: total.value(key) for key in total.tensors}


def _count(kept: Params) -> int:
    return sum(int(held.sum()) for held in kept.values())
