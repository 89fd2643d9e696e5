import numpy as np
import pytest
import torch
from torch import nn

from raysim.pruning import submodel
from raysim.pruning.masks import Mask
from raysim.pruning.plan import ChannelPlan
from tests.oracles import DepthwiseNet, random_mask


def depthwise_case():
    model = DepthwiseNet()
    plan = ChannelPlan.trace(model, torch.randn(2, 3, 8, 8))
    return model, plan, random_mask(plan, 3)


def test_the_submodel_is_an_ordinary_independent_module() -> None:
    model, plan, mask = depthwise_case()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    small = submodel.extract(model, plan, mask)
    kept = int(mask.kept[plan.units["first"]].sum())
    assert (small.first.out_channels, small.depthwise.groups, small.norm.num_features) == (kept, kept, kept)
    assert small.pointwise.in_channels == kept
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    small(torch.randn(4, 3, 8, 8)).sum().backward()
    optimizer.step()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_dense_mask_cuts_nothing() -> None:
    _, plan, _ = depthwise_case()
    assert submodel.cut_for(plan, Mask(np.ones(plan.num_units, dtype=np.bool_))) == {}


def test_skeletons_are_built_once_per_width() -> None:
    model, plan, mask = depthwise_case()
    cache = submodel.SubmodelCache(model, plan)
    first = cache.module_for(mask, submodel.cut_for(plan, mask))
    other = Mask(mask.kept.copy())
    units = plan.units["first"]
    other.kept[units] = np.roll(mask.kept[units], 1)
    assert cache.module_for(other, submodel.cut_for(plan, other)) is first


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(5, 4, 3, 3), (5, 4, 1, 1), (5, 4, 2, 0)])
@pytest.mark.parametrize("cut_dims", [(0,), (1,), (0, 1), (0, 1, 2)])
def test_every_way_to_take_put_and_add_does_what_indexing_does(memory_format, dtype, shape, cut_dims) -> None:
    kept = {0: torch.tensor([0, 3, 4]), 1: torch.tensor([1, 2]), 2: torch.tensor([0])}
    dims = {dim: kept[dim] for dim in cut_dims}
    full = torch.randn(shape).mul(100).to(dtype).contiguous(memory_format=memory_format)
    where = submodel.region(dims, 4)
    expected = full[where]
    assert torch.equal(submodel.take(full, dims), expected)
    out = torch.empty_like(expected)
    submodel.take(full, dims, out)
    assert torch.equal(out, expected)
    for write, result in ((submodel.put, expected * 2), (submodel.add, expected * 3)):
        changed, wanted = full.clone(), full.clone()
        write(changed, dims, expected * 2)
        wanted[where] = result
        assert torch.equal(changed, wanted)


def test_frozen_parameters_stay_frozen_and_types_are_kept() -> None:
    model, plan, mask = depthwise_case()
    model.first.weight.requires_grad_(False)
    small = submodel.extract(model.double(), plan, mask)
    assert not small.first.weight.requires_grad
    assert small.norm.weight.requires_grad
    assert {tensor.dtype for tensor in small.parameters()} == {torch.float64}
    assert small.norm.num_batches_tracked.dtype == torch.int64


def test_tied_weights_stay_tied_in_the_skeleton() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.Linear(6, 6)
            self.decode = nn.Linear(6, 6)
            self.decode.weight = self.encode.weight

    model = Tied()
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    copy = submodel.skeleton(model, shapes)
    assert copy.decode.weight is copy.encode.weight
    assert copy.decode.weight is not model.encode.weight
