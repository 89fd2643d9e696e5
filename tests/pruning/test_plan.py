import copy
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from raysim import ChannelPlan, Mask, SettingError
from tests.oracles import BranchNet, DepthwiseNet, GroupedNet, SharedNet, held_entries, random_mask

CASE = tuple[nn.Module, ChannelPlan]


@pytest.fixture(scope="module")
def case() -> CASE:
    model = DepthwiseNet()
    return model, ChannelPlan.trace(model, torch.randn(2, 3, 8, 8))


def test_a_submodel_is_cut_trained_and_put_back_without_an_experiment(case: CASE, tmp_path) -> None:
    model, plan = case
    scores = {group.name: torch.arange(group.size) for group in plan.groups}
    mask = plan.keep_top(scores, keep_ratio=0.5)
    submodel = plan.extract(model, mask)
    torch.optim.SGD(submodel.parameters(), 0.1).step()
    params, coverage = plan.reconstruct(submodel.state_dict(), into=model.state_dict(), mask=mask)
    assert submodel.first.weight.shape == (4, 3, 3, 3)
    assert list(params) == list(model.state_dict()) == list(coverage)
    assert torch.equal(params["first.weight"], model.first.weight)
    assert coverage["norm.weight"].tolist() == [False] * 4 + [True] * 4
    plan.save(str(tmp_path / "plan.json"))
    mask.save(str(tmp_path / "mask.json"))
    loaded, same = ChannelPlan.load(str(tmp_path / "plan.json")), Mask.load(str(tmp_path / "mask.json"))
    again = loaded.extract(model, same).state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in submodel.state_dict().items())


@pytest.mark.slow
def test_what_is_needed_to_cut_imports_neither_ray_nor_the_tracer(case: CASE, tmp_path) -> None:
    case[1].save(tmp_path / "plan.json")
    code = (
        "import sys; from raysim import ChannelPlan, Mask; plan = ChannelPlan.load(sys.argv[1]);"
        "plan.random_mask(0.5); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "plan.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"ray", "mlflow", "pydantic", "torch_pruning"}.isdisjoint(done.stdout.split())


def test_random_masks_follow_the_seed(case: CASE) -> None:
    plan = case[1]
    first, same, other = (plan.random_mask(0.5, seed=seed).kept for seed in (0, 0, 1))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    assert [int(first[units].sum()) for units in plan.units.values()] == [4, 3]


def test_the_model_is_left_alone_and_the_submodel_is_ordinary(case: CASE) -> None:
    model, plan = copy.deepcopy(case[0]).train(), case[1]
    model.norm.eval()
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    model.register_forward_hook(lambda *_: None)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    grads = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    hooks = list(model._forward_hooks)
    small = plan.extract(model, plan.random_mask(0.5))
    small.load_state_dict({key: tensor * 0 for key, tensor in small.state_dict().items()})
    assert (model.training, model.norm.training, small.training, small.norm.training) == (True, False, True, False)
    assert list(model._forward_hooks) == hooks
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(torch.equal(parameter.grad, grads[key]) for key, parameter in model.named_parameters())
    assert all(parameter.grad is None for parameter in small.parameters())
    for again in (copy.deepcopy(small).eval(), plan.extract(case[0], plan.random_mask(0.5)).eval()):
        assert again(torch.randn(2, 3, 8, 8)).shape == (2, 5)
    small._forward_hooks.clear()
    assert pickle.loads(pickle.dumps(small)).state_dict().keys() == small.state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_kept(dtype: torch.dtype) -> None:
    model = DepthwiseNet().to(dtype)
    model.first.weight.requires_grad_(False)
    plan = ChannelPlan.trace(model, torch.randn(2, 3, 8, 8, dtype=dtype))
    mask = random_mask(plan, 0)
    small = plan.extract(model, mask)
    params, _ = plan.reconstruct(small.state_dict(), model.state_dict(), mask)
    assert {tensor.dtype for tensor in params.values()} == {dtype, torch.int64}
    assert all(torch.equal(tensor, params[key]) for key, tensor in model.state_dict().items())
    assert not small.first.weight.requires_grad
    assert small.pointwise.weight.requires_grad
    assert small(torch.randn(2, 3, 8, 8, dtype=dtype)).dtype == dtype


class TiedNet(nn.Module):
    """Embeds words, widens them, and reads them out with the embedding's own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.wide = nn.Linear(6, 8)
        self.back = nn.Linear(8, 6)
        self.read = nn.Linear(6, 11, bias=False)
        self.read.weight = self.embed.weight

    def forward(self, words: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        stream = self.embed(words).mean(1) * scale
        return self.read(stream + self.back(self.wide(stream).relu()))


@pytest.mark.parametrize(
    ("example", "forward"),
    [
        ((torch.arange(10).view(2, 5), torch.ones(2, 1)), None),
        ({"words": torch.arange(10).view(2, 5), "scale": torch.ones(2, 1)}, None),
        (torch.arange(10).view(2, 5), lambda model, words: model(words, torch.ones(2, 1, dtype=torch.float64))),
    ],
)
def test_tied_weights_stay_tied_and_inputs_may_be_several(example: object, forward) -> None:
    model = TiedNet()
    plan = ChannelPlan.trace(model, example, forward=forward)
    assert {group.name: group.size for group in plan.groups} == {"embed": 6, "wide": 8}
    mask = plan.random_mask(0.5)
    small = plan.extract(model, mask)
    assert small.read.weight is small.embed.weight
    assert small.embed.weight.shape == (11, 3)
    params, _ = plan.reconstruct(small.state_dict(), model.state_dict(), mask)
    assert torch.equal(params["read.weight"], params["embed.weight"])


def test_a_tied_weight_whose_sides_disagree_is_left_whole() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    model[2].weight = model[0].weight
    plan = ChannelPlan.trace(model, torch.randn(2, 6))
    small = plan.extract(model, plan.random_mask(0.5))
    assert plan.unprunable
    assert small(torch.randn(2, 6)).shape == (2, 2)


def test_single_entries_a_mask_drops_are_zero_and_not_covered(case: CASE) -> None:
    model, plan = case
    chosen = np.random.default_rng(0).random(tuple(model.pointwise.weight.shape)) < 0.5
    mask = Mask(random_mask(plan, 0).kept, {"pointwise.weight": np.packbits(chosen)})
    small = plan.extract(model, mask)
    params, coverage = plan.reconstruct({k: t + 1 for k, t in small.state_dict().items()}, model.state_dict(), mask)
    held = held_entries(plan, mask, model.state_dict())["pointwise.weight"] & torch.from_numpy(chosen)
    before = model.pointwise.weight.detach()
    assert torch.equal(coverage["pointwise.weight"], held)
    assert torch.equal(params["pointwise.weight"], torch.where(held, before + 1, before))
    assert int(small.pointwise.weight.count_nonzero()) == int(held.sum())


def test_grouped_layers_keep_their_number_of_groups() -> None:
    model = GroupedNet()
    plan = ChannelPlan.trace(model, torch.randn(2, 3, 8, 8))
    small = plan.extract(model, plan.random_mask(0.5))
    assert {group.name: group.size for group in plan.groups} == {"first": 4, "grouped": 3, "last": 3}
    assert (small.grouped.groups, small.grouped.in_channels, small.norm.num_groups, small.norm.num_channels) == (
        3,
        12,
        2,
        12,
    )
    np.testing.assert_array_equal(plan.groups[0].slots[0].indices, np.arange(24).reshape(6, 4).T)


def test_the_summary_says_what_is_whole_and_why() -> None:
    plan = ChannelPlan.trace(BranchNet(), torch.randn(2, 3, 8, 8), keep_whole=["right"], keep_residual=True)
    assert plan.summary().splitlines() == [
        "1 channel groups with 7 units can be pruned",
        "  joined: 7 units",
        "left whole:",
        "  left: residual stream",
        "  right: left whole, since keep_whole names 'right'",
        "  classifier: the model's outputs, 4 classes",
    ]


def test_a_dense_plan_cuts_nothing_and_finds_the_classifier(case: CASE, tmp_path) -> None:
    model = case[0]
    ChannelPlan.dense(model, "it hangs", torch.randn(2, 3, 8, 8)).save(tmp_path / "plan.json")
    plan = ChannelPlan.load(tmp_path / "plan.json")
    mask = plan.keep_top({}, 0.1)
    small = plan.extract(model, mask)
    params, coverage = plan.reconstruct(small.state_dict(), model.state_dict(), mask)
    assert plan.outputs is not None
    assert (plan.outputs.name, plan.outputs.size) == ("classifier", 5)
    assert plan.unprunable["first"] == "it hangs"
    assert all(bool(covered.all()) for covered in coverage.values())
    assert all(torch.equal(params[key], tensor) for key, tensor in model.state_dict().items())


def good_scores(plan: ChannelPlan) -> dict[str, object]:
    return {group.name: np.zeros(group.size) for group in plan.groups}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda plan, model: plan.keep_top(good_scores(plan) | {"frist": np.zeros(8)}, 0.5),
            "scores='frist' .* first",
        ),
        (lambda plan, model: plan.keep_top({"first": np.zeros(8)}, 0.5), "none for group 'pointwise'"),
        (
            lambda plan, model: plan.keep_top(good_scores(plan) | {"first": np.zeros(7)}, 0.5),
            r"\(7,\); allowed: \(8,\)",
        ),
        (lambda plan, model: plan.keep_top(good_scores(plan) | {"first": [np.nan] * 8}, 0.5), "holds NaN"),
        (lambda plan, model: plan.keep_top(good_scores(plan), 0.0), r"keep_ratio=0.0 is not in \(0, 1\]"),
        (lambda plan, model: plan.random_mask(1.3), r"keep_ratio=1.3 is not in \(0, 1\]"),
        (lambda plan, model: plan.random_mask(float("nan")), "keep_ratio=nan"),
        (lambda plan, model: plan.extract(model, Mask(np.ones(3, dtype=np.bool_))), r"mask of shape \(3,\)"),
        (lambda plan, model: plan.extract(model, Mask(np.zeros(14, dtype=np.bool_))), "no unit of group 'first'"),
        (lambda plan, model: plan.extract(SharedNet(), plan.random_mask(0.5)), "first.bias"),
        (lambda plan, model: plan.extract(wider(), plan.random_mask(0.5)), r"allowed: \(5, 384\)"),
        (
            lambda plan, model: plan.reconstruct({}, model.state_dict(), plan.random_mask(0.5)),
            "submodel has no tensor",
        ),
        (lambda plan, model: plan.reconstruct(model.state_dict(), {}, plan.random_mask(0.5)), "into has no tensor"),
        (
            lambda plan, model: plan.reconstruct(model.state_dict(), model.state_dict(), plan.random_mask(0.5)),
            "submodel has 'first.weight' of shape",
        ),
        (
            lambda plan, model: ChannelPlan.trace(model, torch.randn(2, 3, 8, 8), ["frist"]),
            "'frist' matches no layer",
        ),
        (lambda plan, model: ChannelPlan.trace(model, torch.randn(1, 3, 8, 8)), "batch of 2"),
    ],
)
def test_wrong_arguments_are_refused_with_what_is_allowed(case: CASE, wrong, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        wrong(case[1], case[0])


def wider() -> nn.Module:
    model = DepthwiseNet()
    model.classifier = nn.Linear(384, 6, bias=False)
    return model


DEEP = pytest.param('{"kept": ' + "[" * 100_000, id="deep")


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"kept": "012", "elements": {}}), DEEP])
def test_files_that_hold_something_else_are_refused(content: str, tmp_path) -> None:
    (tmp_path / "file.json").write_text(content)
    for read in (ChannelPlan.load, Mask.load):
        with pytest.raises(SettingError, match=r"file.json.* does not hold a"):
            read(tmp_path / "file.json")


def test_a_mask_survives_its_file(tmp_path) -> None:
    mask = Mask(np.array([True, False, True]), {"w": np.array([129, 7], dtype=np.uint8)})
    mask.save(tmp_path / "mask.json")
    loaded = Mask.load(tmp_path / "mask.json")
    assert json.loads((tmp_path / "mask.json").read_text()) == {"kept": "101", "elements": {"w": "gQc="}}
    assert loaded.kept.tolist() == [True, False, True]
    assert loaded.elements["w"].tolist() == [129, 7]
