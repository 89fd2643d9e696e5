"""Whole blocks as units of a plan: found beside identity shortcuts, dropped and put back; old files still read."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models as families

from raysim.core.errors import SettingError
from raysim.models import cost, zoo
from raysim.models.steps import add_steps
from raysim.pruning import coverage
from raysim.pruning.blocks import branch_ends
from raysim.pruning.costs import CostTable
from raysim.pruning.masks import Mask
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.proof import randomise
from tests.oracles import held_entries, norms_over_kept_channels, random_mask


class PreNorm(nn.Module):
    """`x + F(norm(x))`, as in transformers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, channels)
        self.wide = nn.Conv2d(channels, 12, 1)
        self.back = nn.Conv2d(12, channels, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + self.back(self.wide(self.norm(inputs)).relu())


class PostNorm(nn.Module):
    """`relu(x + F(x))`, as in ResNets; with a projection in place of x where channels differ."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.project = nn.Sequential() if channels == out else nn.Sequential(nn.Conv2d(channels, out, 1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.norm2(self.conv2(self.norm1(self.conv1(inputs)).relu()))
        return (hidden + self.project(inputs)).relu()


class Scaled(nn.Module):
    """A residual block whose step is a single number, which cannot be cut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        self.after = nn.Sequential(nn.ReLU())
        self.step = nn.Parameter(torch.tensor(1.0))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + self.step * self.after(self.conv(inputs))


class ResidualNet(nn.Module):
    """Blocks of all kinds: the second, third and fifth can be dropped; the last one is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.stage = nn.Sequential(PostNorm(6, 8), PostNorm(8, 8), PostNorm(8, 8))
        self.scaled = Scaled(8)
        self.inverted = PreNorm(8)
        self.twice = PreNorm(8)
        self.classifier = nn.Linear(8, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.inverted(self.scaled(self.stage(self.stem(inputs))))
        return self.classifier(self.twice(self.twice(hidden)).mean((2, 3)))


def small_net() -> tuple[nn.Module, tuple[int, ...]]:
    return ResidualNet(), (3, 8, 8)


def resnet32() -> tuple[nn.Module, tuple[int, ...]]:
    return zoo.build("resnet32", {}, zoo.DataForm((3, 8, 8), 10), seed=0), (3, 8, 8)


def vit() -> tuple[nn.Module, tuple[int, ...]]:
    return families.VisionTransformer(32, 16, num_layers=3, num_heads=4, hidden_dim=32, mlp_dim=48), (3, 32, 32)


def convnext() -> tuple[nn.Module, tuple[int, ...]]:
    return families.convnext_tiny(num_classes=10), (3, 32, 32)


def mobilenet() -> tuple[nn.Module, tuple[int, ...]]:
    return families.mobilenet_v2(num_classes=10), (3, 32, 32)


NETWORKS = [
    small_net,
    pytest.param(resnet32, marks=pytest.mark.slow),
    pytest.param(vit, marks=pytest.mark.slow),
    pytest.param(convnext, marks=pytest.mark.long),
    pytest.param(mobilenet, marks=pytest.mark.long),
]
NUMBER = {"small_net": 3, "resnet32": 13, "vit": 3, "convnext": 18, "mobilenet": 10}


def blocks_of(plan: ChannelPlan) -> list[str]:
    return [group.name for group in plan.groups if group.kind == "block"]


def with_blocks_dropped(plan: ChannelPlan, seed: int, share: float = 0.5) -> Mask:
    """A mask of random channels, of which a random share of the blocks is dropped, at least one."""
    kept, rng, names = random_mask(plan, seed).kept.copy(), np.random.default_rng(seed), blocks_of(plan)
    dropped = rng.permutation(names)[: max(1, round(share * len(names)))]
    for name in dropped:
        kept[plan.units[name]] = False
    return Mask(kept)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[str, nn.Module, ChannelPlan, tuple[int, ...]]:
    model, shape = request.param()
    return request.param.__name__, model, ChannelPlan.trace(model, torch.randn(2, *shape), blocks=True), shape


def test_blocks_beside_identity_shortcuts_are_found_and_no_others(network) -> None:
    name, model, plan, shape = network
    without = ChannelPlan.trace(model, torch.randn(2, *shape))
    assert len(blocks_of(plan)) == NUMBER[name]
    assert [group.name for group in plan.groups if group.kind == "channel"] == [
        group.name for group in without.groups
    ]
    if name == "small_net":
        assert blocks_of(plan) == ["stage.1", "stage.2", "inverted"]
        assert "3 blocks can be dropped: stage.1, stage.2, inverted" in plan.summary()
        assert f"{len(without.groups)} channel groups with {without.num_units} units" in plan.summary()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_law_1_blocks_are_cut_and_put_back(network, share: float) -> None:
    _, model, plan, _ = network
    mask = with_blocks_dropped(plan, 1, share)
    full = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    compact = plan.extract(model, mask)
    trained = {key: tensor + 1 for key, tensor in compact.state_dict().items()}
    result, covered = plan.reconstruct(trained, into=full, mask=mask)
    held = held_entries(plan, mask, full)
    counts = coverage.count_coverage(plan, [mask, Mask.whole(plan)], np.array([7, 2]))
    for key, tensor in full.items():
        assert torch.equal(covered[key].expand(tensor.shape), held[key]), key
        assert torch.equal(result[key], torch.where(held[key], tensor + 1, tensor)), key
        assert torch.equal(counts[key].expand(tensor.shape), torch.where(held[key], 9.0, 2.0).double()), key
    dropped = [name for name in blocks_of(plan) if not mask.kept[plan.units[name]].any()]
    assert dropped
    for name in dropped:
        assert sum(parameter.numel() for parameter in compact.get_submodule(name).parameters()) == 0


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_law_2_without_a_block_the_model_computes_what_it_does_with_zeros(network, share: float) -> None:
    _, model, plan, shape = network
    model = copy.deepcopy(model).double().eval()
    randomise(model, torch.Generator().manual_seed(1))
    mask = with_blocks_dropped(plan, 2, share)
    inputs = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    params = dict(model.state_dict())
    held = held_entries(plan, mask, params)
    with torch.no_grad():
        whole, small = model(inputs), pickle.loads(pickle.dumps(plan.extract(model, mask)))(inputs)
        norms_over_kept_channels(model, held)
        for key, tensor in params.items():
            tensor.mul_(held[key])
        expected = model(inputs)
    torch.testing.assert_close(small, expected, rtol=1e-8, atol=1e-9 * float(expected.abs().max()))
    assert not torch.allclose(small, whole)


def test_law_7_a_dropped_block_costs_nothing(network) -> None:
    """The costs are those of a network in which the block has been replaced by the identity."""
    _, model, plan, shape = network
    name = blocks_of(plan)[-1]
    mask = Mask.whole(plan)
    mask.kept[plan.units[name]] = False
    without = copy.deepcopy(model)
    parent, _, own = name.rpartition(".")
    setattr(without.get_submodule(parent), own, nn.Identity())
    found, expected = CostTable(model, plan, shape).of(mask), cost.count(without, shape)
    for figure in ("parameters", "train_flops", "activation_bytes"):
        assert getattr(found, figure) == getattr(expected, figure), figure


def test_channels_are_chosen_as_without_blocks_and_masks_may_drop_all_of_these() -> None:
    model, shape = small_net()
    plan = ChannelPlan.trace(model, torch.randn(2, *shape), blocks=True)
    scores = {group.name: np.zeros(group.size) for group in plan.groups}
    for mask in (plan.random_mask(0.1), plan.keep_top(scores, 0.1)):
        assert all(mask.kept[plan.units[name]].all() for name in blocks_of(plan))
    none = Mask(np.zeros(plan.num_units, dtype=np.bool_))
    with pytest.raises(SettingError, match=f"mask keeps no unit of group '{plan.groups[0].name}'"):
        plan.extract(model, none)


def test_a_plan_of_blocks_is_saved_with_the_number_of_its_format_and_older_files_are_read(tmp_path) -> None:
    model, shape = small_net()
    plan = ChannelPlan.trace(model, torch.randn(2, *shape), blocks=True)
    plan.save(tmp_path / "plan.json")
    loaded, content = ChannelPlan.load(tmp_path / "plan.json"), json.loads((tmp_path / "plan.json").read_text())
    assert content["format"] == 3
    assert [(group.name, group.kind) for group in loaded.groups] == [
        (group.name, group.kind) for group in plan.groups
    ]
    mask = with_blocks_dropped(plan, 3)
    ours, theirs = (each.extract(model, mask).state_dict() for each in (plan, loaded))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)

    old = {name: value for name, value in content.items() if name != "format"}
    old["groups"] = [group for group in content["groups"] if group.pop("kind") == "channel"]
    (tmp_path / "old.json").write_text(json.dumps(old | {"outputs": None}))
    read = ChannelPlan.load(tmp_path / "old.json")
    assert [group.name for group in read.groups] == [group["name"] for group in old["groups"]]
    assert {group.kind for group in read.groups} == {"channel"}


@pytest.mark.parametrize(
    ("change", "said"),
    [({"format": 4}, "format=4 is not known; allowed: 1 to 3"), ({"kind": "rank"}, "kind='rank' of group")],
)
def test_a_file_of_a_later_format_is_refused(tmp_path, change: dict, said: str) -> None:
    model, shape = small_net()
    ChannelPlan.trace(model, torch.randn(2, *shape)).save(tmp_path / "plan.json")
    content = json.loads((tmp_path / "plan.json").read_text())
    content |= change if "format" in change else {"groups": [content["groups"][0] | change]}
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(SettingError, match="does not hold a channel plan") as error:
        ChannelPlan.load(tmp_path / "plan.json")
    assert said in str(error.value)


def test_a_branch_ends_in_the_last_layer_with_weights_before_the_addition() -> None:
    model, shape = small_net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ends = branch_ends(model, torch.zeros(2, *shape))
    assert ends == ["stage.1.norm2", "stage.2.norm2", "inverted.back"]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert branch_ends(nn.Embedding(3, 4), torch.zeros(2, 3)) == [], "it does not run"


def test_a_step_scales_its_branch_and_leaves_the_plan_as_it_was() -> None:
    model, shape = small_net()
    block, inputs = model.get_submodule("inverted"), torch.randn(2, 8, 4, 4)
    plain, plan = block(inputs) - inputs, ChannelPlan.trace(model, torch.randn(2, *shape), blocks=True)
    add_steps(model, branch_ends(model, torch.zeros(2, *shape)))
    block.back.step.data.fill_(-3.0)
    torch.testing.assert_close(block(inputs) - inputs, -3 * plain)
    stepped = ChannelPlan.trace(model, torch.randn(2, *shape), blocks=True)
    assert [(each.name, each.size) for each in stepped.groups] == [(each.name, each.size) for each in plan.groups]
    own = {slot.key for group in stepped.groups if group.name == "inverted" for slot in group.slots}
    assert "inverted.back.step" in own
