"""The learning rate of a round equals that of PyTorch's schedulers, and reaches whatever reads it."""

from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler

from raysim.client.schedule import Schedule
from raysim.client.training import LocalTraining
from raysim.clock import outcomes
from raysim.core import tensors
from raysim.core.errors import SettingError
from raysim.executors.in_process import InProcessExecutor
from raysim.simulation.build import build_scenario
from raysim.simulation.preparation import prepare
from raysim.simulation.round import run_round
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import ServerState
from raysim.simulation.transition import initial_state
from tests.clocked import MODES, QUICK, played
from tests.conftest import tiny_settings

ROUNDS = 40
Make = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]
SCHEDULES: dict[str, tuple[Schedule, Make]] = {
    "exponential": (
        Schedule("exponential", factor=0.9),
        lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9),
    ),
    "step": (
        Schedule("step", every=7, factor=0.3),
        lambda optimizer: lr_scheduler.StepLR(optimizer, 7, 0.3),
    ),
    "milestones": (
        Schedule("step", milestones=(3, 4, 30)),
        lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [3, 4, 30], 0.1),
    ),
    "cosine": (
        Schedule("cosine", final_share=0.25, rounds=ROUNDS),
        lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, ROUNDS, eta_min=0.05),
    ),
    "warm-up": (
        Schedule(warmup=4),
        lambda optimizer: lr_scheduler.LinearLR(optimizer, 1 / 5, 1.0, 4),
    ),
    "warm-up, then cosine": (
        Schedule("cosine", warmup=3, rounds=ROUNDS),
        lambda optimizer: lr_scheduler.SequentialLR(
            optimizer,
            [
                lr_scheduler.LinearLR(optimizer, 1 / 4, 1.0, 3),
                lr_scheduler.CosineAnnealingLR(optimizer, ROUNDS - 3),
            ],
            milestones=[3],
        ),
    ),
    "warm-up, then steps": (
        Schedule("step", warmup=3, every=5, factor=0.5),
        lambda optimizer: lr_scheduler.SequentialLR(
            optimizer,
            [lr_scheduler.LinearLR(optimizer, 1 / 4, 1.0, 3), lr_scheduler.StepLR(optimizer, 5, 0.5)],
            milestones=[3],
        ),
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_are_those_of_pytorchs_schedulers(name: str) -> None:
    schedule, make = SCHEDULES[name]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    scheduler, expected = make(optimizer), []
    for _ in range(ROUNDS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    local = LocalTraining(learning_rate=0.2, schedule=schedule)
    assert [local.learning_rate_in(round) for round in range(1, ROUNDS + 1)] == pytest.approx(expected, rel=1e-9)
    assert len(set(expected)) > 1


def test_training_before_round_1_has_the_rate_of_round_1() -> None:
    local = LocalTraining(learning_rate=0.3, schedule=Schedule("cosine", warmup=2, rounds=9))
    assert [local.learning_rate_in(round) for round in (-3, 0, 1)] == pytest.approx([0.1, 0.1, 0.1])


def test_the_last_round_of_a_cosine_trains_however_many_there_are() -> None:
    for rounds in (1, 2, 1000, 10**9):
        assert Schedule("cosine", rounds=rounds).share_in(rounds) > 0


def digest(*overrides: str) -> str:
    return tensors.digest(played(build_scenario(tiny_settings(*QUICK, *overrides)))[0].params)


def test_the_short_form_gives_the_same_bits() -> None:
    assert digest("training.schedule={}", "training.lr_decay=0.9") == digest(
        "training.schedule={name: exponential, factor: 0.9}"
    )


METHODS = {
    "ca-hfp": ("method.estimator=variation", "method.warmup_rounds=0"),
    "scaffold": (),
    "fedprox": (),
    "heterofl": (),
    "fjord": (),
    "prunefl": ("method.options={reconfigure_rounds: 1, initial_rounds: 1}",),
    "feddst": ("method.options={readjust_rounds: 1}",),
    "fedtiny": ("method.options={readjust_rounds: 1, pool_size: 1}",),
    "fedrts": ("method.options={readjust_rounds: 1}",),
    "dapperfl": (),
    "fiarse": (),
    "autoflip": ("method.options={exploration_epochs: 2}",),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_each_round_is_that_of_a_run_with_its_rate_alone(method: str) -> None:
    """A power of two as factor, so that rates and what is divided by them are equal to the bit."""
    same = (*QUICK, "rounds=2", f"method.name={method}", *METHODS[method], "training.batch_size=5")
    scheduled, fast, slow = (
        build_scenario(tiny_settings(*same, *overrides))
        for overrides in (
            ("training.learning_rate=0.1", "training.schedule={name: step, milestones: [1], factor: 0.25}"),
            ("training.learning_rate=0.1", "training.schedule={}"),
            ("training.learning_rate=0.025", "training.schedule={}"),
        )
    )
    first = after_round(fast, prepare(fast, initial_state(fast), InProcessExecutor(fast.workload)))
    expected, constant = after_round(slow, first), after_round(fast, first)
    start = prepare(scheduled, initial_state(scheduled), InProcessExecutor(scheduled.workload))
    found = after_round(scheduled, after_round(scheduled, start))
    assert tensors.digest(found.params) == tensors.digest(expected.params) != tensors.digest(constant.params)
    assert tensors.digest(found.memory) == tensors.digest(expected.memory)


def after_round(scenario: Scenario, state: ServerState) -> ServerState:
    return run_round(scenario, state, InProcessExecutor(scenario.workload))[0]


def test_an_asynchronous_client_has_the_rate_of_the_round_it_started_from() -> None:
    """After round 1 the rate moves no float32 number, so that only clients that started in round 1 move the model."""
    schedule = "training.schedule={name: step, milestones: [1], factor: 1e-20}"
    scenario = build_scenario(tiny_settings(*QUICK, *MODES["async"], "rounds=6", "method.name=fedavg", schedule))
    state, executor, stale = initial_state(scenario), InProcessExecutor(scenario.workload), 0
    for round in range(1, 7):
        before = state.params
        state, report = run_round(scenario, state, executor)
        started = report.clients["started_round"][report.clients["fate"] == outcomes.COUNTED]
        moved = any(not torch.equal(before[name], state.params[name]) for name in before if "weight" in name)
        assert moved == (started == 1).any()
        stale += round > 1 and (started == 1).any()
    assert 0 < stale < 5


REFUSED = {
    ("training.schedule={name: cosin}",): "training.schedule.name='cosin' is not allowed",
    ("training.schedule={name: constant, factor: 0.9}",): "training.schedule: factor=0.9 has no effect with name='c",
    ("training.schedule={name: cosine, factor: 0.9}",): "factor=0.9 has no effect with name='cosine'; it belongs to",
    ("training.schedule={name: exponential, factor: 1.0}",): "training.schedule.factor=1.0 is not allowed; allowed:",
    ("training.schedule={name: exponential, every: 2}",): "every=2 has no effect with name='exponential'; it belongs",
    ("training.schedule={name: step}",): "every=None and milestones=None are not allowed; name='step' needs one",
    ("training.schedule={name: step, every: 2, milestones: [2]}",): "every=2 and milestones=[2] are not allowed",
    ("training.schedule={name: step, milestones: []}",): "milestones=[] is not allowed; allowed: rounds in ascending",
    ("training.schedule={name: step, milestones: [4, 4]}",): "milestones=[4, 4] is not allowed; allowed: rounds in",
    ("training.schedule={name: step, milestones: [3], warmup: 3}",): "in ascending order, above warmup=3",
    ("training.schedule={name: exponential, final_share: 0.1}",): "final_share=0.1 has no effect with",
    ("training.schedule={warmup: -1}",): "training.schedule.warmup=-1 is not allowed",
    (
        "training.schedule={name: cosine}",
        "training.lr_decay=0.9",
    ): "lr_decay=0.9 is not allowed with schedule.name=",
    ("training.schedule={name: exponential, factor: 0.1}", "rounds=90", "method.name=scaffold"): (
        "method.objective='scaffold' is not allowed with a learning rate that falls to 2e-90"
    ),
}


@pytest.mark.parametrize("settings", REFUSED, ids=" ".join)
def test_a_schedule_that_cannot_be_is_refused(settings: tuple[str, ...]) -> None:
    with pytest.raises(SettingError) as refused:
        build_scenario(tiny_settings(*settings))
    assert REFUSED[settings] in str(refused.value)
