"""The server's estimates from its clients' reports, entry by entry in plain Python dictionaries."""

import numpy as np
import torch

from raysim.core.tensors import Params
from raysim.pruning.plan import ChannelPlan
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import ServerState
from tests.methods.slow_rounds import Kept, aggregate, held_by, members, num_steps, own_filter, rate, sizes, train
from tests.planned import plan_round

Sums = dict[str, list[float]]
FORMS = {  # how g w and h w^2 of an entry make its score
    "printed": lambda g, h: g + h,
    "exact": lambda g, h: -g + h / 2,
    "robust": lambda g, h: abs(g) + h / 2,
    "curvature": lambda g, h: h,
}


def moments(steps: list[Params]) -> tuple[Params, Params]:
    """Mean gradient and mean squared gradient of a client's steps."""
    mean = {key: sum(step[key].double() for step in steps) / len(steps) for key in steps[0]}
    return mean, {key: sum(step[key].double() ** 2 for step in steps) / len(steps) for key in steps[0]}


class Fisher:
    """A client's mean minibatch gradient and mean square, or what is given, as sums per channel at the start."""

    def __init__(self, form: str, consumers: bool, decay: float) -> None:
        self.form, self.consumers, self.decay, self.mean = form, consumers, decay, {}

    def observe(self, plan: ChannelPlan, reports: list) -> None:
        seen: dict[tuple[str, int], list[tuple[int, float]]] = {}
        for client, start, _after, held, kept, steps in reports:
            del held
            gradient, square = steps if isinstance(steps, tuple) else moments(steps)
            products = {key: gradient[key] * start[key].double() for key in start}
            if self.form == "robust":
                products = {key: value.abs() for key, value in products.items()}
            first = own_filter(plan, products, self.consumers)
            second = own_filter(plan, {key: square[key] * start[key].double() ** 2 for key in start}, self.consumers)
            for group, units in kept.items():
                for unit in units:
                    value = FORMS[self.form](first[group][unit], second[group][unit])
                    seen.setdefault((group, unit), []).append((client.n, value))
        for channel, values in seen.items():
            now = sum(n * value for n, value in values) / sum(n for n, _ in values)
            old = self.mean.get(channel)
            self.mean[channel] = now if old is None else self.decay * old + (1 - self.decay) * now

    def scores(self, plan: ChannelPlan, params: Params) -> Sums | None:
        del params
        if not self.mean:
            return None
        return {g: [self.mean.get((g, unit), 0.0) for unit in range(size)] for g, size in sizes(plan).items()}


class Entrywise:
    """Pseudo-gradients of the clients' displacements; curvature from their squares or from two rounds."""

    def __init__(self, kind: str, form: str, consumers: bool, decay: float, scenario: Scenario, scale: float) -> None:
        self.kind, self.form, self.consumers, self.decay, self.scale = kind, form, consumers, decay, scale
        self.scenario, self.round = scenario, 0
        self.g, self.h, self.last = {}, {}, {}

    def observe(self, plan: ChannelPlan, reports: list) -> None:
        self.round += 1
        mu, now, squares, weight, before = self.scenario.workload.local.momentum, {}, {}, {}, {}
        for client, start, after, held, _kept, _steps in reports:
            n = num_steps(self.scenario, client.n)
            effective = (n - mu * (1 - mu**n) / (1 - mu)) / (1 - mu)
            for key in after:
                pseudo = (start[key].double() - after[key].double()) / (rate(self.scenario, self.round) * effective)
                for place in torch.nonzero(held[key].flatten()).flatten().tolist():
                    entry, value = (key, place), float(pseudo.flatten()[place])
                    now[entry] = now.get(entry, 0) + client.n * value
                    squares[entry] = squares.get(entry, 0) + client.n * value**2
                    weight[entry] = weight.get(entry, 0) + client.n
                    before[entry] = float(start[key].flatten()[place])
        for entry, total in weight.items():
            gradient = now[entry] / total
            self._move(self.g, entry, gradient)
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
        values = {}
        for key, tensor in params.items():
            flat = tensor.flatten().tolist()
            of_entry = [
                FORMS[self.form](self.g.get((key, p), 0.0) * w, self.h.get((key, p), 0.0) * w**2)
                for p, w in enumerate(flat)
            ]
            values[key] = torch.tensor(of_entry, dtype=torch.float64).view(tensor.shape)
        return own_filter(plan, values, self.consumers)


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
