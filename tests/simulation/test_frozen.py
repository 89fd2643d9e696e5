"""Parameters that are not trained keep their bits, do not travel up, and travel down once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from raysim.core import tensors
from raysim.core.tensors import Params, frozen_keys
from raysim.executors.in_process import InProcessExecutor
from raysim.pruning import submodel
from raysim.pruning.masks import Mask
from raysim.simulation import checkpoint, fedavg
from raysim.simulation.accounting import client_columns
from raysim.simulation.build import build_scenario
from raysim.simulation.feasibility import ladder_of_ratios
from raysim.simulation.forecast import forecast
from raysim.simulation.frozen import HELD
from raysim.simulation.planning import plan_round
from raysim.simulation.preparation import prepare
from raysim.simulation.round import run_round
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import ServerState
from raysim.simulation.transition import initial_state, next_state
from tests import networks
from tests.clocked import FRAIL, MODES, QUICK, clocked
from tests.conftest import settings_of

NAMES = {
    build: f"model={{name: 'tests.networks:{build.__name__}', options: {{}}}}" for build in networks.FROZEN.values()
}
TOP_K = "compression={name: top-k, share: 0.1}"


def scenario_of(method: str, build, mode: str = "sync", *overrides: str) -> Scenario:
    scenario = build_scenario(settings_of(method, *QUICK, NAMES[build], *MODES[mode], *overrides))
    with torch.no_grad():  # a zero whose sign a sum would lose
        for name, value in scenario.workload.model.named_parameters():
            if name in scenario.frozen:
                value.view(-1)[0] = -0.0
    return scenario


def bits_of(scenario: Scenario, params: Params) -> str:
    return tensors.digest({key: params[key] for key in scenario.frozen})


def bytes_by_hand(scenario: Scenario, mask: Mask) -> tuple[int, int]:
    """Bytes of the floating-point tensors of a submodel that are not frozen, and of those that are."""
    shapes = submodel.compact_shapes(scenario.workload.plan, submodel.cut_for(scenario.workload.plan, mask))
    found = {False: 0, True: 0}
    for key, value in scenario.workload.model.state_dict(keep_vars=True).items():
        if value.is_floating_point():
            is_frozen = isinstance(value, torch.nn.Parameter) and not value.requires_grad
            found[is_frozen] += 4 * int(np.prod(shapes[key]))
    return found[False], found[True]


def frozen_indices(scenario: Scenario, mask: Mask) -> dict[str, object]:
    """Which indices of the frozen tensors a mask keeps, those that it cuts alone."""
    cut = submodel.cut_for(scenario.workload.plan, mask)
    return {key: {dim: kept.tolist() for dim, kept in cut[key].items()} for key in scenario.frozen if key in cut}


@pytest.mark.parametrize(
    ("kind", "method", "mode", "more"),
    [
        ("adapted", "fedavg", "sync", ()),
        ("lora", "hetlora", "deadline", ()),
        ("lora", "flexlora", "async", (TOP_K,)),
        ("lora", "magnitude", "async", ("server.optimizer=adam", "training.weight_decay=0.1")),
        ("adapted", "ca-hfp", "async", (TOP_K,)),
        ("frozen between", "ca-hfp", "sync", ("server.optimizer=momentum", "training.weight_decay=0.1")),
        ("frozen between", "heterofl", "async", ("method.fill=zero",)),
        ("frozen but last", "fedrolex", "sync", ("server.optimizer=adam", "server.learning_rate=0.01")),
        ("frozen and shared", "fedavg", "over-selection", (TOP_K,)),
        ("frozen and shared", "fedrolex", "deadline", ()),
    ],
)
def test_frozen_parameters_keep_their_bits_and_the_others_learn(kind, method, mode, more):
    scenario = scenario_of(method, networks.FROZEN[kind], mode, *more)
    state, executor = initial_state(scenario), InProcessExecutor(scenario.workload)
    first = state.params
    for _ in range(2):
        state, _ = run_round(scenario, state, executor)
    assert bits_of(scenario, state.params) == bits_of(scenario, first)
    assert not any(key.removeprefix("server/first/") in scenario.frozen for key in state.memory)
    trained = [key for key, value in scenario.workload.model.named_parameters() if value.requires_grad]
    assert any(not torch.equal(state.params[key], first[key]) for key in trained)


@pytest.mark.parametrize(
    ("kind", "method", "mode"),
    [
        ("adapted", "fedavg", "sync"),
        ("adapted", "ca-hfp", "async"),
        ("lora", "ca-hfp", "deadline"),
        ("lora", "flexlora", "sync"),
        ("frozen between", "fedrolex", "sync"),
        ("frozen between", "heterofl", "async"),
        ("frozen but last", "fedavg", "deadline"),
        ("frozen but last", "heterofl", "over-selection"),
        ("frozen and shared", "ca-hfp", "deadline"),
    ],
)
def test_frozen_parameters_travel_down_until_they_are_held_and_never_up(kind, method, mode):
    """As written out here from masks and completed downloads: the parts of the frozen tensors, client by client."""
    state = initial_state(scenario := scenario_of(method, networks.FROZEN[kind], mode, *FRAIL, "rounds=8"))
    held: dict[int, object] = {}
    seen = set()
    while not scenario.is_over(state):
        plan = plan_round(scenario, state)
        for work in plan.ended:
            done = work.completed_shares.download_s == 1
            for index, client in enumerate(work.cohort.clients.tolist()):
                mask = work.masks[index]
                others, frozen = bytes_by_hand(scenario, mask)
                part = frozen_indices(scenario, mask)
                knows = client in held and held[client] in ({}, part)
                marks = 0 if mask.kept.all() else -(-len(mask.kept) // 8)
                sums = 8 * int(mask.kept.sum()) if method == "ca-hfp" else 0
                assert work.load.down_bytes[index] == others + marks + (0 if knows else frozen)
                assert work.load.up_bytes[index] == others + sums
                seen.add((client in held, knows))
                if done[index] and held.get(client) != {}:
                    held[client] = part
        columns = client_columns(scenario, state, plan)
        state = next_state(scenario, state, plan, state.params, plan.memory, columns, None)
    assert seen >= {(False, False), (True, True)}
    assert ((True, False) in seen) == (method == "fedrolex")


@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
def test_compressed_updates_are_of_trained_parameters(method):
    scenario = scenario_of(method, networks.frozen_between, "sync", TOP_K)
    everything = Mask.whole(scenario.workload.plan)
    named = dict(scenario.workload.model.named_parameters())
    trained = {name: value.numel() for name, value in named.items() if value.requires_grad}
    assert scenario.costs.sent_entries(everything) == trained
    state, executor = initial_state(scenario), InProcessExecutor(scenario.workload)
    state, _ = run_round(scenario, state, executor)
    for memory in state.clients.values():
        residuals = {key.removeprefix("residual/") for key in memory if key.startswith("residual/")}
        assert residuals == trained.keys()


def test_other_things_of_a_method_that_travel_are_of_trained_parameters():
    build = networks.adapted
    others, frozen = bytes_by_hand(plain := scenario_of("fedavg", build), Mask.whole(plain.workload.plan))
    dense = tuple(f"population.tiers.{tier}.keep_ratio=1.0" for tier in range(4))
    work = plan_round(scaffold := scenario_of("scaffold", build, "sync", *dense), initial_state(scaffold)).ended[0]
    assert set(work.load.down_bytes.tolist()) == {2 * others + frozen}
    assert set(work.load.up_bytes.tolist()) == {2 * others}
    once = scenario_of("dapperfl", build, "sync")
    state, executor = initial_state(once), InProcessExecutor(once.workload)
    state, _ = run_round(once, state, executor)
    assert bits_of(once, state.params) == bits_of(once, initial_state(once).params)
    assert set(state.history[HELD].tolist()) == {0.0, 1.0}


def test_who_trained_before_round_1_holds_the_frozen_parameters():
    scenario = scenario_of("autoflip", networks.frozen_between)
    state = prepare(scenario, initial_state(scenario), InProcessExecutor(scenario.workload))
    others, frozen = bytes_by_hand(scenario, Mask.whole(scenario.workload.plan))
    clients = len(scenario.workload.population)
    assert (state.totals.down_bytes, state.totals.up_bytes) == (clients * (others + frozen), clients * others)
    assert bool((state.history[HELD] == 1).all())
    work = plan_round(scenario, state).ended[0]
    assert int(work.load.down_bytes.max()) < others + frozen


def test_budgets_are_solved_for_the_first_download():
    scenario = scenario_of("heterofl", networks.adapted)
    ladder = ladder_of_ratios(scenario, np.array([0.5, 1.0]))
    others, frozen = bytes_by_hand(scenario, Mask.whole(scenario.workload.plan))
    assert (ladder.down_bytes[-1], ladder.up_bytes[-1]) == (others + frozen, others)


@pytest.mark.parametrize("mode", MODES)
def test_fedavg_is_100_percent_of_itself(mode, monkeypatch):
    """To the digit, whether its clock is its own or runs beside, and beside submodels of any method."""
    more = (NAMES[networks.adapted], *FRAIL, "rounds=6", "population.clients=9")
    dense, cut = (forecast(clocked(method, mode, *more)) for method in ("fedavg", "heterofl"))
    names = ("bytes", "flops", "simulated", "energy")
    assert {dense[f"{name}_percent_of_fedavg"] for name in names} == {100.0}
    assert cut["fedavg"] == dense["fedavg"]
    monkeypatch.setattr(fedavg, "spends_as_much", lambda method: False)
    assert forecast(clocked("fedavg", mode, *more)) == dense


@pytest.mark.parametrize(("method", "more"), [("fedrolex", ()), ("heterofl", (TOP_K,))])
def test_what_is_held_survives_a_checkpoint(method, more, tmp_path: Path):
    scenario = scenario_of(method, networks.frozen_between, "async", *FRAIL, "rounds=3", *more)
    executor = InProcessExecutor(scenario.workload)
    states = [initial_state(scenario)]
    while not scenario.is_over(states[-1]):
        states.append(run_round(scenario, states[-1], executor)[0])
    middle = checkpoint.with_clients_on_disk(states[2], tmp_path)
    checkpoint.save(middle, tmp_path, 1)
    state = checkpoint.load(checkpoint.path_of(tmp_path, 2))
    assert np.array_equal(state.history[HELD], states[2].history[HELD])
    while not scenario.is_over(state):
        state = run_round(scenario, state, executor)[0]
    assert state.totals == states[-1].totals
    assert tensors.digest(state.params) == tensors.digest(states[-1].params)
    assert np.array_equal(state.fedavg.history[HELD], states[-1].fedavg.history[HELD])


def test_where_nothing_is_remembered_everything_travels():
    """In a checkpoint of an earlier version."""
    scenario = scenario_of("fedavg", networks.adapted)
    state, _ = run_round(scenario, initial_state(scenario), InProcessExecutor(scenario.workload))
    earlier = replace(state, history={})
    assert set(plan_round(scenario, earlier).ended[0].load.down_bytes.tolist()) == {scenario.costs.dense.model_bytes}


def test_without_frozen_parameters_nothing_is_kept_of_clients(tiny_scenario: Scenario):
    state, _ = run_round(tiny_scenario, initial_state(tiny_scenario), InProcessExecutor(tiny_scenario.workload))
    assert isinstance(state, ServerState)
    assert HELD not in state.history
    assert frozen_keys(tiny_scenario.workload.model) == frozenset()
