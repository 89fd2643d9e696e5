import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian

from raysim.client import evaluation
from raysim.pruning import submodel
from raysim.pruning.overlap import masked
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.proof import randomise
from raysim.simulation import loss_surface
from raysim.simulation.loss_surface import LossSurface
from raysim.task.table import TASKS
from tests.oracles import DepthwiseNet, random_mask

GENERATOR = torch.Generator().manual_seed(3)
TASK = TASKS["classification"]
ROWS = 250
"""More than two passes."""


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def quadratic(matrix: torch.Tensor, slope: torch.Tensor) -> LossSurface:
    """F(w) = w A w / 2 + b w on every row, and a weight `unused` that it does not depend on."""

    def summed(weights, inputs, labels):
        w = weights["w"].flatten()
        return len(labels) * (w @ matrix @ w / 2 + slope @ w)

    return LossSurface(summed, ("w", "unused"), torch.zeros(ROWS, 1), torch.zeros(ROWS, dtype=torch.int64))


def test_derivatives_of_a_quadratic() -> None:
    half, b, w, v, unused = draw(6, 6), draw(6), draw(2, 3), draw(2, 3), draw(2)
    matrix = half + half.T
    surface, weights = quadratic(matrix, b), {"w": w, "unused": unused}
    assert surface.value(weights) == pytest.approx(float(w.flatten() @ matrix @ w.flatten() / 2 + b @ w.flatten()))
    gradient = surface.gradient(weights)
    torch.testing.assert_close(gradient["w"].flatten(), matrix @ w.flatten() + b)
    assert not gradient["unused"].any()
    product = surface.hessian_product(weights, {"w": v, "unused": unused})
    torch.testing.assert_close(product["w"].flatten(), matrix @ v.flatten())
    assert not product["unused"].any()
    along = surface.curvatures(weights, [{"w": w, "unused": unused}, {"w": v, "unused": unused}])
    assert along == pytest.approx([float(x.flatten() @ matrix @ x.flatten()) for x in (w, v)])
    largest = loss_surface.largest_curvature(surface, weights, 60, np.random.default_rng(0))
    assert largest == pytest.approx(float(torch.linalg.eigvalsh(matrix).abs().max()), rel=1e-2)


def test_sums_over_the_diagonal_are_exact_where_there_is_nothing_else_and_right_on_average() -> None:
    half, z, weights = draw(5, 5), draw(5), {"w": draw(5), "unused": draw(1)}
    matrix, factors = half + half.T, [{"w": z, "unused": draw(1)}, {"w": z / 2, "unused": draw(1)}]
    expected = float(matrix.diagonal() @ z**2)
    rng = np.random.default_rng(0)
    alone = quadratic(torch.diag(matrix.diagonal()), draw(5))
    assert loss_surface.diagonal_sums(alone, weights, factors, 1, rng) == pytest.approx([expected, expected / 4])
    found, _ = loss_surface.diagonal_sums(quadratic(matrix, draw(5)), weights, factors, 100, rng)
    spread = float(((matrix * z[:, None] * z) - torch.diag(matrix.diagonal() * z**2)).norm()) * 2**0.5
    assert found == pytest.approx(expected, abs=4 * spread / 100**0.5)


@pytest.mark.slow
def test_derivatives_of_a_model_are_those_of_its_mean_loss_on_all_rows_at_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Dropout(0.5), nn.Linear(3, 3, bias=False)).train()
    inputs, labels = draw(ROWS, 4).float(), torch.randint(0, 3, (ROWS,), generator=GENERATOR)
    surface = loss_surface.of_model(TASK, model, inputs, labels)
    weights = loss_surface.in_float64(dict(model.state_dict()))
    scored = evaluation.score(TASK, model, inputs, labels)
    assert surface.value(weights) == pytest.approx(scored.mean_loss, rel=1e-5)

    frame = model.double().eval()
    names, shapes = list(weights), [weights[name].shape for name in weights]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        pieces = torch.split(flat, [shape.numel() for shape in shapes])
        named = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        return nn.functional.cross_entropy(functional_call(frame, named, (inputs.double(),)), labels)

    flat = torch.cat([weights[name].flatten() for name in names])
    matrix, v = hessian(loss)(flat), draw(len(flat))
    direction = {
        name: piece.view(shape)
        for name, piece, shape in zip(names, torch.split(v, [s.numel() for s in shapes]), shapes, strict=True)
    }
    product = surface.hessian_product(weights, direction)
    torch.testing.assert_close(torch.cat([product[name].flatten() for name in names]), matrix @ v)
    gradient = surface.gradient(weights)
    torch.testing.assert_close(torch.cat([gradient[n].flatten() for n in names]), torch.func.grad(loss)(flat))


def test_looking_at_a_model_leaves_it_unchanged() -> None:
    model = DepthwiseNet().train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    surface = loss_surface.of_model(TASK, model, draw(12, 3, 8, 8), torch.arange(12) % 5)
    weights = loss_surface.in_float64(dict(model.state_dict()))
    surface.gradient(weights)
    surface.hessian_product(weights, {name: weights[name] for name in surface.names})
    assert model.training
    assert all(layer.training for layer in model.modules())
    for key, tensor in model.state_dict().items():
        assert tensor.dtype == before[key].dtype
        assert torch.equal(tensor, before[key])
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_a_masked_model_with_batch_norm_loses_what_its_submodel_does() -> None:
    model = DepthwiseNet().eval()
    randomise(model, torch.Generator().manual_seed(0))
    inputs, labels = draw(20, 3, 8, 8).float(), torch.arange(20) % 5
    plan = ChannelPlan.trace(model, inputs, [])
    surface = loss_surface.of_model(TASK, model, inputs, labels)
    for seed in range(3):
        mask = random_mask(plan, seed)
        small = submodel.extract(model, plan, mask)
        expected = evaluation.score(TASK, small, inputs, labels).mean_loss
        weights = masked(plan, mask, loss_surface.in_float64(dict(model.state_dict())))
        assert surface.value(weights) == pytest.approx(expected, rel=1e-4)


def test_variance_is_the_mean_squared_distance_of_minibatch_gradients() -> None:
    model = nn.Linear(4, 3)
    inputs, labels = draw(11, 4), torch.arange(11) % 3
    surface = loss_surface.of_model(TASK, model, inputs, labels)
    weights = loss_surface.in_float64(dict(model.state_dict()))
    gradient, variance = loss_surface.gradient_and_variance(surface, weights, 5)
    sizes, expected = [5, 6], 0.0  # the last row joins the batch before
    for size, start in zip(sizes, (0, 5), strict=True):
        own = surface.on(inputs[start : start + size], labels[start : start + size]).gradient(weights)
        expected += size / 11 * sum(float(((own[name] - gradient[name]) ** 2).sum()) for name in own)
    assert variance == pytest.approx(expected)
    for name, value in surface.gradient(weights).items():
        torch.testing.assert_close(gradient[name], value)
    assert loss_surface.gradient_and_variance(surface, weights, 11)[1] == 0
