"""The server's estimates from its clients' reports, entry by entry in plain Python dictionaries."""

import math

import numpy as np
import torch

from raysim.core.tensors import Params
from raysim.pruning.plan import ChannelPlan
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import ServerState
from tests.methods.slow_rounds import (
    Kept,
    aggregate,
    batches,
    held_by,
    members,
    num_steps,
    own_filter,
    rate,
    sizes,
    train,
)
from tests.planned import plan_round

Sums = dict[str, list[float]]
FORMS = {  # how a channel's sums of g w (of |g w| in `robust`) and of h w^2 make its score
    "printed": lambda g, h: g + h,
    "exact": lambda g, h: -g + h / 2,
    "robust": lambda g, h: g + h / 2,
    "curvature": lambda g, h: h,
    "channel": lambda g, h: abs(g) + h / 2,
}


def moments(steps: list[Params], rows: list[int]) -> tuple[Params, Params]:
    """Mean gradient of a client's steps, and mean squared gradient times the rows that it is the mean of."""
    mean = {key: sum(step[key].double() for step in steps) / len(steps) for key in steps[0]}
    squares = {
        key: sum(n * step[key].double() ** 2 for n, step in zip(rows, steps, strict=True)) / len(steps)
        for key in steps[0]
    }
    return mean, squares


class Fisher:
    """A client's mean minibatch gradient and mean square, or what is given, as sums per channel at the start."""

    def __init__(self, form: str, consumers: bool, decay: float, batch: int = 5, scale: float | None = None) -> None:
        self.form, self.consumers, self.decay, self.mean = form, consumers, decay, {}
        self.batch, self.scale = batch, batch if scale is None else scale

    def observe(self, plan: ChannelPlan, reports: list) -> None:
        seen: dict[tuple[str, int], list[tuple[int, float, float, float]]] = {}
        for client, start, _after, held, kept, steps in reports:
            if isinstance(steps, tuple):
                gradient, square = steps
            else:
                rows = [len(batch) for batch in batches(np.arange(client.n), self.batch)]
                gradient, square = moments(steps, rows * (len(steps) // len(rows)))
                square = {key: value * self.scale / self.batch for key, value in square.items()}
            products = {key: gradient[key] * start[key].double() for key in start}
            if self.form == "robust":
                products = {key: value.abs() for key, value in products.items()}
            first = own_filter(plan, products, self.consumers)
            second = own_filter(plan, {key: square[key] * start[key].double() ** 2 for key in start}, self.consumers)
            number = own_filter(plan, {key: held[key].expand(start[key].shape) for key in start}, self.consumers)
            for group, units in kept.items():
                for unit in units:
                    values = (client.n, first[group][unit], second[group][unit], number[group][unit])
                    seen.setdefault((group, unit), []).append(values)
        whole = own_filter(plan, {key: torch.ones(shape) for key, shape in plan.shapes.items()}, self.consumers)
        for (group, unit), values in seen.items():
            entries = sum(n * number for n, _, _, number in values)
            now = [
                whole[group][unit] * sum(n * each for n, each in pairs) / entries
                for pairs in ([(n, g) for n, g, _, _ in values], [(n, h) for n, _, h, _ in values])
            ]
            old = self.mean.get((group, unit))
            self.mean[group, unit] = (
                now if old is None else [self.decay * a + (1 - self.decay) * b for a, b in zip(old, now, strict=True)]
            )

    def scores(self, plan: ChannelPlan, params: Params) -> Sums | None:
        del params
        if not self.mean:
            return None
        return {
            g: [FORMS[self.form](*self.mean[g, unit]) if (g, unit) in self.mean else math.inf for unit in range(size)]
            for g, size in sizes(plan).items()
        }


class Entrywise:
    """Pseudo-gradients of the clients' displacements; curvature from their squares or from two rounds."""

    def __init__(self, kind: str, form: str, consumers: bool, decay: float, scenario: Scenario, scale: float) -> None:
        self.kind, self.form, self.consumers, self.decay, self.scale = kind, form, consumers, decay, scale
        self.scenario, self.round = scenario, 0
        self.g, self.h, self.last, self.known = {}, {}, {}, set()

    def observe(self, plan: ChannelPlan, reports: list) -> None:
        self.round += 1
        mu, now, squares, weight, before = self.scenario.workload.local.momentum, {}, {}, {}, {}
        for client, start, after, held, _kept, _steps in reports:
            n = num_steps(self.scenario, client.n)
            rows = client.n / num_steps(self.scenario, client.n, epochs=1) / self.scenario.workload.local.batch_size
            effective = (n - mu * (1 - mu**n) / (1 - mu)) / (1 - mu)
            for key in after:
                pseudo = (start[key].double() - after[key].double()) / (rate(self.scenario, self.round) * effective)
                for place in torch.nonzero(held[key].flatten()).flatten().tolist():
                    entry, value = (key, place), float(pseudo.flatten()[place])
                    now[entry] = now.get(entry, 0) + client.n * value
                    squares[entry] = squares.get(entry, 0) + client.n * rows * value**2
                    weight[entry] = weight.get(entry, 0) + client.n
                    before[entry] = float(start[key].flatten()[place])
        for entry, total in weight.items():
            gradient = now[entry] / total
            self._move(self.g, entry, gradient)
            if self.kind == "variation" or entry in self.last:
                self.known.add(entry)
            if self.kind == "variation":
                self._move(self.h, entry, self.scale * squares[entry] / total)
            elif entry in self.last and abs(before[entry] - self.last[entry][1]) >= 1e-8:
                slope = (gradient - self.last[entry][0]) / (before[entry] - self.last[entry][1])
                self._move(self.h, entry, min(max(slope, 0.0), self.scale))
            self.last[entry] = (gradient, before[entry])

    def _move(self, means: dict, entry: tuple[str, int], value: float) -> None:
        means[entry] = self.decay * means[entry] + (1 - self.decay) * value if entry in means else value

    def scores(self, plan: ChannelPlan, params: Params) -> Sums | None:
        if not self.h:
            return None
        tables = [
            {key: torch.zeros(value.shape, dtype=torch.float64) for key, value in params.items()} for _ in "ghGH"
        ]
        g, h, g_known, h_known = tables
        for key, tensor in params.items():
            for place, w in enumerate(tensor.flatten().tolist()):
                product = self.g.get((key, place), 0.0) * w
                g[key].view(-1)[place] = abs(product) if self.form == "robust" else product
                h[key].view(-1)[place] = self.h.get((key, place), 0.0) * w**2
                g_known[key].view(-1)[place] = (key, place) in self.g
                h_known[key].view(-1)[place] = (key, place) in self.known
        first, second, n_first, n_second = (own_filter(plan, table, self.consumers) for table in tables)
        whole = own_filter(plan, {key: torch.ones_like(value) for key, value in params.items()}, self.consumers)
        return {
            group: [
                FORMS[self.form](
                    first[group][unit] / n_first[group][unit] * whole[group][unit],
                    second[group][unit] / n_second[group][unit] * whole[group][unit],
                )
                if n_first[group][unit] and n_second[group][unit]
                else math.inf
                for unit in range(size)
            ]
            for group, size in sizes(plan).items()
        }


def random_masks(scenario: Scenario, params: Params, round: int) -> list[Kept]:
    """The draws of a warm-up round."""
    plan = scenario.workload.plan
    drawn = plan_round(scenario, ServerState(round - 1, params)).masks
    return [{g: np.flatnonzero(mask.kept[plan.units[g]]).tolist() for g in sizes(plan)} for mask in drawn]


def trained_by(scenario: Scenario, params: Params, round: int, kept: list[Kept], fill: str, gamma: float = 0.5):
    """One round on given submodels: the new parameters, and what each client could report."""
    plan, after, held, reports = scenario.workload.plan, [], [], []
    cohort = members(scenario, round)
    for client, own in zip(cohort, kept, strict=True):
        mask, steps = held_by(plan, own, params), []
        trained, _losses = train(scenario, params, client.id, round, mask, observe=steps.append)
        after.append(trained)
        held.append(mask)
        start = {key: value * mask[key] for key, value in params.items()}
        reports.append((client, start, trained, mask, own, steps))
    return aggregate(fill, params, [c.n for c in cohort], after, held, gamma), reports
