"""Networks that PyTorch trains and that are none of the usual kinds, for inputs of 1 x 8 x 8 and ten classes."""

import warnings
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, spectral_norm, weight_norm


def wrapped(middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), middle, nn.ReLU(), nn.Linear(32, 10))


def parametrized(kind: str) -> nn.Module:
    return wrapped(getattr(parametrizations, kind)(nn.Linear(32, 32)))


def hooked(kind: str) -> nn.Module:
    """Before parametrizations, hooks computed the weight."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return wrapped({"weight_norm": weight_norm, "spectral_norm": spectral_norm}[kind](nn.Linear(32, 32)))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x: torch.Tensor) -> Any:
        return self.layers(x)


class LooksAtLogits(Plain):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.layers(x)
        assert not torch.isnan(y).any(), "nan in the logits"
        return y


class ScalesByItem(Plain):
    def forward(self, x: torch.Tensor) -> Any:
        return self.layers(x / max(1.0, x.abs().max().item()))


class RepeatsByData(Plain):
    def forward(self, x: torch.Tensor) -> Any:
        times = int(x.abs().max().item()) % 3 + 1
        return sum(self.layers(x) for _ in range(times)) / times


class SelectsNonzero(Plain):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.layers(x)
        return y + 0 * y[(y > 0).nonzero(as_tuple=True)].sum()


class HoldsATensor(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.full((64,), 0.5)  # neither parameter nor buffer

    def forward(self, x: torch.Tensor) -> Any:
        return self.layers(x.flatten(1) * self.scale)


class TakesClassesByIndex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.index = nn.Parameter(torch.arange(64), requires_grad=False)
        self.last = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(x.flatten(1)[:, self.index])


class TwoPrecisions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 32), nn.Linear(32, 10).double()

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(functional.relu(self.first(x.flatten(1))).double()).float()


class BareParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Parameter(torch.randn(64, 32) * 0.1), nn.Parameter(torch.randn(32, 10) * 0.1)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: torch.Tensor) -> Any:
        return functional.relu(x.flatten(1) @ self.first) @ self.last * self.scale


class EmptyParameter(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(0, 4))


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return 2 * grad * ctx.saved_tensors[0]


class OwnFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(Square.apply(self.first(x.flatten(1))))


class OwnLayer(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * 0.1)
        self.gate = nn.Parameter(torch.ones(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ni,oi->no", x, self.weight) * self.gate.sigmoid()


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.last = nn.LSTMCell(8, 24), nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> Any:
        hidden = state = x.new_zeros(len(x), 24)
        for row in range(8):
            hidden, state = self.cell(x[:, 0, row], (hidden, state))
        return self.last(hidden)


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pairs, self.last = nn.Bilinear(8, 8, 24), nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(self.pairs(x[:, 0, 0], x[:, 0, 1]))


class TrainReturnsNothing(Plain):
    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)


class DrawsInEvaluation(Plain):
    def forward(self, x: torch.Tensor) -> Any:
        return self.layers(x + 0.5 * torch.randn_like(x))


class ChangesItsInput(Plain):
    def forward(self, x: torch.Tensor) -> Any:
        x -= 0.5
        return self.layers(x)


class ShiftsItsInput(Plain):
    """Computes the same as `ChangesItsInput`."""

    def forward(self, x: torch.Tensor) -> Any:
        return self.layers(x - 0.5)


def convolution(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))


def mean_of_all_batches() -> nn.Module:
    return convolution(nn.BatchNorm2d(8, momentum=None))


def frozen_first() -> nn.Module:
    model = wrapped(nn.Linear(32, 32))
    model.get_submodule("1").requires_grad_(False)
    return model


class Adapted(nn.Module):
    """A frozen layer with trained factors of low rank beside it."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) * 0.1)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + x @ self.down.t() @ self.up.t()


def adapted() -> nn.Module:
    first, second = Adapted(nn.Linear(64, 24)), Adapted(nn.Linear(24, 24))
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), nn.Linear(24, 10))


def lora() -> nn.Module:
    """Adapters of peft, and a head that is trained."""
    from raysim.models.adapters import Adapter, with_adapters

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 10))
    return with_adapters(model, Adapter(rank=6, targets=("1", "3"), train_also=("5",)), seed=0)


def frozen_between() -> nn.Module:
    """A frozen convolution and norm between trained ones; the norm's statistics still change."""
    frozen = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)).requires_grad_(False)
    last = nn.Sequential(nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), frozen, last)


def frozen_but_last() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10)
    )
    for layer in list(model)[:-1]:
        layer.requires_grad_(False)
    return model


class FrozenShared(nn.Module):
    """Two layers have one frozen weight; their biases are trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.other, self.last = (nn.Linear(*size) for size in SIZES)
        self.other.weight = self.one.weight
        self.one.weight.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> Any:
        hidden = functional.relu(self.first(x.flatten(1)))
        return self.last(functional.relu(self.other(functional.relu(self.one(hidden)))))


SIZES = ((64, 12), (12, 12), (12, 12), (12, 10))
FROZEN = {
    "adapted": adapted,
    "lora": lora,
    "frozen between": frozen_between,
    "frozen but last": frozen_but_last,
    "frozen and shared": FrozenShared,
}


def own_layer() -> nn.Module:
    return wrapped(OwnLayer(32, 32))


def compiled() -> Any:
    return torch.compile(Plain())


TRAINED = {
    "weight norm": lambda: parametrized("weight_norm"),
    "spectral norm": lambda: parametrized("spectral_norm"),
    "orthogonal": lambda: parametrized("orthogonal"),
    "weight norm by hooks": lambda: hooked("weight_norm"),
    "spectral norm by hooks": lambda: hooked("spectral_norm"),
    "looks at logits": LooksAtLogits,
    "scales by item": ScalesByItem,
    "repeats by data": RepeatsByData,
    "selects nonzero": SelectsNonzero,
    "holds a tensor": HoldsATensor,
    "integer parameter": TakesClassesByIndex,
    "two precisions": TwoPrecisions,
    "bare parameters": BareParameters,
    "an empty parameter": EmptyParameter,
    "own function": OwnFunction,
    "own layer": own_layer,
    "LSTM cell": Cell,
    "train returns nothing": TrainReturnsNothing,
    "draws in evaluation": DrawsInEvaluation,
    "mean of all batches": mean_of_all_batches,
    "frozen first layer": frozen_first,
    "compiled": compiled,
}


class TrainsOtherwise(Plain):
    """In training mode it gives `form(logits)`."""

    def forward(self, x: torch.Tensor) -> Any:
        y = self.layers(x)
        return self.form(y) if self.training else y

    def form(self, y: torch.Tensor) -> Any:
        return y, y


class FewerClassesInTraining(TrainsOtherwise):
    def form(self, y: torch.Tensor) -> Any:
        return y[:, :5]


class NamedInTraining(TrainsOtherwise):
    def form(self, y: torch.Tensor) -> Any:
        return {"logits": y}


class RaisesInTraining(TrainsOtherwise):
    def form(self, y: torch.Tensor) -> Any:
        raise RuntimeError("for inference only")


class Detached(Plain):
    def forward(self, x: torch.Tensor) -> Any:
        return self.layers(x).detach()


class OwnGenerator(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.draws = torch.Generator().manual_seed(1)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layers(x + 0.01 * torch.randn(x.shape, generator=self.draws))


class ExtraState(Plain):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 32, dtype=torch.complex64), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(self.first(x.flatten(1).to(torch.complex64)).abs())


class NoParameters(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return x.flatten(1)[:, :10]


class ChangesWhatIsFrozen(Plain):
    """Keeps a running mean in a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(64), requires_grad=False)

    def forward(self, x: torch.Tensor) -> Any:
        if self.training:
            self.mean.lerp_(x.flatten(1).mean(0), 0.1)
        return self.layers(x)


def all_frozen() -> nn.Module:
    return Plain().requires_grad_(False)


def all_double() -> nn.Module:
    return Plain().double()


REFUSED = {
    "a tuple in training": (TrainsOtherwise, "in training it gives a tuple, in evaluation a tensor (2, 10)"),
    "fewer classes in training": (FewerClassesInTraining, "in training it gives a tensor (2, 5)"),
    "a mapping in training": (NamedInTraining, "in training it gives a dict"),
    "raises in training": (RaisesInTraining, "in training mode it raises RuntimeError: for inference only"),
    "detached": (Detached, "its loss has no gradient"),
    "a generator of its own": (OwnGenerator, "'draws' is a random generator of its own"),
    "extra state": (ExtraState, "'_extra_state' in its state dict is a dict"),
    "complex": (Complex, "'first.weight' in its state dict is complex"),
    "no parameters": (NoParameters, "has no parameters"),
    "changes what is frozen": (ChangesWhatIsFrozen, "its forward changes 'mean'"),
    "all frozen": (all_frozen, "no parameter that is trained"),
    "all in double precision": (all_double, "Float and Double"),
}
