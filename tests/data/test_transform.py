import numpy as np
import pytest
import torch

from raysim.config import loader
from raysim.core.errors import SettingError
from raysim.data import datasets, raw, transform
from raysim.data.splits import DataSplits
from raysim.data.transform import Transform
from raysim.simulation.build import build_scenario
from tests.conftest import tiny_settings


def digits(**settings: object) -> DataSplits:
    return datasets.load("digits", None, False, None, 0, transform=Transform(**settings))


PLAIN = digits()


def test_padding_puts_zeros_around_and_changes_the_digest():
    padded = digits(pad_to=13)
    assert padded.input_shape == (1, 13, 13)
    np.testing.assert_array_equal(padded.test_inputs[:, :, 2:10, 2:10], PLAIN.test_inputs)
    assert int(padded.train_inputs.astype(int).sum()) == int(PLAIN.train_inputs.astype(int).sum())
    assert padded.digest != PLAIN.digest


def test_padding_below_the_images_size_is_refused():
    with pytest.raises(SettingError, match=r"data\.transform\.pad_to=7 .* 8 or more"):
        digits(pad_to=7)


def test_grey_becomes_three_equal_channels_with_one_normalization():
    data = digits(grey_to_rgb=True)
    assert data.input_shape == (3, 8, 8)
    assert data.mean == PLAIN.mean * 3
    assert all(np.array_equal(data.train_inputs[:, channel], PLAIN.train_inputs[:, 0]) for channel in range(3))
    with pytest.raises(SettingError, match=r"grey_to_rgb=true is not allowed with images of 3 channels"):
        transform.apply(raw.RawData(*[data.train_inputs, data.train_targets] * 2), Transform(grey_to_rgb=True))


@pytest.mark.parametrize("pixels", [5, 8, 24])
def test_resized_images_are_torchvisions_up_to_rounding(pixels):
    from torchvision.transforms.v2 import functional

    data = digits(resize=pixels)
    expected = functional.resize(torch.from_numpy(PLAIN.test_inputs) / 16, [pixels, pixels], antialias=True)
    assert (data.max_value, data.test_inputs.dtype, data.input_shape) == (255, np.uint8, (1, pixels, pixels))
    assert np.abs(data.test_inputs / 255 - expected.numpy()).max() <= 0.5 / 255 + 1e-6


def test_the_order_is_grey_to_rgb_then_resize_then_pad():
    data = digits(grey_to_rgb=True, resize=16, pad_to=24)
    assert data.input_shape == (3, 24, 24)
    assert data.train_inputs[:, :, :4].max() == 0
    assert np.array_equal(data.train_inputs[:, :1, 4:20, 4:20], digits(resize=16).train_inputs)


def test_without_normalization_inputs_are_in_0_to_1():
    inputs, _ = digits(normalize=False).train_rows(np.arange(1437))
    assert (inputs.min().item(), inputs.max().item()) == (0, 1)


def test_a_given_mean_and_deviation_are_used_and_change_the_digest():
    data = digits(mean=[0.5], std=[0.25])
    inputs, _ = data.train_rows(np.arange(3))
    assert np.allclose(inputs.numpy(), (PLAIN.train_inputs[:3] / 16 - 0.5) / 0.25)
    assert data.digest != PLAIN.digest


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mean": [0.5]}, "std=None is not allowed; allowed: mean and std with 1 values each"),
        ({"std": [0.5]}, r"std=\[0.5\] is not allowed; allowed: mean and std"),
        (
            {"mean": [0.5] * 3, "std": [1.0] * 3},
            r"mean=\[0.5, 0.5, 0.5\] is not allowed; allowed: mean and std with 1",
        ),
        ({"mean": [0.5], "std": [1.0], "normalize": False}, r"mean=\[0.5\] has no effect with normalize=false"),
    ],
)
def test_a_normalization_that_does_not_fit_is_refused(settings, said):
    with pytest.raises(SettingError, match=f"data.transform.{said}"):
        digits(**settings)


def test_moments_are_numpys_and_a_constant_channel_is_left_alone():
    images = np.random.default_rng(0).integers(0, 256, (333, 2, 5, 4), dtype=np.uint8)
    images[:, 1] = 51
    mean, std = transform.moments(images, 255)
    np.testing.assert_allclose(mean, images.mean((0, 2, 3)) / 255, rtol=1e-12)
    np.testing.assert_allclose(std, [images[:, 0].std() / 255, 1.0], rtol=1e-9)


def test_the_settings_reach_the_data():
    overrides = ("data.transform={pad_to: 10, augment: [{name: RandomCrop, size: 10, padding: 1}]}",)
    scenario = build_scenario(tiny_settings(*overrides, "data.transform.augment.0.padding=2"))
    data = scenario.workload.data
    assert data.input_shape == (1, 10, 10)
    assert data.augmentation.specs == ({"name": "RandomCrop", "size": 10, "padding": 2},)
    flat = loader.flatten(tiny_settings(*overrides))
    assert flat["data.transform.augment.0.name"] == "RandomCrop"
    with pytest.raises(SettingError, match=r"data\.transform\.std\.0=0.0 is not allowed; allowed: greater than 0"):
        tiny_settings("data.transform={mean: [0.0], std: [0.0]}")


@pytest.mark.parametrize(
    "transform", [Transform(pad_to=32), Transform(resize=8), Transform(augment=[{"name": "RandomHorizontalFlip"}])]
)
def test_masks_are_not_left_behind_by_transforms_of_their_images(transform: Transform) -> None:
    with pytest.raises(
        SettingError, match=r"is not allowed with task.name='segmentation': masks are not transformed"
    ):
        datasets.load("digit-masks", None, False, None, 0, transform=transform, task="segmentation")
