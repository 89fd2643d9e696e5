"""Slow rounds of AutoFLIP, entry by entry in plain Python, with and without BatchNorm."""

import copy
import math

import pytest
import torch

from raysim.core.tensors import Params
from raysim.executors.in_process import InProcessExecutor
from raysim.methods import resolve as methods
from raysim.simulation.round import run_round
from raysim.simulation.transition import initial_state
from tests.methods.slow_rounds import (
    Kept,
    Member,
    everything,
    held_by,
    member,
    members,
    own_filter,
    sizes,
    small_scenario,
    train,
)

NORMED = ("model={name: 'tests.oracles:norm_net', options: {channels: [3, 4]}}",)
WITHOUT_GRADIENT = {"0.bias", "3.bias"}
"""Biases in front of a BatchNorm, in that network."""
Entry = tuple[str, int]


def entries(values: Params) -> list[Entry]:
    return [(key, place) for key, value in values.items() for place in range(value.numel())]


def at(values: Params, entry: Entry) -> float:
    return float(values[entry[0]].flatten()[entry[1]])


class SlowAutoflip:
    """What the server of AutoFLIP remembers, and one round after another."""

    def __init__(self, scenario, options: dict, without: set[str]) -> None:
        self.scenario, self.options, self.without = scenario, options, without
        self.agreed: dict[Entry, float] = {}
        self.took_part: set[int] = set()
        self.dropped_channels = 0

    def explore(self, start: Params) -> tuple[Params, dict[int, int]]:
        """All clients from the same weights; the mean of their weights, and the epochs of each."""
        explored, self.displaced, epochs = {}, {}, {}
        for id in range(5):
            best_loss = [math.inf]

            def is_exhausted(loss: float, best_loss: list[float] = best_loss) -> bool:
                stops = loss >= best_loss[0]
                best_loss[0] = min(loss, best_loss[0])
                return stops

            explored[id], losses = train(self.scenario, start, id, 0, epochs=6, stop=is_exhausted)
            names = {name for name, _ in self.scenario.workload.model.named_parameters()} - self.without
            self.displaced[id] = {key: explored[id][key] - start[key] for key in start if key in names}
            epochs[id] = len(losses)
        everybody = [member(self.scenario, id) for id in range(5)]
        return filled("global", start, everybody, [explored[id] for id in range(5)], everything(start)), epochs

    def mask(self, cohort: list[Member], params: Params) -> Params:
        ids = {client.id for client in cohort} | (set() if self.options.get("participants") else self.took_part)
        self.took_part |= ids
        importance = scaled([self.displaced[id] for id in sorted(ids)])
        for key, value in importance.items():
            flat = value.flatten()
            for place in range(len(flat)):
                flat[place] *= self.agreed.get((key, place), 1.0)
            importance[key] = flat.view(value.shape)
        ranked = sorted(entries(importance), key=lambda entry: -at(importance, entry))
        stays = set(ranked[: len(ranked) - int(0.4 * len(ranked))])
        single = everything(params)
        for key in importance:
            kept = [(key, place) in stays for place in range(params[key].numel())]
            single[key] = torch.tensor(kept).view(params[key].shape)
        plan, mode = self.scenario.workload.plan, self.options.get("mode", "hybrid")
        kept = channels_kept(plan, importance, single, self.options)
        held = single if mode != "structured" else everything(params)
        if mode != "unstructured":
            self.dropped_channels += plan.num_units - sum(len(units) for units in kept.values())
            held = {key: mask & held[key] for key, mask in held_by(plan, kept, params).items()}
        return held

    def round(self, number: int, params: Params) -> tuple[Params, Params]:
        """Parameters after a round, and its mask."""
        cohort = members(self.scenario, number)
        held = self.mask(cohort, params)
        after = [train(self.scenario, params, client.id, number, held)[0] for client in cohort]
        moved = [{key: (own[key] - params[key]) * held[key] for key in self.displaced[0]} for own in after]
        for entry in entries(self.displaced[0]):
            if self.options.get("agreement", "sign") != "none" and at(held, entry):
                now = self.agreement(cohort, moved, held, entry)
                self.agreed[entry] = 0.9 * self.agreed[entry] + 0.1 * now if entry in self.agreed else now
        return filled(self.options.get("fill", "global"), params, cohort, after, held), held

    def agreement(self, cohort: list[Member], moved: list[Params], held: Params, entry: Entry) -> float:
        total = sum(client.n for client in cohort)
        if self.options.get("agreement") == "overlap":
            shares = [client.n / total * in_top(own, held, entry) for client, own in zip(cohort, moved, strict=True)]
            return sum(shares)
        signs = [(at(own, entry) > 0) - (at(own, entry) < 0) for own in moved]
        return abs(sum(client.n * sign for client, sign in zip(cohort, signs, strict=True))) / total


def in_top(own: Params, held: Params, entry: Entry) -> bool:
    """Whether an entry is among the 60 % of its tensor's trained entries that moved most."""
    key, place = entry
    trained = [other for other, is_held in enumerate(held[key].flatten().tolist()) if is_held]
    trained.sort(key=lambda other: -abs(at(own, (key, other))))
    return place in trained[: len(trained) - int(0.4 * len(trained))]


def scaled(displaced: list[Params]) -> Params:
    """Mean squared displacement, scaled to [0, 1] in each tensor."""
    guidance = {}
    for key in displaced[0]:
        mean = sum(own[key].double() ** 2 for own in displaced) / len(displaced)
        guidance[key] = (mean - mean.min()) / (mean.max() - mean.min())
    return guidance


def channels_kept(plan, importance: Params, held: Params, given: dict) -> Kept:
    """Channels with less than 90 % of their own entries pruned and a mean above the threshold; the best one stays."""
    number = own_filter(plan, {key: torch.ones_like(value) for key, value in importance.items()})
    gone = own_filter(plan, {key: (~held[key]).double() for key in importance})
    total = own_filter(plan, importance)
    kept = {}
    for group, size in sizes(plan).items():
        mean = [total[group][unit] / number[group][unit] for unit in range(size)]
        share = [gone[group][unit] / number[group][unit] for unit in range(size)]
        most, least = given.get("channel_share", 0.9), given.get("channel_threshold", 0.0)
        kept[group] = [unit for unit in range(size) if share[unit] < most and mean[unit] > least]
        kept[group] = sorted({*kept[group], mean.index(max(mean))})
    return kept


def filled(fill: str, params: Params, cohort: list[Member], after: list[Params], held: Params) -> Params:
    """All clients hold the same entries: w + M (mean of their updates), or with zeros outside M."""
    total, result = sum(client.n for client in cohort), {}
    for key, value in params.items():
        mean = sum(client.n / total * own[key].double() for client, own in zip(cohort, after, strict=True))
        is_running = "running" in key or "num_batches" in key
        outside = torch.zeros_like(mean) if fill == "zero" and not is_running else value.double()
        result[key] = torch.where(held[key], mean, outside).to(value.dtype)
    return result


CASES = {
    "default": {},
    "unstructured": {"mode": "unstructured", "participants": "cohort"},
    "structured without agreement": {
        "mode": "structured", "agreement": "none", "channel_share": 0.4, "channel_threshold": 0.01,
    },
    "overlap explored": {"agreement": "overlap", "channel_share": 0.4, "start": "explored"},
    "zero fill": {"channel_share": 0.4, "fill": "zero"},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "normed"), [*((case, True) for case in CASES), ("default", False), ("unstructured", False)]
)
def test_autoflip_prunes_where_clients_do_not_go_or_do_not_agree(case: str, normed: bool) -> None:
    """Three rounds of 3 of 5 clients: parameters, statistics, and what is served and scored."""
    given = {"exploration_epochs": 6, "patience": 1, "prune_share": 0.4, **CASES[case]}
    fill = given.pop("fill", None)
    text = ", ".join(f"{name}: {value}" for name, value in given.items())
    more = ["selection.clients_per_round=3", *([f"method.fill={fill}"] if fill else []), *(NORMED if normed else ())]
    scenario = small_scenario("autoflip", f"method.options={{{text}}}", *more)
    slow = SlowAutoflip(scenario, CASES[case], WITHOUT_GRADIENT if normed else set())
    start = {key: value.clone() for key, value in scenario.workload.model.state_dict().items()}
    explored, epochs = slow.explore(start)
    params = explored if given.get("start") == "explored" else start
    state, executor, masks = initial_state(scenario), InProcessExecutor(scenario.workload), []
    for number in (1, 2, 3):
        state, report = run_round(scenario, state, executor)
        params, held = slow.round(number, params)
        served = methods.served(scenario.method, scenario.workload.plan, state.params, state.memory)
        agree(state.params, params)
        agree(served, {key: value * held[key] for key, value in params.items()})
        assert report.score.primary == pytest.approx(accuracy(scenario, served))
        masks.append(held)
    assert min(epochs.values()) < 6, "some explorer stops early"
    if given.get("mode") != "structured":
        assert any((masks[0][key] != masks[2][key]).any() for key in masks[0]), "the mask changes"
    if "channel_share" in given:
        assert slow.dropped_channels > 0
    pays_for(scenario, state, epochs)


def agree(actual: Params, expected: Params) -> None:
    assert set(actual) == set(expected)
    for key, value in expected.items():
        if "num_batches" not in key:
            torch.testing.assert_close(actual[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: key + text)


def accuracy(scenario, params: Params) -> float:
    model = copy.deepcopy(scenario.workload.model).eval()
    model.load_state_dict(params)
    inputs, labels = scenario.workload.data.test_rows(scenario.test_rows)
    with torch.no_grad():
        return float((model(inputs).argmax(1) == labels).double().mean())


def pays_for(scenario, state, epochs: dict[int, int]) -> None:
    """Exploration is paid for, and only as long as it lasted."""
    dense = scenario.costs.dense
    spent = sum(member(scenario, id).n * own * dense.train_flops for id, own in epochs.items())
    assert state.totals.preparation_flops == spent
    assert state.totals.preparation_bytes == 5 * 2 * dense.model_bytes
