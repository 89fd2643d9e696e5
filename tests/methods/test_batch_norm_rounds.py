"""CA-HFP's and HeteroFL's rounds with BatchNorm against loops over entries, in NumPy and PyTorch's plain functions.

Of raysim only the settings, the rows of each client, the initial weights and the random draws are used: no plan, no
masks, no training loop, no sums. A submodel is a small network of its own, cut entry by entry.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from raysim.core import seeding
from raysim.executors.in_process import InProcessExecutor
from raysim.simulation.build import build_scenario
from raysim.simulation.round import run_round
from raysim.simulation.scenario import Scenario
from raysim.simulation.transition import initial_state
from tests.conftest import settings_of

FIRST, SECOND, CLASSES = 5, 6, 10
Weights = dict[str, torch.Tensor]
Channels = tuple[list[int], list[int]]
"""Kept channels of both convolutions."""

SMALL = (
    "model.name=tests.methods.test_batch_norm_rounds:conv_norm",
    "model.options={}",
    "population.clients=6",
    "selection.clients_per_round=3",
    "data.max_train_examples=75",
    "data.partition.alpha=0.5",
    "training.batch_size=5",
    "training.epochs=2",
    "training.momentum=0.8",
    "training.weight_decay=0.02",
    "training.clip_norm=1.5",
    "training.learning_rate=0.1",
    "training.schedule={name: exponential, factor: 0.9}",
    "evaluation.max_examples=20",
    "evaluation.client_share=0.0",
)


def conv_norm() -> nn.Module:
    """5 and 6 channels with BatchNorm on 8 x 8 digits, two poolings, 24 inputs of the classifier."""
    return nn.Sequential(
        nn.Conv2d(1, FIRST, 3, padding=1),
        nn.BatchNorm2d(FIRST),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(FIRST, SECOND, 3, padding=1, bias=False),
        nn.BatchNorm2d(SECOND),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * SECOND, CLASSES),
    )


TRAINED = (
    "0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "5.weight", "5.bias", "9.weight", "9.bias",
)  # fmt: skip
STATISTICS = ("1.running_mean", "1.running_var", "5.running_mean", "5.running_var")
OWN = {0: ("0.weight", "0.bias", "1.weight", "1.bias"), 1: ("4.weight", "5.weight", "5.bias")}
"""Tensors whose first dimension is the channels of either convolution."""


def places(kept: Channels) -> dict[str, list[tuple[int, ...]]]:
    """The entries of every tensor that a submodel holds, in the order of the submodel's own entries."""
    first, second = kept
    kernel = [(y, x) for y in range(3) for x in range(3)]
    held: dict[str, list[tuple[int, ...]]] = {
        "0.weight": [(a, 0, y, x) for a in first for y, x in kernel],
        "4.weight": [(b, a, y, x) for b in second for a in first for y, x in kernel],
        "9.weight": [(c, 4 * b + p) for c in range(CLASSES) for b in second for p in range(4)],
        "9.bias": [(c,) for c in range(CLASSES)],
    }
    for key in ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        held[key] = [(a,) for a in first]
    for key in ("5.weight", "5.bias", "5.running_mean", "5.running_var"):
        held[key] = [(b,) for b in second]
    return held


def cut(params: Weights, kept: Channels) -> Weights:
    """The submodel's tensors, copied entry by entry."""
    a, b = len(kept[0]), len(kept[1])
    shapes = {"0.weight": (a, 1, 3, 3), "4.weight": (b, a, 3, 3), "9.weight": (CLASSES, 4 * b)}
    small = {}
    for key, held in places(kept).items():
        values = torch.tensor([params[key][place].item() for place in held], dtype=torch.float32)
        small[key] = values.view(shapes.get(key, (len(held),)))
    return small


def normed(hidden: torch.Tensor, weights: Weights, layer: int, seen: list[torch.Tensor]) -> torch.Tensor:
    """BatchNorm on the statistics of the batch, which are kept aside."""
    mean, var = hidden.mean((0, 2, 3)), hidden.var((0, 2, 3), correction=0)
    seen += [mean.detach(), hidden.detach().var((0, 2, 3), correction=1)]
    scale, shift = weights[f"{layer}.weight"], weights[f"{layer}.bias"]
    centred = (hidden - mean[:, None, None]) / torch.sqrt(var + 1e-5)[:, None, None]
    return centred * scale[:, None, None] + shift[:, None, None]


def logits_of(weights: Weights, inputs: torch.Tensor, factor: float, seen: list[torch.Tensor]) -> torch.Tensor:
    hidden = factor * F.conv2d(inputs, weights["0.weight"], weights["0.bias"], padding=1)
    hidden = F.max_pool2d(normed(hidden, weights, 1, seen).relu(), 2)
    hidden = factor * F.conv2d(hidden, weights["4.weight"], padding=1)
    hidden = F.max_pool2d(normed(hidden, weights, 5, seen).relu(), 2)
    return hidden.flatten(1) @ weights["9.weight"].T + weights["9.bias"]


def batches(rows: list[int], size: int) -> list[list[int]]:
    """Rows in batches; a lonely last row joins the batch before."""
    cut = [rows[start : start + size] for start in range(0, len(rows), size)]
    if len(cut) > 1 and len(cut[-1]) == 1:
        cut[-2:] = [cut[-2] + cut[-1]]
    return cut


def train(
    scenario: Scenario, client: int, round: int, start: Weights, factor: float = 1.0, owned: list[int] | None = None
) -> tuple[Weights, list[tuple[int, Weights]]]:
    """SGD with momentum, clipping and weight decay, written out; also the gradient and rows of each step."""
    local, steps = scenario.workload.local, []
    weights = {key: value.clone() for key, value in start.items()}
    velocity: Weights = {}
    rate = 0.1 * 0.9 ** (round - 1)
    inputs, labels = scenario.workload.data.train_rows(scenario.workload.population.train[client])
    order = seeding.generator(scenario.workload.seed, "batches", round, client)
    for _ in range(local.epochs):
        for rows in batches(order.permutation(len(labels)).tolist(), local.batch_size):
            leaves = {key: weights[key].clone().requires_grad_() for key in TRAINED}
            seen: list[torch.Tensor] = []
            logits = logits_of({**weights, **leaves}, inputs[rows], factor, seen)
            if owned is not None:
                logits = logits * torch.tensor([float(label in owned) for label in range(CLASSES)])
            loss = -F.log_softmax(logits, 1)[torch.arange(len(rows)), labels[rows]].mean()
            loss.backward()
            gradients = {key: leaf.grad for key, leaf in leaves.items()}
            steps.append((len(rows), {key: gradient.clone() for key, gradient in gradients.items()}))
            norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))
            for key, gradient in gradients.items():
                clipped = gradient * min(1.0, local.clip_norm / (norm + 1e-6)) + local.weight_decay * weights[key]
                velocity[key] = clipped if key not in velocity else local.momentum * velocity[key] + clipped
                weights[key] = weights[key] - rate * velocity[key]
            for key, value in zip(STATISTICS, seen, strict=True):
                weights[key] = 0.9 * weights[key] + 0.1 * value
    return weights, steps


def count(size: int, keep: float) -> int:
    return max(1, math.ceil(keep * size - 1e-9))


def averaged(
    params: Weights,
    cohort: list[tuple[int, dict[str, list[tuple[int, ...]]], Weights]],
    divide_by_holders: bool,
    keys: tuple[str, ...],
) -> Weights:
    """Means over clients of (rows, held entries, trained submodel), entry by entry in double precision."""
    total = sum(n for n, _, _ in cohort)
    result = {key: value.clone() for key, value in params.items()}
    for key in keys:
        moved: dict[tuple[int, ...], float] = {}
        holders: dict[tuple[int, ...], int] = {}
        for n, held, trained in cohort:
            for place, value in zip(held[key], trained[key].flatten().tolist(), strict=True):
                moved[place] = moved.get(place, 0.0) + n * (value - params[key][place].item())
                holders[place] = holders.get(place, 0) + n
        for place, value in moved.items():
            by = holders[place] if divide_by_holders or key in STATISTICS else total
            result[key][place] = params[key][place].item() + value / by
    return result


def same(actual: Weights, expected: Weights, keys: tuple[str, ...]) -> None:
    for key in keys:
        torch.testing.assert_close(actual[key], expected[key], rtol=1e-5, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")


class Significance:
    """The server's running means of each channel's sums, from clients' mean gradients and squared gradients."""

    def __init__(self, form: str, scale: float, batch_size: int) -> None:
        self.form, self.scale, self.batch_size = form, scale, batch_size
        self.means: dict[tuple[int, int], tuple[float, float]] = {}

    def observe(self, cohort: list) -> None:
        """Sums of g w and h w^2 per entry that was held, times the entries of the whole channel."""
        totals: dict[tuple[int, int], list[float]] = {}
        for n, kept, start, steps in cohort:
            for group in (0, 1):
                for unit, channel in enumerate(kept[group]):
                    sums = totals.setdefault((group, channel), [0.0, 0.0, 0.0])
                    for key in OWN[group]:
                        for place in range(start[key][unit].numel()):
                            w = start[key][unit].flatten()[place].item()
                            slopes = [(rows, step[key][unit].flatten()[place].item()) for rows, step in steps]
                            g = sum(slope for _, slope in slopes) / len(steps)
                            squares = sum(rows * slope**2 for rows, slope in slopes) / len(steps)
                            h = self.scale / self.batch_size * squares
                            sums[0] += n * (abs(g * w) if self.form == "robust" else g * w)
                            sums[1] += n * h * w**2
                            sums[2] += n
        whole = {0: 9 + 3, 1: 9 * FIRST + 2}
        for (group, channel), (first, second, entries) in totals.items():
            now = (first / entries * whole[group], second / entries * whole[group])
            old = self.means.get((group, channel))
            self.means[group, channel] = (
                now if old is None else (0.9 * old[0] + 0.1 * now[0], 0.9 * old[1] + 0.1 * now[1])
            )

    def score(self, group: int, channel: int) -> float:
        if (group, channel) not in self.means:
            return math.inf
        first, second = self.means[group, channel]
        return {
            "printed": first + second,
            "exact": -first + second / 2,
            "robust": first + second / 2,
            "curvature": second,
            "channel": abs(first) + second / 2,
        }[self.form]

    def best(self, keep: float) -> Channels:
        groups = []
        for group, size in enumerate((FIRST, SECOND)):
            ranked = sorted(range(size), key=lambda channel: (-self.score(group, channel), channel))
            groups.append(sorted(ranked[: count(size, keep)]))
        return groups[0], groups[1]


def random_channels(scenario: Scenario, round: int, client: int, keep: float) -> Channels:
    """A warm-up round's draw: the largest of uniform numbers."""
    noise = seeding.generator(scenario.workload.seed, "random masks", round, client).random(FIRST + SECOND)
    groups = []
    for numbers in (noise[:FIRST], noise[FIRST:]):
        ranked = np.argsort(-numbers, kind="stable")[: count(len(numbers), keep)]
        groups.append(sorted(ranked.tolist()))
    return groups[0], groups[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "widths", "more"),
    [
        (None, (0.25, 0.5, 0.75, 1.0), ()),
        ("channel", (0.25, 0.5, 0.75, 1.0), ("method.curvature_scale=20.0",)),
        ("robust", (0.2, 0.3, 0.4, 0.6), ()),
        pytest.param("curvature", (0.2, 0.2, 0.2, 0.2), (), marks=pytest.mark.long),
        pytest.param("printed", (0.4, 0.5, 0.75, 1.0), (), marks=pytest.mark.long),
    ],
    ids=str,
)
def test_ca_hfp_with_batch_norm_over_three_rounds(
    form: str | None, widths: tuple[float, ...], more: tuple[str, ...]
) -> None:
    given = [f"population.tiers.{tier}.keep_ratio={keep}" for tier, keep in enumerate(widths)]
    given += [] if form is None else [f"method.score={form}"]
    scenario = build_scenario(settings_of("ca-hfp", *SMALL, "method.warmup_rounds=1", *given, *more))
    state, executor = initial_state(scenario), InProcessExecutor(scenario.workload)
    scale = float(more[0].split("=")[1]) if more else 5.0
    significance = Significance(form or scenario.method.options.score, scale, 5)
    params, kept_before, tried = dict(state.params), None, 0
    for round in (1, 2, 3):
        state, report = run_round(scenario, state, executor)
        ids = report.clients["client"].tolist()
        assert len(ids) == 3
        population, cohort, seen = scenario.workload.population, [], []
        for client in ids:
            keep = float(population.devices.keep_ratio[client])
            kept = random_channels(scenario, round, client, keep) if round == 1 else significance.best(keep)
            tried += sum(math.isinf(significance.score(g, c)) for g in (0, 1) for c in kept[g]) * (round > 1)
            start = cut(params, kept)
            trained, steps = train(scenario, client, round, start)
            n = len(population.train[client])
            cohort.append((n, places(kept), trained))
            seen.append((n, kept, start, steps))
        significance.observe(seen)
        params = averaged(params, cohort, divide_by_holders=False, keys=(*TRAINED, *STATISTICS))
        same(state.params, params, (*TRAINED, *STATISTICS))
        kept_before = kept_before or [kept for _, kept, _, _ in seen]
    assert len({len(kept[1]) for _, kept, _, _ in seen} | {len(kept[1]) for kept in kept_before}) > 1 or form == (
        "curvature"
    )
    assert (tried > 0) == (max(widths) < 1), "channels that nobody has held are tried first"


@pytest.mark.slow
@pytest.mark.parametrize("widths", [(0.25, 0.5, 0.75, 1.0), (0.1, 0.3, 0.5, 0.6)], ids=str)
def test_heterofl_with_batch_norm_over_three_rounds(widths: tuple[float, ...]) -> None:
    given = [f"population.tiers.{tier}.keep_ratio={keep}" for tier, keep in enumerate(widths)]
    scenario = build_scenario(settings_of("heterofl", *SMALL, *given))
    state, executor = initial_state(scenario), InProcessExecutor(scenario.workload)
    params, missing, levels = dict(state.params), 0, set()
    population, data = scenario.workload.population, scenario.workload.data
    for round in (1, 2, 3):
        state, report = run_round(scenario, state, executor)
        cohort = []
        for client in report.clients["client"].tolist():
            keep = float(population.devices.keep_ratio[client])
            level = max(level for level in (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16) if level <= keep)
            kept = list(range(count(FIRST, level))), list(range(count(SECOND, level)))
            owned = sorted({int(data.train_targets[row]) for row in population.train[client]})
            trained, _ = train(scenario, client, round, cut(params, kept), 1 / level, owned)
            held, own_rows = places(kept), [row for label in owned for row in (label,)]
            for key in ("9.weight", "9.bias"):
                width = trained[key][0].numel()
                trained[key] = torch.cat([trained[key][row].reshape(width) for row in own_rows])
                held[key] = [place for place in held[key] if place[0] in owned]
            cohort.append((len(population.train[client]), held, trained))
            missing, levels = missing + CLASSES - len(owned), levels | {level}
        params = averaged(params, cohort, divide_by_holders=True, keys=TRAINED)
        seen: list[torch.Tensor] = []
        with torch.no_grad():
            logits_of(params, data.train_rows(scenario.statistics_rows)[0], 1.0, seen)
        params.update(zip(STATISTICS, seen, strict=True))
        same(state.params, params, TRAINED)
        for key in STATISTICS:
            torch.testing.assert_close(state.params[key], params[key], rtol=1e-4, atol=1e-5)
    assert missing > 0
    assert len(levels) > 1
