"""The ladder of a scenario: the clock's costs, memory, and infeasible clients."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from raysim.budgets.solver import BudgetSolver
from raysim.client.training import LocalTraining
from raysim.core.errors import SettingError
from raysim.methods.table import METHODS
from raysim.models.cost import count, training_bytes
from raysim.simulation import cohort
from raysim.simulation.build import build_scenario
from raysim.simulation.feasibility import with_solved_budgets
from raysim.simulation.forecast import forecast
from raysim.simulation.participants import cohort_of, feasible, respond, select_clients
from raysim.simulation.transition import initial_state
from raysim.terminal.console import print_forecast
from tests.conftest import settings_of, tiny_settings

SOLVED = ("budget.rule=solved", "budget.deadline_s=1000")
OBEY = [name for name, method in METHODS.items() if not method.ignores_budgets]
EXACT = [name for name in OBEY if name != "fjord"]
STEADY = tuple(
    f"population.tiers.{tier}.{name}=0.0" for tier in range(4) for name in ("compute_variation", "link_variation")
)
FAST = (
    "population.tiers=[{name: slow, share: 0.5, flops_per_s: 1e6, down_bytes_per_s: 1e4, up_bytes_per_s: 1e4}, "
    "{name: fast, share: 0.5, flops_per_s: 1e9, down_bytes_per_s: 1e6, up_bytes_per_s: 1e6}]"
)


def clocked(scenario, keep_ratio: float):
    """What all clients take by the clock when each trains one keep ratio."""
    size = len(scenario.workload.population)
    everybody = cohort_of(scenario, np.arange(size), round=1)
    ratios = np.full(size, keep_ratio)
    everybody = replace(everybody, keep_ratios=ratios, budgets=ratios)
    view = cohort.view_of(scenario, initial_state(scenario), everybody)
    masks, _ = cohort.choose_masks(scenario, view)
    load = cohort.load_of(scenario, view, masks)
    return load, cohort.schedule_cohort(scenario, everybody, load)


def predicted(scenario):
    population = scenario.workload.population
    size = len(population)
    return scenario.budget.needs(population.devices, np.arange(size), population.train.counts, 1, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        *((name,) for name in EXACT),
        ("ca-hfp", "method.estimator=hutchinson"), ("ca-hfp", "method.estimator=variation"),
        ("magnitude", "method.objective=proximal"), ("magnitude", "training.epochs=3"),
    ],
    ids="-".join,
)  # fmt: skip
def test_the_ladder_is_what_the_clock_charges_to_the_bit(overrides):
    scenario = build_scenario(settings_of(*overrides, *SOLVED, *STEADY))
    needs, ladder = predicted(scenario), scenario.budget.ladder
    assert len(ladder) == (5 if overrides[0] in ("heterofl", "fedrolex") else 32)
    for rung, keep_ratio in enumerate(ladder.keep_ratios):
        load, timing = clocked(scenario, keep_ratio)
        assert timing.total_s.tolist() == needs.seconds[rung].tolist()
        assert (load.down_bytes + load.up_bytes).tolist() == needs.data_bytes[rung].tolist()


@pytest.mark.parametrize("distill", ["false", "true"])
def test_fjord_is_never_charged_more_than_its_ladder_tells(distill):
    options = f"method.options={{distill: {distill}}}"
    scenario = build_scenario(settings_of("fjord", options, *SOLVED, *STEADY))
    needs, ladder = predicted(scenario), scenario.budget.ladder
    assert ladder.keep_ratios.tolist() == [0.2, 0.4, 0.6, 0.8, 1.0]
    for rung, keep_ratio in enumerate(ladder.keep_ratios):
        load, timing = clocked(scenario, keep_ratio)
        assert (timing.total_s <= needs.seconds[rung]).all()
        assert ((timing.total_s < needs.seconds[rung]).any()) == (rung > 0)
        assert (load.down_bytes + load.up_bytes <= needs.data_bytes[rung]).all()


def test_the_ladder_is_counted_when_the_scenario_is_built(monkeypatch):
    scenario = build_scenario(tiny_settings(*SOLVED))
    monkeypatch.setattr("raysim.pruning.costs.count", lambda *_: pytest.fail("counted while running"))
    for keep_ratio in scenario.budget.ladder.keep_ratios:
        clocked(scenario, keep_ratio)


@pytest.mark.slow
def test_training_memory_is_that_of_the_submodel_counted_by_hand(tiny_scenario):
    scenario = build_scenario(settings_of("magnitude", *SOLVED))
    weights = [1 * 9 * 2 + 2, 2 * 9 * 4 + 4, 4 * 16 * 8 + 8, 8 * 10 + 10]  # at keep ratio 1/2
    half = int(np.flatnonzero(scenario.budget.ladder.keep_ratios == 0.5)[0])
    assert scenario.budget.ladder.state_bytes[half] == 4 * sum(weights) * 3  # SGD with momentum


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "copies"),
    [(("training.momentum=0.0",), 2), ((), 3), (("training.optimizer=adam", "training.learning_rate=0.001"), 4)],
)
def test_the_optimizers_state_is_in_the_memory(overrides, copies):
    ladder = build_scenario(settings_of("magnitude", *SOLVED, *overrides)).budget.ladder
    plain = ladder.state_bytes / copies
    assert plain[-1] == 4 * (10 * 4 + 37 * 8 + 129 * 16 + 17 * 10)


def test_dapperfl_holds_the_full_model_on_every_rung():
    ladder = build_scenario(settings_of("dapperfl", *SOLVED)).budget.ladder
    assert set(ladder.state_bytes) == {ladder.state_bytes[-1]}
    assert set(ladder.row_bytes) == {ladder.row_bytes[-1]}


@pytest.mark.parametrize("rows", [4, 10, 33])
def test_saved_activations_of_a_batch_are_those_the_formula_tells(tiny_scenario, rows):
    model = tiny_scenario.workload.model
    cost = count(model, (1, 8, 8))
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        loss = nn.functional.mse_loss(model.train()(torch.randn(rows, 1, 8, 8)), torch.zeros(rows, 10))
    activations = sum(storage.nbytes() for place, storage in saved.items() if place not in own)
    of_loss = 2 * rows * 10 * 4
    assert loss.requires_grad
    assert activations - of_loss == rows * cost.activation_bytes
    assert training_bytes(cost, 1, rows) == 3 * cost.model_bytes + activations - of_loss


def test_frozen_parameters_need_no_gradient():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    assert count(model, (3,)).gradient_bytes == 4 * (4 * 2 + 2)


def test_optimizers_keep_so_many_buffers():
    kinds = [LocalTraining(), LocalTraining(momentum=0.0), LocalTraining(optimizer="adam")]
    assert [local.optimizer_buffers for local in kinds] == [1, 0, 2]


@pytest.mark.parametrize("name", [name for name in METHODS if name not in OBEY])
def test_methods_that_train_the_full_model_leave_budgets_aside(name):
    scenario = build_scenario(settings_of(name, "budget.rule=solved", "budget.deadline_s=1e-9"))
    assert scenario.budget is None
    everybody = cohort_of(scenario, np.arange(6), round=1)
    assert everybody.keep_ratios.tolist() == [1.0] * 6


def some_feasible(*overrides: str):
    return build_scenario(tiny_settings("budget.rule=solved", "budget.deadline_s=2.0", FAST, *overrides))


def test_who_can_afford_nothing_has_keep_ratio_zero_and_the_reason():
    scenario = some_feasible("budget.deadline_s=0.5")
    everybody = cohort_of(scenario, np.arange(6), round=1)
    slow = scenario.workload.population.devices.tier_of == 0
    assert (everybody.keep_ratios[slow] == 0).all()
    assert set(everybody.limited_by[slow]) == {"deadline"}
    assert (everybody.keep_ratios[~slow] > 0).all()
    able, absent = feasible(everybody)
    assert able.clients.tolist() == np.flatnonzero(~slow).tolist()
    assert absent.clients.tolist() == np.flatnonzero(slow).tolist()
    assert absent.examples.tolist() == everybody.examples[slow].tolist()


def test_those_who_can_afford_nothing_take_no_part():
    scenario = some_feasible("budget.deadline_s=0.5", "selection.clients_per_round=6")
    state = initial_state(scenario)
    chosen, absent = respond(scenario, state, select_clients(scenario, state, 6))
    slow = scenario.workload.population.devices.tier_of == 0
    assert chosen.clients.tolist() == np.flatnonzero(~slow).tolist()
    assert absent.clients.tolist() == np.flatnonzero(slow).tolist()
    assert set(absent.outcomes) == {"infeasible"}
    assert set(absent.limited_by) == {"deadline"}


@pytest.mark.parametrize("name", ["heterofl", "fedrolex"])
def test_a_device_below_the_narrowest_level_takes_no_part_under_solved_budgets(name):
    weak = "population.tiers.0.keep_ratio=0.05"
    solved = build_scenario(settings_of(name, *SOLVED, weak))
    everybody = cohort_of(solved, np.arange(6), round=1)
    assert everybody.limited_by[everybody.keep_ratios == 0].tolist() == ["tier"]
    by_tier = build_scenario(settings_of(name, weak))
    assert cohort_of(by_tier, np.arange(6), round=1).keep_ratios.min() == 1 / 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("budget.rule=solved",),
            "budget.rule='solved' has no effect without budget.deadline_s and without a device that has memory_bytes",
        ),
        (("budget.rule=solved", "budget.deadline_s=1e-3"), "budget.deadline_s=0.001 is met by none of 6 clients"),
        (
            ("budget.rule=solved", *(f"population.tiers.{tier}.memory_bytes=1000" for tier in range(4))),
            "memory_bytes is too small on 6 devices; allowed: ",
        ),
        (
            ("budget.rule=solved", *(f"population.tiers.{tier}.data_cap_bytes=483" for tier in range(4))),
            "data_cap_bytes is too small on 6 devices; allowed: 484 or more, as of keep_ratio=0.03125",
        ),
    ],
)
def test_budgets_that_nobody_meets_are_refused(overrides, message):
    with pytest.raises(SettingError) as error:
        build_scenario(tiny_settings(*overrides))
    assert message in str(error.value)


@pytest.mark.slow
def test_the_deadline_that_is_asked_for_is_enough():
    with pytest.raises(SettingError, match="allowed: ") as error:
        build_scenario(tiny_settings("budget.rule=solved", "budget.deadline_s=1e-3"))
    enough = str(error.value).rpartition("allowed: ")[2].removesuffix(" or more")
    scenario = build_scenario(tiny_settings("budget.rule=solved", f"budget.deadline_s={enough}"))
    able, _ = feasible(cohort_of(scenario, np.arange(6), round=1))
    assert len(able.clients) == 1


def test_different_reasons_are_all_named():
    tiers = (
        "population.tiers=[{name: slow, share: 0.5, flops_per_s: 1e3, down_bytes_per_s: 10, up_bytes_per_s: 10}, "
        "{name: small, share: 0.5, flops_per_s: 1e9, down_bytes_per_s: 1e6, up_bytes_per_s: 1e6, memory_bytes: 9}]"
    )
    with pytest.raises(SettingError) as error:
        build_scenario(tiny_settings("budget.rule=solved", "budget.deadline_s=1", tiers))
    assert "budget.deadline_s=1 is met by none of 3 clients" in str(error.value)
    assert "memory_bytes is too small on 3 devices" in str(error.value)


def test_the_steps_of_the_ladder_can_be_chosen(tiny_scenario):
    scenario = with_solved_budgets(tiny_scenario, 1000.0, steps=4)
    assert scenario.budget.ladder.keep_ratios.tolist() == [0.25, 0.5, 0.75, 1.0]


def test_a_ladder_read_from_a_file_gives_the_same_budgets_without_a_model():
    scenario = build_scenario(tiny_settings("budget.rule=solved", "budget.deadline_s=0.1"))
    again = BudgetSolver.from_json(json.loads(json.dumps(scenario.budget.to_json())))
    population = scenario.workload.population
    given = (population.devices, np.arange(6), population.train.counts, 1, 0)
    assert again.solve(*given).keep_ratios.tolist() == scenario.budget.solve(*given).keep_ratios.tolist()


def test_the_forecast_tells_what_limits_each_tier_and_who_is_left_out(capsys):
    predicted = forecast(some_feasible("budget.deadline_s=0.5", "selection.clients_per_round=6"))
    slow, fast = predicted["tiers"]
    assert (slow["keep_ratio"], slow["limited_by"], slow["infeasible"]) == (0.0, "deadline", 3)
    assert (fast["keep_ratio"], fast["limited_by"], fast["infeasible"]) == (1.0, "nothing", 0)
    assert slow["total_s"] is None
    assert json.loads(json.dumps(predicted, allow_nan=False)) == predicted
    print_forecast({**predicted, "model": "cnn"})
    shown = capsys.readouterr().out
    assert "infeasible" in shown
    assert "deadline" in shown


def test_nobody_infeasible_no_column(capsys, tiny_scenario):
    print_forecast({**forecast(tiny_scenario), "model": "cnn"})
    shown = capsys.readouterr().out
    assert "infeasible" not in shown
    assert "limited by" in shown
