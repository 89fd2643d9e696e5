import copy
import functools

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from raysim.core.errors import UntraceableError
from raysim.models import zoo
from raysim.pruning import submodel
from raysim.pruning.groups import to_json
from raysim.pruning.masks import Mask, keep_top
from raysim.pruning.plan import ChannelPlan
from tests.oracles import BranchNet, DepthwiseNet, FlippedNet, GatedNet


@functools.cache
def traced(name: str, **options: int) -> tuple[nn.Module, ChannelPlan]:
    model = zoo.build(name, options, zoo.DataForm((3, 32, 32), 10), seed=0)
    return model, ChannelPlan.trace(model, torch.randn(2, 3, 32, 32), zoo.MODELS[name].keep_whole)


def parameters_at(name: str, keep_ratio: float) -> int:
    model, plan = traced(name)
    mask = keep_top(plan, np.zeros(plan.num_units), keep_ratio)
    return sum(parameter.numel() for parameter in submodel.extract(model, plan, mask).parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keep_ratio", "millions"), [(1.0, 15.120), (0.75, 8.615), (0.5, 3.950), (0.25, 1.123), (0.1, 0.314)]
)
def test_vgg16_has_the_published_sizes(keep_ratio: float, millions: float) -> None:
    assert round(parameters_at("vgg16", keep_ratio) / 1e6, 3) == millions


@pytest.mark.slow
def test_resnet32_has_the_published_size_and_keeps_its_residual_stream() -> None:
    assert parameters_at("resnet32", 1.0) == 466_906
    model, plan = traced("resnet32")
    assert [group.name for group in plan.groups] == [
        f"stage{stage}_block{block}.conv1" for stage in (1, 2, 3) for block in range(1, 6)
    ]
    everything = ChannelPlan.trace(model, torch.randn(2, 3, 32, 32), ())
    assert len(everything.groups) == len(plan.groups) + 3


@pytest.mark.slow
@pytest.mark.parametrize("depth", [8, 56])
def test_every_block_of_a_residual_network_can_be_cut(depth: int) -> None:
    blocks = (depth - 2) // 6
    _, plan = traced("resnet", depth=depth)
    assert [group.name for group in plan.groups] == [
        f"stage{stage}_block{block}.conv1" for stage in (1, 2, 3) for block in range(1, blocks + 1)
    ]
    assert all("since keep_whole names" in reason for reason in plan.unprunable.values())


def test_flatten_before_a_linear_layer_gives_a_unit_all_its_pixels() -> None:
    plan = ChannelPlan.trace(DepthwiseNet(), torch.randn(2, 3, 8, 8))
    pointwise = next(group for group in plan.groups if group.name == "pointwise")
    reader = next(slot for slot in pointwise.slots if slot.role == "consumer")
    assert (reader.key, reader.dim) == ("classifier.weight", 1)
    np.testing.assert_array_equal(reader.indices[2], np.arange(128, 192))


def test_depthwise_channels_belong_to_the_layer_that_feeds_them() -> None:
    plan = ChannelPlan.trace(DepthwiseNet(), torch.randn(2, 3, 8, 8))
    assert [group.name for group in plan.groups] == ["first", "pointwise"]
    keys = {slot.key for slot in plan.groups[0].slots}
    assert {"first.weight", "norm.running_var", "depthwise.weight", "pointwise.weight"} <= keys


def test_concatenated_and_added_channels_are_traced() -> None:
    plan = ChannelPlan.trace(BranchNet(), torch.randn(2, 3, 8, 8))
    assert {group.name: group.size for group in plan.groups} == {"left": 5, "right": 4, "joined": 7}
    right = next(group for group in plan.groups if group.name == "right")
    reader = next(slot for slot in right.slots if slot.role == "consumer")
    np.testing.assert_array_equal(reader.indices.ravel(), [5, 6, 7, 8])


def test_the_classifier_is_the_output_and_never_prunable() -> None:
    plan = ChannelPlan.trace(DepthwiseNet(), torch.randn(2, 3, 8, 8))
    assert plan.outputs is not None
    assert (plan.outputs.name, plan.outputs.size) == ("classifier", 5)
    assert "classifier" not in plan.units


def test_a_group_the_tracer_gets_wrong_is_left_whole_with_the_reason() -> None:
    plan = ChannelPlan.trace(FlippedNet(), torch.randn(2, 3, 8, 8))
    assert [group.name for group in plan.groups] == ["second"]
    assert "cutting it changes what the rest computes" in plan.unprunable["first"]


def test_groups_of_channels_without_a_common_position_are_left_whole() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.GroupNorm(4, 12), nn.Conv2d(12, 6, 1, groups=3), nn.Flatten(), nn.Linear(216, 4)
    )
    plan = ChannelPlan.trace(model, torch.randn(2, 3, 8, 8))
    assert plan.unprunable == {"0": "its channels can only be kept or dropped all together"}
    assert [group.name for group in plan.groups] == ["2"]


def test_a_residual_stream_can_be_kept_whole_and_gates_are_none() -> None:
    resnet, _ = traced("resnet32")
    plan = ChannelPlan.trace(resnet, torch.randn(2, 3, 32, 32), keep_residual=True)
    assert [group.name for group in plan.groups] == [
        f"stage{stage}_block{block}.conv1" for stage in (1, 2, 3) for block in range(1, 6)
    ]
    assert set(plan.unprunable.values()) == {"residual stream"}
    gated = ChannelPlan.trace(GatedNet(), torch.randn(2, 3, 8, 8), keep_residual=True)
    assert [group.name for group in gated.groups] == ["first"]


def test_what_cannot_be_traced_is_refused_with_layer_and_reason() -> None:
    shuffle = torchvision.models.shufflenet_v2_x0_5(num_classes=10)
    with pytest.raises(UntraceableError, match=r"at layer 'stage.*ZeroDivisionError"):
        ChannelPlan.trace(shuffle, torch.randn(2, 3, 32, 32))
    with pytest.raises(UntraceableError, match=r"does not run .* at layer 'first': RuntimeError"):
        ChannelPlan.trace(DepthwiseNet(), torch.randn(2, 4, 8, 8))
    with pytest.raises(UntraceableError, match="holds no floating-point tensor"):
        ChannelPlan.trace(DepthwiseNet(), torch.randn(2, 3, 8, 8), forward=lambda model, x: model(x).argmax(1))


def test_tracing_leaves_the_model_alone() -> None:
    model = DepthwiseNet().train()
    model.first.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    ChannelPlan.trace(model, torch.randn(2, 3, 8, 8))
    assert model.training
    assert not model.first.weight.requires_grad
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_plan_survives_json(tmp_path) -> None:
    model = BranchNet()
    plan = ChannelPlan.trace(model, torch.randn(2, 3, 8, 8))
    plan.save(tmp_path / "plan.json")
    loaded = ChannelPlan.load(tmp_path / "plan.json")
    assert to_json(loaded) == to_json(plan)
    mask = Mask(np.arange(plan.num_units) % 2 == 0)
    small, again = (submodel.extract(model, each, mask).state_dict() for each in (plan, loaded))
    assert all(torch.equal(small[key], again[key]) for key in small)
