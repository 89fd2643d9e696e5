"""Each image is transformed by itself, from draws of (seed, round, client); moves of pixels cost next to nothing."""

import pickle
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from raysim.core import tensors
from raysim.core.errors import SettingError
from raysim.data import datasets
from raysim.data.augment import ImageByImage, Moves, augmentation
from raysim.data.splits import DataSplits
from raysim.data.transform import Transform
from raysim.models import zoo
from raysim.simulation.build import build_scenario
from tests.clocked import QUICK, played
from tests.conftest import tiny_settings

FLIP = {"name": "RandomHorizontalFlip", "p": 1.0}
CROP = {"name": "RandomCrop", "size": 8, "padding": 2}
TURN = {"name": "RandomRotation", "degrees": 30}


def digits(*specs: dict[str, object]) -> DataSplits:
    return datasets.load("digits", None, False, None, 0, transform=Transform(augment=list(specs)))


PLAIN = digits()


def augmented(data: DataSplits, inputs: torch.Tensor, round: int = 1, client: int = 2) -> torch.Tensor:
    augment = data.augmenter(0, round, client)
    assert augment is not None
    return augment(inputs)


def test_without_augmentation_there_is_none():
    assert PLAIN.augmenter(0, 1, 2) is None


def test_transforms_see_images_in_0_to_1_and_give_normalised_ones():
    data = digits(FLIP)
    inputs, _ = data.train_rows(np.arange(50))
    before = inputs.clone()
    assert torch.equal(augmented(data, inputs), inputs.flip(-1))
    assert torch.equal(inputs, before)
    brighter = digits({"name": "ColorJitter", "brightness": [2.0, 2.0]})
    expected = (before * data.std[0] + data.mean[0]).mul(2).clamp(0, 1).sub(data.mean[0]).div(data.std[0])
    torch.testing.assert_close(augmented(brighter, inputs), expected, rtol=0, atol=1e-5)
    both = digits(FLIP, {"name": "ColorJitter", "brightness": [2.0, 2.0]})
    torch.testing.assert_close(augmented(both, inputs), expected.flip(-1), rtol=0, atol=1e-5)


EXAMPLE = torch.randn(400, 3, 7, 6, generator=torch.Generator().manual_seed(0))
MEAN, STD = (np.array(value, dtype=np.float32).reshape(1, 3, 1, 1) for value in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)))
MOVES = {
    "crop": [{"name": "RandomCrop", "size": [7, 6], "padding": 2}],
    "crop with a border of its own": [{"name": "RandomCrop", "size": [7, 6], "padding": [1, 9, 3, 2], "fill": 0.5}],
    "crop with a colour": [{"name": "RandomCrop", "size": [7, 6], "padding": [1, 2], "fill": [0.1, 0.2, 0.3]}],
    "crop, then flip": [{"name": "RandomCrop", "size": [7, 6], "padding": 2}, {"name": "RandomHorizontalFlip"}],
    "flips around a crop": [
        {"name": "RandomVerticalFlip", "p": 0.3},
        {"name": "RandomCrop", "size": [7, 6], "padding": 1},
        {"name": "RandomHorizontalFlip", "p": 0.7},
        {"name": "RandomVerticalFlip"},
    ],
    "two crops": [{"name": "RandomCrop", "size": [7, 6], "padding": 1, "fill": fill} for fill in (0.0, 1.0)],
}


TRIES = 4000


def made_by_torchvision(specs: list[dict[str, object]], image: torch.Tensor) -> Counter[bytes]:
    """How often torchvision makes what of an image."""
    named = [(str(spec["name"]), {key: value for key, value in spec.items() if key != "name"}) for spec in specs]
    transform = v2.Compose([getattr(v2, name)(**options) for name, options in named])
    torch.manual_seed(0)
    return Counter(transform(image).numpy().tobytes() for _ in range(TRIES))


@pytest.mark.parametrize("specs", MOVES.values(), ids=MOVES)
def test_moves_of_pixels_give_what_torchvision_gives_as_often(specs):
    moves = augmentation(specs, EXAMPLE[:2])
    assert all(isinstance(each, Moves) for each in moves.passes)
    assert len(moves.passes) == max(1, sum(spec["name"] == "RandomCrop" for spec in specs))
    image = torch.arange(126.0).view(3, 7, 6) / 126
    zeros, ones = np.zeros((1, 3, 1, 1), np.float32), np.ones((1, 3, 1, 1), np.float32)
    moved = moves(image.expand(TRIES, -1, -1, -1), zeros, ones, np.random.default_rng(0))
    ours, theirs = Counter(each.numpy().tobytes() for each in moved), made_by_torchvision(specs, image)
    for key in ours | theirs:
        assert abs(ours[key] - theirs[key]) < 5 * (ours[key] + theirs[key]) ** 0.5


@pytest.mark.parametrize("specs", MOVES.values(), ids=MOVES)
def test_moves_of_normalised_images_are_those_of_images_in_0_to_1(specs):
    moves = augmentation(specs, EXAMPLE[:2])
    found = moves(EXAMPLE, MEAN, STD, np.random.default_rng(0))
    zeros, ones = np.zeros_like(MEAN), np.ones_like(STD)
    mean, std = torch.from_numpy(MEAN), torch.from_numpy(STD)
    seen = moves(EXAMPLE * std + mean, zeros, ones, np.random.default_rng(0))
    torch.testing.assert_close(found, (seen - mean) / std, rtol=0, atol=1e-5)
    strided = EXAMPLE.contiguous(memory_format=torch.channels_last)
    assert torch.equal(moves(strided, MEAN, STD, np.random.default_rng(0)), found)


def test_other_options_of_a_crop_are_torchvisions():
    specs = [{"name": "RandomCrop", "size": [7, 6], "padding": 2, "padding_mode": "reflect"}]
    (turned,) = augmentation(specs, EXAMPLE[:2]).passes
    assert isinstance(turned, ImageByImage)


@pytest.mark.parametrize("spec", [CROP, {**FLIP, "p": 0.5}, TURN], ids=["crop", "flip", "rotation"])
def test_each_image_is_drawn_by_itself_from_seed_round_and_client(spec):
    data = digits(spec)
    pixels = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(40, 1, 1, 1) / 64
    first = augmented(data, pixels)
    assert len({image.numpy().tobytes() for image in first}) > 1 + (spec is not None and spec["name"] != FLIP["name"])
    assert torch.equal(first, augmented(data, pixels))
    assert not torch.equal(first, augmented(data, pixels, round=2))
    assert not torch.equal(first, augmented(data, pixels, client=3))
    augment = data.augmenter(0, 1, 2)
    assert not torch.equal(augment(pixels), augment(pixels))


def test_torchs_own_generator_is_left_alone():
    before = torch.get_rng_state()
    data = digits(CROP, TURN)
    augmented(data, torch.zeros(3, 1, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_augmented_data_travels_and_has_its_own_digest():
    data = digits(FLIP)
    copy = pickle.loads(pickle.dumps(data))
    inputs, _ = data.train_rows(np.arange(5))
    assert torch.equal(augmented(copy, inputs), augmented(data, inputs))
    assert len({PLAIN.digest, data.digest, digits({**FLIP, "p": 0.5}).digest}) == 3


AUGMENTED = "data.transform.augment=[{name: RandomCrop, size: 8, padding: 1}, {name: RandomHorizontalFlip}]"


@pytest.mark.parametrize("method", ["fedavg", "dapperfl"])
def test_clients_train_on_transformed_images(method):
    """DapperFL trains in two parts, which continue one sequence of draws."""
    same = (*QUICK, "rounds=1", f"method.name={method}")
    digest = [
        tensors.digest(played(build_scenario(tiny_settings(*same, *more)))[0].params)
        for more in ((), (AUGMENTED,), (AUGMENTED,))
    ]
    assert digest[0] != digest[1] == digest[2]


def seconds(work: Callable[[], object], times: int) -> float:
    """Least processor seconds of a call, over some tries."""
    found = []
    for _ in range(5):
        started = time.process_time()
        for _ in range(times):
            work()
        found.append((time.process_time() - started) / times)
    return min(found)


@pytest.mark.slow
def test_a_crop_and_a_flip_of_32_x_32_pixels_cost_less_than_a_tenth_of_a_training_step():
    inputs, labels = torch.randn(32, 3, 32, 32), torch.arange(32) % 10
    specs = [{"name": "RandomCrop", "size": 32, "padding": 4}, {"name": "RandomHorizontalFlip"}]
    moves, rng = augmentation(specs, inputs[:2]), np.random.default_rng(0)
    model = zoo.build("cnn", {}, zoo.DataForm((3, 32, 32), 10), 0)
    parameters = list(model.parameters())
    step = seconds(lambda: torch.autograd.grad(nn.functional.cross_entropy(model(inputs), labels), parameters), 2)
    augmenting = seconds(lambda: moves(inputs, MEAN, STD, rng), 50)
    print(f"{1e6 * augmenting:.0f} us of {1e6 * step:.0f} us")
    assert augmenting < 0.1 * step


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"name": "RandomHorizontalFlp"}, r"\.0\.name='RandomHorizontalFlp' is unknown; .*: RandomHorizontalFlip, "),
        ({"p": 0.5}, r"\.0\.name=None is unknown"),
        ({"name": "functional"}, r"\.0\.name='functional' is unknown"),
        ({"name": "RandomCrop", "sise": 8}, r"\.0=\{.*\} is not allowed: .*unexpected keyword argument 'sise'"),
        ({"name": "RandomHorizontalFlip", "p": 3}, r"\.0=\{.*\} is not allowed: "),
        ({"name": "RandomCrop", "size": 9}, "is not allowed on float images: "),
        ({"name": "RandomCrop", "size": 5}, r"it turns float images \(1, 8, 8\) into .* \(1, 5, 5\)"),
        ({"name": "MixUp", "num_classes": 10}, "is not allowed on float images: "),
        ({"name": "RandomResizedCrop", "size": 8, "interpolation": "bilinaer"}, r"\.0=\{.*\} is not allowed: "),
    ],
)  # fmt: skip
def test_augmentation_that_cannot_be_is_refused(spec, said):
    with pytest.raises(SettingError, match=said) as refused:
        digits(spec)
    assert str(refused.value).startswith("data.transform.augment.0")


def test_interpolation_is_given_by_name():
    data = digits({"name": "RandomResizedCrop", "size": 8, "interpolation": "nearest"})
    assert augmented(data, torch.zeros(2, 1, 8, 8)).shape == (2, 1, 8, 8)
