"""Server optimizers against algorithm 2 of Reddi et al. (arXiv 2003.00295), entry by entry."""

import math

import pytest
import torch

from raysim.config.server import ServerSettings
from raysim.executors.in_process import InProcessExecutor
from raysim.server.optimizers import STEPS, ServerOptimizer, step
from raysim.simulation.build import build_scenario
from raysim.simulation.round import run_round
from raysim.simulation.transition import initial_state
from tests.conftest import tiny_settings
from tests.oracles import held_entries
from tests.planned import plan_round

ADAPTIVE = {
    "adam": lambda v, square: 0.9 * v + (1 - 0.9) * square,
    "yogi": lambda v, square: v - (1 - 0.9) * square * (v > square) + (1 - 0.9) * square * (v < square),
}
"""The second moment with beta2 = 0.9, from the old one and the squared change."""


def slow_step(kind: str, weight: float, change: float, moments: dict[str, float]) -> float:
    """One entry of algorithm 2 with rate 0.3, beta1 0.8, beta2 0.9, tau 0.01; v starts at tau squared."""
    if kind == "sgd":
        return weight + 0.3 * change
    if kind == "momentum":
        moments["m"] = 0.8 * moments.get("m", 0.0) + change
        return weight + 0.3 * moments["m"]
    moments["m"] = 0.8 * moments.get("m", 0.0) + (1 - 0.8) * change
    moments["v"] = ADAPTIVE[kind](moments.get("v", 0.01**2), change**2)
    return weight + 0.3 * moments["m"] / (math.sqrt(moments["v"]) + 0.01)


@pytest.mark.parametrize("kind", STEPS)
def test_steps_are_those_of_a_loop_over_entries_and_wait_where_nobody_trained(kind: str) -> None:
    server = ServerOptimizer(kind, learning_rate=0.3, momentum=0.8, beta2=0.9, epsilon=0.01)
    draws = torch.Generator().manual_seed(0)
    params, memory = {"w": torch.randn(4, 3, generator=draws), "seen": torch.tensor(7)}, {}
    expected, moments = params["w"].flatten().tolist(), [{} for _ in range(12)]
    for _round in range(6):
        rows = torch.rand(4, 1, generator=draws) < 0.6
        change = torch.randn(4, 3, generator=draws) * rows
        after = {"w": params["w"] + change, "seen": params["seen"] + 1}
        covered = {"w": rows.double() * 5, "seen": torch.tensor(5.0)}
        params, memory = step(params, after, frozenset(["seen"]), covered, memory, server)
        for entry in range(12):
            if rows[entry // 3]:
                move = float(change.flatten()[entry])
                expected[entry] = slow_step(kind, expected[entry], move, moments[entry])
        torch.testing.assert_close(params["w"].flatten(), torch.tensor(expected), rtol=1e-5, atol=1e-6)
    assert params["seen"] == 13, "buffers are taken over"
    assert {key.split("/")[1] for key in memory} == {
        "sgd": set(),
        "momentum": {"first"},
        "adam": {"first", "second"},
        "yogi": {"first", "second"},
    }[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam", "yogi"])
def test_law_4_a_server_optimizer_moves_neither_values_nor_moments_that_nobody_covers(kind: str) -> None:
    overrides = ("method.name=heterofl", f"server.optimizer={kind}", "server.learning_rate=0.1")
    narrow = tuple(f"population.tiers.{tier}.keep_ratio=0.5" for tier in range(4))
    scenario = build_scenario(tiny_settings(*overrides, *narrow))
    state, executor = initial_state(scenario), InProcessExecutor(scenario.workload)
    held = held_entries(scenario.workload.plan, plan_round(scenario, state).masks[0], state.params)
    assert sum(not mask.all() for mask in held.values()) >= 6
    before, remembered = state.params, {}
    for _round in range(2):
        state, _ = run_round(scenario, state, executor)
        for key, mask in held.items():
            assert torch.equal(state.params[key][~mask], before[key][~mask]), key
            for name in ("first", "second"):
                moment = state.memory.get(f"server/{name}/{key}")
                if moment is not None:
                    untouched = remembered.setdefault((name, key), moment[~mask])
                    assert torch.equal(moment[~mask], untouched)
                    assert len(untouched.unique()) <= 1, "as they started"
        assert any(not torch.equal(state.params[key], before[key]) for key in held)
    assert bool(remembered) == (kind != "sgd")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "feddropout", "ca-hfp+"])
def test_with_pruned_cohorts_momentum_follows_the_aggregate(method: str) -> None:
    """FedAvgM by hand: v <- 0.9 v + (aggregate - w), w <- w + 0.5 v, where somebody trained."""
    same = (f"method.name={method}", "rounds=3")
    scenario = build_scenario(tiny_settings(*same, "server.optimizer=momentum", "server.learning_rate=0.5"))
    plain = build_scenario(tiny_settings(*same))
    state, executor = initial_state(scenario), InProcessExecutor(scenario.workload)
    velocity = {key: torch.zeros_like(value, dtype=torch.float64) for key, value in state.params.items()}
    for _round in range(2):
        masks = plan_round(scenario, state).masks
        anybody = [held_entries(scenario.workload.plan, mask, state.params) for mask in masks]
        aggregate, _ = run_round(plain, state, executor)
        after, _ = run_round(scenario, state, executor)
        for key, value in state.params.items():
            trained = torch.stack([held[key] for held in anybody]).any(dim=0)
            velocity[key][trained] = 0.9 * velocity[key][trained] + (aggregate.params[key] - value)[trained].double()
            expected = torch.where(trained, value + 0.5 * velocity[key], value.double())
            torch.testing.assert_close(after.params[key], expected.float(), rtol=1e-5, atol=1e-6)
        state = after


def test_settings_another_optimizer_reads_are_refused() -> None:
    for given in ({"momentum": 0.5}, {"optimizer": "momentum", "beta2": 0.9}, {"epsilon": 0.1}):
        with pytest.raises(ValueError, match="has no effect with optimizer="):
            ServerSettings(**given)
