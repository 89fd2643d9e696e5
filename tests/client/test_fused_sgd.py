"""Plain SGD without stored gradients makes the steps of PyTorch's SGD, and is used only where that is certain."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from raysim.client import fused_sgd
from raysim.client.fused_sgd import LARGE, MOST_ROWS, PlainDescent, is_chain
from raysim.client.hooks import LocalHooks
from raysim.client.trainer import ClientTrainer
from raysim.client.training import LocalTraining, descent_of
from raysim.core import tensors
from raysim.server.updates import Accumulator
from raysim.simulation.build import build_scenario
from tests.conftest import tiny_settings
from tests.planned import plan_round

WIDTH = 600
INPUTS = torch.randn(10, WIDTH, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(10) % 3
Network = Callable[[], nn.Module]


def once() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 3))


def nested_in_place() -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True)), nn.Linear(WIDTH, 3))


def without_bias() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.ReLU(), nn.Linear(WIDTH, 3, bias=False))


def frozen_bias() -> nn.Module:
    model = once()
    model[0].bias.requires_grad_(False)
    return model


def frozen() -> nn.Module:
    model = once()
    model[0].weight.requires_grad_(False)
    return model


def twice() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(WIDTH, 3))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3))
    model[2].weight = model[0].weight
    return model


def of_tokens(count: int) -> nn.Module:
    split = nn.Unflatten(1, (count, WIDTH // count))
    wide = nn.Linear(WIDTH // count, LARGE * count // WIDTH + 1)
    return nn.Sequential(split, wide, nn.Tanh(), nn.Flatten(), nn.Linear(wide.out_features * count, 3, bias=False))


def few_tokens() -> nn.Module:
    return of_tokens(MOST_ROWS // 10)


def many_tokens() -> nn.Module:
    return of_tokens(MOST_ROWS // 10 + 2)


def built(network: Network) -> tuple[nn.Module, list[nn.Parameter]]:
    torch.manual_seed(0)
    model = network()
    return model, [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    ("network", "products"),
    [(once, 1), (nested_in_place, 1), (without_bias, 1), (frozen_bias, 1), (frozen, 0), (twice, 2), (tied, 2),
     (few_tokens, 1), (many_tokens, 0)],
)  # fmt: skip
def test_steps_are_those_of_pytorchs_sgd(network: Network, products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, parameters = built(network)
    theirs, their_parameters = built(network)
    assert is_chain(model)
    descent, optimizer = PlainDescent(model, parameters, 0.1), torch.optim.SGD(their_parameters, 0.1)
    added: list[torch.Tensor] = []
    add = fused_sgd._add_product
    monkeypatch.setattr(fused_sgd, "_add_product", lambda *args: added.append(args[0]) or add(*args))
    for _ in range(3):
        with descent.watching():
            descent.step(nn.functional.cross_entropy(model(INPUTS), LABELS))
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(INPUTS), LABELS).backward()
        optimizer.step()
    assert len(added) == 3 * products
    torch.testing.assert_close(model.state_dict(), theirs.state_dict())


def test_gradients_are_written_again_after_an_error() -> None:
    model, parameters = built(once)
    with pytest.raises(RuntimeError), PlainDescent(model, parameters, 0.1).watching():
        model(torch.zeros(2, 3))
    gradients = torch.autograd.grad(model(INPUTS).sum(), parameters, allow_unused=True)
    assert all(gradient is not None for gradient in gradients)


class Own(nn.Sequential):
    """Could do anything."""


def with_hook_of_layer() -> nn.Module:
    model = once()
    model[0].register_forward_hook(lambda *_: None)
    return model


def with_hook_of_weight() -> nn.Module:
    model = once()
    model[0].weight.register_hook(lambda gradient: gradient)
    return model


def normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)))


@pytest.mark.parametrize(
    "network",
    [
        lambda: Own(nn.Linear(WIDTH, WIDTH)),
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), Own(nn.ReLU())),
        lambda: nn.Sequential(nn.TransformerEncoderLayer(WIDTH, 2)),
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH, dtype=torch.complex64)),
        with_hook_of_layer,
        with_hook_of_weight,
        normed,
    ],
    ids=["own model", "own layer", "several layers", "complex", "hook of a layer", "hook of weights", "normed"],
)
def test_gradients_are_there_where_a_model_holds_more_than_pytorchs_layers(network: Network) -> None:
    model, parameters = built(network)
    assert not isinstance(descent_of(model, parameters, 0.1, PLAIN, LocalHooks()), PlainDescent)


PLAIN = LocalTraining(momentum=0)


@pytest.mark.parametrize(
    ("local", "hooks"),
    [
        (LocalTraining(momentum=0.9), LocalHooks()),
        (LocalTraining(momentum=0, weight_decay=0.1), LocalHooks()),
        (LocalTraining(momentum=0, clip_norm=1.0), LocalHooks()),
        (LocalTraining(momentum=0, precision="bf16"), LocalHooks()),
        (LocalTraining("adam", momentum=0), LocalHooks()),
        (PLAIN, LocalHooks(observe=(lambda gradients: None,))),
        (PLAIN, LocalHooks(correct=(lambda gradients: gradients,))),
        (
            PLAIN,
            LocalHooks(loss=lambda model, inputs, labels: model(inputs).square().sum()),
        ),
    ],
)
def test_gradients_are_there_for_all_who_need_them(local: LocalTraining, hooks: LocalHooks) -> None:
    model, parameters = built(once)
    assert not isinstance(descent_of(model, parameters, 0.1, local, hooks), PlainDescent)
    assert isinstance(descent_of(model, parameters, 0.1, PLAIN, LocalHooks()), PlainDescent)


@pytest.mark.slow
def test_clients_of_a_wide_network_sum_to_the_same_bits_in_any_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[torch.Tensor] = []
    add = fused_sgd._add_product
    monkeypatch.setattr(fused_sgd, "_add_product", lambda *args: added.append(args[0]) or add(*args))
    wide = ("model.name=mlp", f"model.options={{hidden: [{WIDTH}, {WIDTH}]}}", "method.name=fedavg")
    scenario = build_scenario(
        tiny_settings(*wide, "training.momentum=0", "training.clip_norm=null", "training.pack=1")
    )
    planned = plan_round(scenario)
    whole = ClientTrainer(scenario.workload).train(planned.assignments, planned.broadcast)
    parts = Accumulator()
    for place in reversed(range(len(planned.assignments))):
        parts.add(
            ClientTrainer(scenario.workload).train(planned.assignments.take(np.array([place])), planned.broadcast)
        )
    assert added
    digests = [tensors.digest(found.sums["update"].totals) for found in (whole, parts.total())]
    assert digests[0] == digests[1]
