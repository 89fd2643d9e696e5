"""Plain SGD without written-down gradients takes the steps of PyTorch's."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from raysim.plain_descent import LARGE, MOST_ROWS, PlainDescent
from raysim.training import LocalHooks, LocalTraining, descent_of

WIDTH = 600
INPUTS = torch.randn(10, WIDTH, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(10) % 3
Network = Callable[[], nn.Module]


def once() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 3))


def without_bias() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.ReLU(), nn.Linear(WIDTH, 3, bias=False))


def frozen_bias() -> nn.Module:
    model = once()
    model[0].bias.requires_grad_(False)
    return model


def twice() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(WIDTH, 3))


class Elsewhere(nn.Module):
    """Uses the weights of a layer outside the layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(inputs)) @ self.first.weight)


class Sloped(nn.Module):
    """Takes a gradient in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inputs = inputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(torch.tanh(self.first(inputs)).sum(), inputs, create_graph=True)
        return self.last(self.first(inputs) + slope)


class Called(nn.Module):
    """Computes with half of the weights, as a functional call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        half = {"weight": self.first.weight[torch.arange(0, WIDTH, 2)], "bias": self.first.bias[::2]}
        return self.last(torch.func.functional_call(self.first, half, inputs).repeat(1, 2))


class Recomputed(nn.Module):
    """Computes a layer once more on the way back, to save memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(checkpoint(lambda rows: torch.tanh(self.first(rows)), inputs, use_reentrant=False))


class Tokens(nn.Module):
    """Sees each row as many rows."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens, self.first, self.last = tokens, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(inputs[:, None].repeat(1, self.tokens, 1))).mean(1))


def few_tokens() -> nn.Module:
    return Tokens(MOST_ROWS // 10)


def many_tokens() -> nn.Module:
    return Tokens(MOST_ROWS // 10 + 1)


def built(network: Network) -> tuple[nn.Module, list[nn.Parameter]]:
    torch.manual_seed(0)
    model = network()
    return model, [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    ("network", "kept"),
    [(once, 1), (without_bias, 1), (frozen_bias, 1), (twice, 2), (Elsewhere, 1), (Sloped, 2), (Called, 0),
     (Recomputed, 1), (few_tokens, 1), (many_tokens, 0)],
)  # fmt: skip
def test_steps_are_those_of_pytorchs_sgd(network: Network, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert WIDTH**2 >= LARGE > WIDTH * 3
    model, parameters = built(network)
    theirs, their_parameters = built(network)
    descent, optimizer = PlainDescent(model, parameters, 0.1), torch.optim.SGD(their_parameters, 0.1)
    answers: list[bool] = []
    keeps = PlainDescent.keeps
    monkeypatch.setattr(
        PlainDescent, "keeps", lambda self, *factors: answers.append(keeps(self, *factors)) or answers[-1]
    )
    for _ in range(3):
        with descent.watching():
            descent.step(nn.functional.cross_entropy(model(INPUTS), LABELS))
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(INPUTS), LABELS).backward()
        optimizer.step()
    assert sum(answers) == 3 * kept
    torch.testing.assert_close(model.state_dict(), theirs.state_dict())


def test_layers_are_as_before_afterwards() -> None:
    model, parameters = built(once)
    before = dict(vars(model[0]))
    with pytest.raises(RuntimeError), PlainDescent(model, parameters, 0.1).watching():
        model(torch.zeros(2, 3))
    assert vars(model[0]) == before


@pytest.mark.parametrize(
    ("local", "hooks"),
    [
        (LocalTraining(momentum=0.9), LocalHooks()),
        (LocalTraining(momentum=0, weight_decay=0.1), LocalHooks()),
        (LocalTraining(momentum=0, clip_norm=1.0), LocalHooks()),
        (LocalTraining(momentum=0, precision="bf16"), LocalHooks()),
        (LocalTraining("adam", momentum=0), LocalHooks()),
        (LocalTraining(momentum=0), LocalHooks(observe=(lambda gradients: None,))),
        (LocalTraining(momentum=0), LocalHooks(correct=(lambda gradients: gradients,))),
    ],
)
def test_gradients_are_there_for_all_who_need_them(local: LocalTraining, hooks: LocalHooks) -> None:
    model, parameters = built(once)
    assert not isinstance(descent_of(model, parameters, 0.1, local, hooks), PlainDescent)
    assert isinstance(descent_of(model, parameters, 0.1, LocalTraining(momentum=0), LocalHooks()), PlainDescent)
