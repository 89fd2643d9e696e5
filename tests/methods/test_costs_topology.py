"""Bytes and FLOPs of FedTiny, FedMef and FedRTS, counted by hand."""

import math

import numpy as np
import pytest

from raysim.executors.in_process import InProcessExecutor
from raysim.methods import mask_rules
from raysim.simulation.preparation import prepare
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import ServerState
from raysim.simulation.transition import initial_state
from tests.methods.slow_rounds import member, small_scenario
from tests.methods.test_costs import PARAMETERS, WEIGHTS, flops, played
from tests.methods.test_rounds_topology import NORMED, cosine, num_moved

FORWARD = 2 * 64 * 9 * 3 + 2 * 64 * 9 * 3 * 4 + 2 * 64 * 5 + 2 * 5 * 10
"""Per row: two convolutions on 8 x 8 positions, 64 inputs to 5 hidden units, 10 classes."""


def ready(scenario: Scenario) -> ServerState:
    return prepare(scenario, initial_state(scenario), InProcessExecutor(scenario.workload))


def place_bytes(entries: int, chosen: int) -> int:
    return min(math.ceil(entries / 8), 4 * chosen)


@pytest.mark.parametrize(
    ("name", "share", "last", "value_bytes", "layers"),
    [
        ("fedtiny", 0.3, 100, 4, ("8.weight",)),
        ("fedmef", 0.4, 300, 4, ("0.weight", "2.weight", "6.weight", "8.weight")),
        ("fedrts", 0.4, 300, 0, ("0.weight", "2.weight", "6.weight", "8.weight")),
    ],
)
def test_the_largest_gradients_travel_with_their_places_when_they_are_due(
    name: str, share: float, last: int, value_bytes: int, layers: tuple[str, ...]
) -> None:
    more = ", pool_size: 1" if name == "fedtiny" else ""
    scenario = small_scenario(name, f"method.options={{readjust_rounds: 2, sparsity: 0.6{more}}}")
    held = mask_rules.current(scenario.workload.plan, ready(scenario).memory)
    kept = sum(int(bits.sum()) for bits in held.values())
    values, tells = 4 * (PARAMETERS - WEIGHTS + kept), place_bytes(WEIGHTS, kept)
    _, (first, second, third) = played(scenario, 3)
    assert set(first.clients["down_bytes"].tolist()) == {values + tells}
    assert set(first.clients["up_bytes"].tolist()) == {values}
    moved = sum(num_moved(held[key], cosine(share, 2, last)) for key in layers)
    pruned = sum(int((~held[key]).sum()) for key in layers)
    assert 0 < moved < pruned
    assert set(second.clients["up_bytes"].tolist()) == {values + value_bytes * moved + place_bytes(pruned, moved)}
    new = ~np.isin(second.clients["client"], first.clients["client"])
    np.testing.assert_array_equal(second.clients["down_bytes"], values + tells * new)
    assert set(third.clients["down_bytes"].tolist()) == {values + tells}, "the mask has changed"
    assert set(third.clients["up_bytes"].tolist()) == {values}
    for place, client in enumerate(second.clients["client"].tolist()):
        assert second.clients["train_flops"][place] == 2 * member(scenario, client).n * flops(3, 4, 5)


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "BatchNorm"])
def test_fedtiny_pays_for_comparing_its_candidates(normed: bool) -> None:
    options = "method.options={pool_size: 3, sparsity: 0.6}"
    scenario = small_scenario("fedtiny", options, *([NORMED] if normed else []))
    totals, everybody = ready(scenario).totals, [member(scenario, id) for id in range(5)]
    weights, others = (27 + 108 + 640, 3 + 4 + 10 + 2 * (3 + 4)) if normed else (WEIGHTS, PARAMETERS - WEIGHTS)
    statistics, passes = (4 * 2 * (3 + 4), 2) if normed else (0, 1)
    forward = 2 * 64 * (9 * 3 + 27 * 4) + 2 * 64 * 10 if normed else FORWARD
    kept = totals.down_bytes - 5 * 3 * (4 * others + math.ceil(weights / 8) + passes * statistics)
    assert kept == pytest.approx(5 * 3 * 4 * 0.4 * weights, rel=0.01), "each candidate is rounded layer by layer"
    assert totals.up_bytes == 5 * 3 * (statistics + 4)
    assert totals.preparation_flops == totals.train_flops == 3 * passes * forward * sum(c.n for c in everybody)
    assert totals.preparation_bytes == totals.down_bytes + totals.up_bytes
    assert totals.simulated_s == totals.preparation_s > 0
