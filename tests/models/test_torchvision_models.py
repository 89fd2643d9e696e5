import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models import regnet

from raysim.core.errors import SettingError
from raysim.executors.in_process import InProcessExecutor
from raysim.models import torchvision_models, zoo
from raysim.simulation.build import build_scenario
from raysim.simulation.round import run_round
from raysim.simulation.transition import initial_state
from tests.conftest import tiny_settings

NAMES = torchvision_models.names()
SMALLEST = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5",
    "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1",
    "swin_t", "swin_v2_t", "vgg11", "vit_b_32",
)  # fmt: skip
"""The smallest of each family; MaxViT takes 224 x 224 only."""
QUICK = ("resnet18", "squeezenet1_1")


def build(name: str, shape: tuple[int, ...] = (3, 32, 32), num_classes: int = 7, **options: object) -> nn.Module:
    return zoo.build(f"torchvision/{name}", options, zoo.DataForm(shape, num_classes), seed=0)


def on_meta(name: str, shape: tuple[int, ...]) -> nn.Module:
    """Build without memory; RegNet computes its widths with tensors, which need values."""
    widths = regnet.BlockParams.from_init_params

    def with_values(*args: object, **options: object) -> object:
        with torch.device("cpu"):
            return widths(*args, **options)

    with pytest.MonkeyPatch.context() as patched, torch.device("meta"):
        patched.setattr(regnet.BlockParams, "from_init_params", with_values)
        return torchvision_models.build(f"torchvision/{name}", {}, shape, 7)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in NAMES if name not in SMALLEST])
def test_every_classification_model_runs_forward_and_backward(name, monkeypatch):
    monkeypatch.setattr(torchvision_models, "problem_of", lambda *_: None)  # the step below shows it
    pixels = {"maxvit_t": 224, "vit_h_14": 56}.get(name, 64)
    model = on_meta(name, (1, pixels, pixels)).train()
    output = model(torch.zeros(2, 1, pixels, pixels, device="meta"))
    assert output.shape == (2, 7)
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SMALLEST]
)
def test_the_smallest_of_each_family_learns_a_batch(name):
    model = build(name, (1, 32, 32))
    images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loss = nn.functional.cross_entropy(model.train()(images), labels)
        loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def last_map(name: str, pixels: int) -> int:
    with torch.device("meta"):
        model = torchvision_models.build(f"torchvision/{name}", {}, (3, pixels, pixels), 7)
    return torchvision_models._halvings(model, (pixels, pixels))[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenet_v2", "googlenet")),
    ],
)
def test_small_images_leave_a_last_map_of_4_x_4_where_two_steps_are_enough(name):
    assert [last_map(name, pixels) for pixels in (28, 32)] in ([4, 4], [3, 4])
    assert last_map(name, 64) == 2


@pytest.mark.slow
def test_a_resnet_for_small_images_has_the_usual_stem():
    small = build("resnet18")
    assert (small.conv1.kernel_size, small.conv1.stride, small.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    assert isinstance(small.maxpool, nn.Identity)
    assert sum(parameter.numel() for parameter in build("resnet18", num_classes=10).parameters()) == 11_173_962
    assert small.layer2[0].conv1.stride == (2, 2)
    large = build("resnet18", (3, 64, 64))
    assert (large.conv1.kernel_size, large.conv1.stride) == ((7, 7), (2, 2))
    assert isinstance(large.maxpool, nn.MaxPool2d)


def test_a_halving_beside_a_shortcut_is_undone_on_both_paths():
    block = build("regnet_x_400mf").trunk_output[0][0]
    strides = {tuple(layer.stride) for layer in block.modules() if isinstance(layer, nn.Conv2d)}
    assert strides == {(1, 1)}


def test_from_64_pixels_on_a_model_is_torchvisions_own():
    ours = build("mobilenet_v3_small", (3, 64, 64), 10).state_dict()
    theirs = models.mobilenet_v3_small(num_classes=10).state_dict()
    assert [(key, tensor.shape) for key, tensor in ours.items()] == [
        (key, each.shape) for key, each in theirs.items()
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("pixels", "patch"), [(8, 2), (28, 4), (32, 8), (48, 8), (64, 16), (224, 16)])
def test_a_vision_transformers_patches_shrink_with_the_images(pixels, patch):
    model = on_meta("vit_b_16", (1, pixels, pixels))
    assert (model.conv_proj.kernel_size, model.conv_proj.in_channels) == ((patch, patch), 1)
    assert model.encoder.pos_embedding.shape == (1, (pixels // patch) ** 2 + 1, 768)


def test_the_seed_decides_the_weights_and_the_generator_is_put_back():
    before = torch.get_rng_state()
    one, same = (build("squeezenet1_1", (1, 28, 28)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert one.training


def test_options_are_the_builders_keyword_arguments():
    assert build("mobilenet_v3_small", dropout=0.5).classifier[2].p == 0.5
    assert build("mobilenet_v3_small", width_mult=0.5).classifier[0].in_features == 288
    with pytest.raises(SettingError, match=r"model\.options\.droput=0\.5 is unknown; .* takes: dropout, "):
        build("mobilenet_v3_small", droput=0.5)
    with pytest.raises(SettingError, match=r"model\.options=\{'droput': 0.5\} is not allowed .*'droput'"):
        build("squeezenet1_1", droput=0.5)
    with pytest.raises(SettingError, match=r"model\.options\.weights='DEFAULT' is not allowed"):
        build("resnet18", weights="DEFAULT")
    with pytest.raises(SettingError, match=r"model\.options\.aux_logits=True is not allowed"):
        build("googlenet", aux_logits=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pixels", "smallest"),
    [
        ("vgg11", 28, 32),
        ("alexnet", 8, 15),
        ("vit_b_16", 29, 30),
        pytest.param("maxvit_t", 32, 224, marks=pytest.mark.slow),
    ],
)
def test_a_size_that_is_too_small_is_refused_with_the_smallest(name, pixels, smallest):
    with pytest.raises(SettingError) as refused:
        on_meta(name, (3, pixels, pixels))
    message = str(refused.value)
    assert message.startswith(f"model.name='torchvision/{name}' does not accept images of {pixels} x {pixels} pixels")
    assert f"smallest size: {smallest} x {smallest}" in message
    assert on_meta(name, (3, smallest, smallest)) is not None


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(SettingError, match=r"model\.name='torchvision/resnet19' is unknown; .*: torchvision/resnet1"):
        zoo.check_name("torchvision/resnet19")


@pytest.mark.slow
def test_a_round_of_fedavg_trains_one_dense(capsys):
    settings = tiny_settings(
        "model.name=torchvision/mobilenet_v3_small",
        "model.options={}",
        "method.name=fedavg",
        "rounds=1",
        "population.clients=40",
        "selection.clients_per_round=2",
        "model.keep_whole=['classifier.*']",
    )
    scenario = build_scenario(settings)
    state, report = run_round(scenario, initial_state(scenario), InProcessExecutor(scenario.workload))
    assert np.isfinite(report.train_loss)
    assert not torch.equal(state.params["classifier.3.weight"], initial_state(scenario).params["classifier.3.weight"])
