"""The first global model where `method.scaled_start` is on."""

import numpy as np
import pytest
import torch
from torch import nn

from raysim.clock.work import Cohort
from raysim.core.errors import SettingError
from raysim.methods.resolve import resolve
from raysim.methods.scaled_start import scaled_start
from raysim.pruning.plan import ChannelPlan
from raysim.simulation.build import build_scenario
from raysim.simulation.transition import initial_params
from tests.conftest import tiny_settings

NARROW = tuple(f"population.tiers.{tier}.keep_ratio={keep}" for tier, keep in enumerate((0.5, 0.5, 0.25, 0.25)))
MIXED = tuple(f"population.tiers.{tier}.keep_ratio={keep}" for tier, keep in enumerate((0.25, 0.25, 0.25, 1.0)))
CNN = ("model.name=convnet", "model.options={channels: [8, 12], hidden: 16}")


def start_of(method: str, *overrides: str) -> tuple[dict, dict, list, np.ndarray]:
    scenario = build_scenario(tiny_settings(f"method.name={method}", *CNN, *overrides))
    built, population = dict(scenario.workload.model.state_dict()), scenario.workload.population
    devices = population.devices
    return built, initial_params(scenario), devices.keep_ratio, population.train.counts


@pytest.mark.parametrize("method", ["ca-hfp+", "magnitude"])
def test_weights_that_read_cut_channels_are_divided_by_the_root_of_the_share_that_is_held(method: str) -> None:
    """First convolution: nothing cut in front; the second reads 8 channels, the hidden layer 12 x 4, the last 16."""
    asked = () if method == "ca-hfp+" else ("method.scaled_start=true",)
    built, start, keeps, rows = start_of(method, *NARROW, *asked)
    share = sum(keep * n for keep, n in zip(keeps, rows, strict=True)) / sum(rows)
    assert 0.25 < share < 0.5
    assert [key for key in built if not torch.equal(built[key], start[key])] == ["3.weight", "7.weight", "9.weight"]
    for key in ("3.weight", "7.weight", "9.weight"):
        torch.testing.assert_close(start[key], built[key] / share**0.5)


@pytest.mark.parametrize("method", ["magnitude", "ca-hfp"])
def test_nothing_is_scaled_unless_asked_for(method: str) -> None:
    built, start, *_ = start_of(method, *NARROW)
    assert all(torch.equal(built[key], start[key]) for key in built)


def test_clients_of_full_width_start_from_the_model_as_it_was_built() -> None:
    built, start, *_ = start_of("ca-hfp+", *(f"population.tiers.{tier}.keep_ratio=1.0" for tier in range(4)))
    assert all(torch.equal(built[key], start[key]) for key in built)


def test_a_submodel_starts_with_the_weights_of_a_network_of_its_width() -> None:
    """PyTorch draws them from +-1 / sqrt(inputs of the layer)."""
    half = tuple(f"population.tiers.{tier}.keep_ratio=0.5" for tier in range(4))
    built, start, *_ = start_of("ca-hfp+", *half)
    narrow = float(nn.Conv2d(4, 64, 3).weight.detach().abs().max())
    assert float(start["3.weight"].abs().max()) == pytest.approx(narrow, rel=0.01)
    assert float(built["3.weight"].abs().max()) == pytest.approx(narrow / 2**0.5, rel=0.01)


def test_a_method_that_cuts_no_channels_does_not_read_it() -> None:
    with pytest.raises(SettingError, match=r"method\.scaled_start=True has no effect"):
        resolve("fedprox", {"scaled_start": True}, build_scenario(tiny_settings()).workload.local)


def test_wide_and_narrow_clients_share_one_start() -> None:
    """The share is the mean over rows, so that wide clients start above the model as it was built."""
    built, start, keeps, rows = start_of("random", "method.scaled_start=true", *MIXED)
    share = float((keeps * rows).sum() / rows.sum())
    assert 0.25 < share < 1.0
    torch.testing.assert_close(start["3.weight"], built["3.weight"] / share**0.5)


def test_weights_that_are_loaded_are_not_scaled(tmp_path) -> None:
    built, *_ = start_of("ca-hfp+", *NARROW)
    torch.save({key: value + 1 for key, value in built.items()}, tmp_path / "weights.pt")
    loaded, start, *_ = start_of("ca-hfp+", *NARROW, f"model.weights={tmp_path}/weights.pt")
    assert not torch.equal(loaded["3.weight"], built["3.weight"])
    assert all(torch.equal(loaded[key], start[key]) for key in loaded)
    with pytest.raises(SettingError, match=r"method\.scaled_start=True is not allowed with model\.weights"):
        start_of("magnitude", *NARROW, "method.scaled_start=true", f"model.weights={tmp_path}/weights.pt")


class Tied(nn.Module):
    """Embeds words, widens them, and reads them out with the embedding's own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.wide, self.back = nn.Embedding(11, 6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.read = nn.Linear(6, 11, bias=False)
        self.read.weight = self.embed.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        stream = self.embed(words).mean(1)
        return self.read(stream + self.back(self.wide(stream).relu()))


def test_a_weight_that_also_makes_channels_and_a_frozen_one_keep_their_values() -> None:
    model = Tied()
    plan = ChannelPlan.trace(model, torch.randint(0, 11, (2, 4)))
    ones, half = np.ones(3, dtype=np.int64), np.full(3, 0.5)
    cohort = Cohort(1, np.arange(3), half, half, np.full(3, "nothing"), ones, ones)
    for frozen, expected in ((), {"wide.weight", "back.weight"}), (("back.weight",), {"wide.weight"}):
        start = scaled_start(plan, dict(model.state_dict()), cohort, frozenset(frozen))
        assert {key for key, value in model.state_dict().items() if not torch.equal(value, start[key])} == expected
