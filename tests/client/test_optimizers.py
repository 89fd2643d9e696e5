"""The steps of local optimizers are those of PyTorch's classes, to the bit."""

from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from torch import nn

from raysim.client.optimizers import OPTIMIZERS, optimizer_step
from raysim.client.training import LocalTraining, effective_steps
from raysim.core.errors import SettingError
from raysim.methods.resolve import resolve
from raysim.simulation import convergence
from raysim.simulation.build import build_scenario
from tests.conftest import tiny_settings

Make = Callable[[Iterable[nn.Parameter], float, float], torch.optim.Optimizer]
PYTORCHS: dict[str, Make] = {
    "sgd": lambda own, momentum, decay: torch.optim.SGD(own, 0.03, momentum, weight_decay=decay),
    "nesterov": lambda own, momentum, decay: torch.optim.SGD(own, 0.03, momentum, weight_decay=decay, nesterov=True),
    "adam": lambda own, momentum, decay: torch.optim.Adam(own, 0.03, (momentum, 0.999), weight_decay=decay),
    "adamw": lambda own, momentum, decay: torch.optim.AdamW(own, 0.03, (momentum, 0.999), weight_decay=decay),
}


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("name", "momentum"),
    [(name, momentum) for name in OPTIMIZERS for momentum in (0.0, 0.5, 0.9) if momentum or name != "nesterov"],
)
def test_steps_are_those_of_pytorchs_class(name: str, momentum: float, decay: float) -> None:
    draw = torch.Generator().manual_seed(0)
    ours, theirs = (
        [nn.Parameter(torch.linspace(-1, 1, size).view(shape)) for size, shape in ((12, (3, 4)), (5, (5,)))]
        for _ in range(2)
    )
    step, optimizer = optimizer_step(name, ours, momentum, decay), PYTORCHS[name](theirs, momentum, decay)
    for _ in range(20):
        gradients = [torch.randn(parameter.shape, generator=draw) for parameter in ours]
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.clone()
        step(gradients, 0.03)
        optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("momentum", [0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_effective_steps_are_those_of_nesterovs_momentum_on_a_constant_gradient(momentum: float, steps: int) -> None:
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=momentum, nesterov=True)
    for _ in range(steps):
        weight.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
    assert -weight.item() == pytest.approx(effective_steps(steps, momentum, nesterov=True))
    local = LocalTraining(learning_rate=0.5, momentum=momentum, nesterov=True, epochs=steps, batch_size=10)
    found = convergence.steps_and_size(local, 1, np.array([steps]), np.array([10]))
    assert found == pytest.approx((steps, -0.5 * weight.item() / steps))


def test_the_settings_reach_training() -> None:
    local = build_scenario(tiny_settings("training.optimizer=adamw")).workload.local
    assert (local.optimizer, local.weight_decay, local.optimizer_buffers) == ("adamw", 0.01, 2)
    given = build_scenario(tiny_settings("training.optimizer=adamw", "training.weight_decay=0.0")).workload.local
    assert given.weight_decay == 0
    assert build_scenario(tiny_settings("training.nesterov=true")).workload.local.nesterov


PLAIN_ONLY = {
    "objective": ("scaffold", {}),
    "variation": ("ca-hfp", {"estimator": "variation"}),
    "secant": ("ca-hfp", {"estimator": "secant"}),
}


@pytest.mark.parametrize(
    ("local", "said"),
    [
        (LocalTraining("adamw"), "training.optimizer='adamw'; allowed: training.optimizer='sgd'"),
        (LocalTraining(nesterov=True), "training.nesterov=true; allowed: false"),
    ],
    ids=["adamw", "nesterov"],
)
@pytest.mark.parametrize("reader", PLAIN_ONLY)
def test_methods_that_need_plain_sgd_refuse_others(reader: str, local: LocalTraining, said: str) -> None:
    method, options = PLAIN_ONLY[reader]
    with pytest.raises(SettingError, match=f"method.+ is not allowed with {said}"):
        resolve(method, options, local)
    resolve(method, options, LocalTraining())


@pytest.mark.parametrize("given", ["training.momentum=0.0", "training.optimizer=adam", "training.optimizer=adamw"])
def test_nesterovs_momentum_without_effect_is_refused(given: str) -> None:
    with pytest.raises(SettingError, match=r"training: nesterov=True has no effect with optimizer="):
        tiny_settings(given, "training.nesterov=true")
