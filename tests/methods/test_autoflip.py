"""AutoFLIP: how close it comes to FedAvg, what it leaves out of the ranking, and what it records."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from raysim.executors.in_process import InProcessExecutor
from raysim.methods import autoflip
from raysim.pruning.gradients import without_gradient
from raysim.simulation.build import build_scenario
from raysim.simulation.loop import final_state
from raysim.simulation.round import run_round
from raysim.simulation.transition import initial_state
from tests.conftest import settings_of
from tests.methods.slow_rounds import small_scenario
from tests.oracles import norm_net

TWO_CLASSES = (
    "rounds=25",
    "population.clients=20",
    "selection.clients_per_round=5",
    "data.partition={name: classes, classes_per_client: 2}",
    "model={name: 'tests.oracles:norm_net', options: {}}",
    "training.learning_rate=0.05",
    "training.epochs=3",
    "evaluation.client_share=0.0",
)


def best_accuracy(method: str, seed: int) -> float:
    options = ("method.options={}",) if method == "autoflip" else ()
    scenario = build_scenario(settings_of(method, *TWO_CLASSES, *options, f"seed={seed}"))
    state, executor = initial_state(scenario), InProcessExecutor(scenario.workload)
    for _ in range(25):
        state, _ = run_round(scenario, state, executor)
    return state.totals.best_primary


@pytest.mark.long
def test_on_two_classes_per_client_the_best_accuracy_is_at_most_5_points_under_fedavgs() -> None:
    best = {method: [best_accuracy(method, seed) for seed in range(5)] for method in ("autoflip", "fedavg")}
    assert np.mean(best["fedavg"]) > 0.9
    assert np.mean(best["autoflip"]) > np.mean(best["fedavg"]) - 0.05, best


class TrickyNet(nn.Module):
    """A frozen layer, biases in front of a norm and of keys, a branch that starts at zero, an unused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Conv2d(1, 4, 3).requires_grad_(False)
        self.second = nn.Conv2d(4, 4, 3)
        self.norm = nn.GroupNorm(4, 4)
        self.gate = nn.BatchNorm2d(4)
        self.query, self.key = nn.Linear(4, 4), nn.Linear(4, 4)
        self.unused = nn.Linear(3, 3)
        self.last = nn.Linear(4, 5)
        nn.init.zeros_(self.gate.weight)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.second(self.frozen(inputs))).relu()
        hidden = (hidden + self.gate(hidden)).flatten(2).mT
        scores = self.query(hidden) @ self.key(hidden).mT
        return self.last((scores.softmax(2) @ hidden).mean(1))


def test_parameters_without_a_gradient_are_found_in_any_structure() -> None:
    assert without_gradient(norm_net((1, 8, 8), 10), (1, 8, 8)) == {"0.bias", "3.bias"}
    assert without_gradient(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), (1, 8, 8)) == set()
    model, before = TrickyNet(), torch.get_rng_state()
    start = copy.deepcopy(model.state_dict())
    found = without_gradient(model, (1, 8, 8))
    frozen, unused = {"frozen.weight", "frozen.bias"}, {"unused.weight", "unused.bias"}
    assert found == frozen | unused | {"second.bias", "key.bias"}
    assert all(torch.equal(value, start[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before)


def test_what_has_no_gradient_is_not_ranked_and_stays_whole() -> None:
    normed = "model={name: 'tests.oracles:norm_net', options: {channels: [3, 4]}}"
    scenario = small_scenario("autoflip", normed, "method.options={exploration_epochs: 2, mode: unstructured}")
    executor = InProcessExecutor(scenario.workload)
    state, _ = run_round(scenario, initial_state(scenario), executor)
    ranked = {key.removeprefix("elements/") for key in state.memory if key.startswith("elements/")}
    assert ranked == {name for name, _ in scenario.workload.model.named_parameters()} - {"0.bias", "3.bias"}


@pytest.mark.parametrize("agreement", ["sign", "none"])
def test_variance_of_updates_and_histogram_of_guidance_are_recorded(agreement: str) -> None:
    scenario = small_scenario("autoflip", f"method.options={{exploration_epochs: 2, agreement: {agreement}}}")
    executor = Remembering(scenario.workload)
    state, report = run_round(scenario, initial_state(scenario), executor)
    examples = report.clients["examples"].astype(float)
    shares = torch.from_numpy(examples / examples.sum())
    ones = {key: torch.ones_like(value) for key, value in state.params.items()}
    squares, entries = 0.0, 0
    for key, held in autoflip.masked_model(scenario.workload.plan, ones, state.memory).items():
        moved = torch.stack([update[key] for update in executor.updates])[:, held > 0]
        mean = torch.tensordot(shares, moved, dims=1)
        squares += float(torch.tensordot(shares, (moved - mean) ** 2, dims=1).sum())
        entries += int(held.sum())
    assert 0 < entries < sum(value.numel() for value in state.params.values())
    assert report.figures["update_variance"] == pytest.approx(squares / entries, rel=1e-4)
    table = final_state(scenario, state).table
    assert set(table) == {"tensor", "low", "high", "entries"}
    assert int(table["entries"].sum()) == sum(value.numel() for value in state.params.values())
    assert (table["low"].min(), table["high"].max()) == (0, 1)


class Remembering(InProcessExecutor):
    """Keeps each client's update, from training it by itself."""

    def train_versions(self, groups):
        ((assignments, broadcast),) = groups
        self.updates = []
        for index in range(len(assignments)):
            alone = self._trainer.train(assignments.take(np.array([index])), broadcast)
            rows = len(self._trainer.workload.population.train[int(alone.clients["client"][0])])
            total = alone.sums["update"]
            self.updates.append({key: total.value(key) / rows for key in total.totals})
        return super().train_versions(groups)
