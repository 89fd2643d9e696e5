from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from raysim.core.errors import SettingError
from raysim.models import weights, zoo
from raysim.simulation.build import build_scenario, check_names
from tests.conftest import tiny_settings
from tests.pickles import Running

SHAPE = (1, 8, 8)


def mlp(num_classes: int = 10, hidden: int = 16, seed: int = 0) -> nn.Module:
    return zoo.build("mlp", {"hidden": [hidden]}, zoo.DataForm(SHAPE, num_classes), seed)


def saved(path: Path, state: dict[str, torch.Tensor]) -> str:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


@pytest.mark.parametrize("suffix", ["pt", "pth", "safetensors"])
def test_a_model_starts_from_a_local_file(tmp_path, suffix):
    source, model = mlp(seed=1), mlp(seed=0)
    assert weights.load_into(model, saved(tmp_path / f"w.{suffix}", source.state_dict()), "mlp", 10) == []
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in source.state_dict().items())


def test_a_classifier_for_other_classes_keeps_fresh_values(tmp_path):
    path = saved(tmp_path / "w.pt", mlp(num_classes=7, seed=1).state_dict())
    model, fresh = mlp(seed=0), mlp(seed=0)
    assert weights.load_into(model, path, "mlp", 10) == ["3.weight", "3.bias"]
    assert torch.equal(model[3].weight, fresh[3].weight)
    assert not torch.equal(model[1].weight, fresh[1].weight)


@pytest.mark.slow
def test_an_adapted_first_convolution_keeps_fresh_values(tmp_path):
    published = zoo.build("torchvision/resnet18", {}, zoo.DataForm((3, 64, 64), 1000), 1)
    path = saved(tmp_path / "w.pth", published.state_dict())
    model = zoo.build("torchvision/resnet18", {}, zoo.DataForm((1, 28, 28), 10), 0)
    assert weights.load_into(model, path, "torchvision/resnet18", 10) == ["conv1.weight", "fc.weight", "fc.bias"]
    assert torch.equal(model.layer4[1].conv2.weight, published.layer4[1].conv2.weight)
    assert torch.equal(model.bn1.running_var, published.bn1.running_var)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("1.bias"), r"has no '1\.bias' \(16,\); nearest in it: 3\.bias, 1\.weight"),
        (lambda state: state.update(extra=torch.zeros(2)), r"'extra' \(2,\) is not in model\.name='mlp'"),
        (
            lambda state: state.update({"1.weight": torch.zeros(16, 63)}),
            r"'1\.weight' is \(16, 63\) there and \(16, 64\) in model\.name='mlp'",
        ),
        (
            lambda state: state.update({"3.weight": torch.zeros(10, 15)}),
            r"'3\.weight' is \(10, 15\) there and \(10, 16\)",
        ),
    ],
)
def test_any_other_difference_is_refused(tmp_path, change, said):
    state = dict(mlp().state_dict())
    change(state)
    with pytest.raises(SettingError, match=said):
        weights.load_into(mlp(), saved(tmp_path / "w.pt", state), "mlp", 10)


def test_files_that_are_no_state_dict_are_refused(tmp_path):
    torch.save(mlp(), tmp_path / "model.pt")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name in ("model.pt", "text.safetensors"):
        with pytest.raises(SettingError, match="cannot be read as a state dict"):
            weights.load_into(mlp(), str(tmp_path / name), "mlp", 10)
    with pytest.raises(SettingError, match="holds no state dict"):
        weights.load_into(mlp(), str(tmp_path / "epoch.pt"), "mlp", 10)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("https://example.org/resnet18.pth", "is a URL, and raysim downloads no weights; allowed: a local file"),
        ("weights.bin", "is not allowed; allowed: a local file ending in .pt, .pth, .safetensors"),
        ("none.pt", "there is no such file"),
    ],
)
def test_paths_are_refused_before_anything_is_built(path, said):
    with pytest.raises(SettingError, match=said) as refused:
        check_names(tiny_settings(f"model.weights={path}"))
    assert str(refused.value).startswith(f"model.weights='{path}'")


def test_a_scenario_starts_from_the_weights_and_says_what_is_fresh(tmp_path, capsys):
    source = zoo.build("cnn", {"channels": [4, 8], "hidden": 16}, zoo.DataForm(SHAPE, 3), 9)
    path = saved(tmp_path / "w.safetensors", source.state_dict())
    model = build_scenario(tiny_settings(f"model.weights={path}")).workload.model
    assert torch.equal(model[0].weight, source[0].weight)
    assert f"model.weights={path!r}: fresh values for 8.weight, 8.bias" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.pt", "a.pth"])
def test_weights_run_no_code(tmp_path, name) -> None:
    mark = tmp_path / "run"
    torch.save({"weight": Running(mark)}, tmp_path / name)
    with pytest.raises(SettingError, match="cannot be read as a state dict"):
        weights.load_into(torch.nn.Linear(1, 1), str(tmp_path / name), "mlp", 10)
    assert not mark.exists()
    torch.load(tmp_path / name, weights_only=False)  # as it would have been
    assert mark.exists()
