"""Precision and memory format of clients, and their share of a GPU."""

import pytest
import torch
from torch import nn

from raysim.calibration.pack_probe import probe
from raysim.client.memory_format import computing_on, laid_out
from raysim.client.trainer import ClientTrainer
from raysim.core import tensors
from raysim.core.errors import SettingError
from raysim.data import datasets
from raysim.executors.ray.client_actor import needed_share
from raysim.models import zoo
from raysim.server.updates import ClientUpdates
from raysim.simulation.build import build_scenario, check_names
from tests.conftest import tiny_settings
from tests.planned import plan_round


def trained(*overrides: str) -> ClientUpdates:
    scenario = build_scenario(tiny_settings(*overrides))
    planned = plan_round(scenario)
    return ClientTrainer(scenario.workload).train(planned.assignments, planned.broadcast)


def changes(contribution: ClientUpdates) -> torch.Tensor:
    sums = contribution.sums["update"]
    return torch.cat([sums.value(key).flatten() for key in sums.totals])


@pytest.mark.slow
@pytest.mark.parametrize("model", [(), ("model.name=cnn-dropout", "model.options={}")], ids=["cnn", "cnn-dropout"])
def test_channels_last_changes_no_more_than_the_last_bits(model: tuple[str, ...]) -> None:
    colour = ("data.name=noise", "data.options={shape: [3, 8, 8], train_rows: 200, test_rows: 20}", *model)
    plain, other = trained(*colour), trained(*colour, "training.memory_format=channels_last")
    assert tensors.digest(plain.sums["update"].totals) != tensors.digest(other.sums["update"].totals)
    assert float((changes(plain) - changes(other)).norm() / changes(plain).norm()) < 1e-4


@pytest.mark.parametrize("layers", ["in place", "by name", "transposed", "no image"])
def test_layers_of_all_kinds_compute_on_channels_last(layers: str) -> None:
    class Named(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.layer(input=inputs)

    class Grown(Named):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.layer(inputs, [12, 12])

    class InPlace(nn.Dropout):
        def __init__(self) -> None:
            super().__init__(1.0, inplace=True)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            super().forward(inputs)
            return inputs

    model = {
        "in place": nn.Sequential(nn.Conv2d(3, 4, 3), InPlace(), nn.Conv2d(4, 4, 3)),
        "by name": nn.Sequential(Named(nn.Conv2d(3, 4, 3)), Named(nn.Dropout(0.5))),
        "transposed": nn.Sequential(Grown(nn.ConvTranspose2d(3, 4, 3, stride=2)), nn.Dropout2d()),
        "no image": nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Dropout(inplace=True)),
    }[layers]
    images = torch.randn(2, 3, 5, 5)
    outputs = []
    for memory_format in ("contiguous", "channels_last"):
        torch.manual_seed(0)
        with computing_on(memory_format):
            loss = model(laid_out(images, memory_format)).square().sum()
            outputs.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
    torch.testing.assert_close(*outputs)


@pytest.mark.slow
def test_bf16_rounds_what_layers_compute_and_keeps_weights_in_float32() -> None:
    plain, rounded = trained(), trained("training.precision=bf16")
    apart = float((changes(plain) - changes(rounded)).norm() / changes(plain).norm())
    assert 1e-4 < apart < 0.3
    assert tensors.digest(rounded.sums["update"].totals) == tensors.digest(
        trained("training.precision=bf16").sums["update"].totals
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(SettingError, match=r"executor.device='cuda' is not allowed.*allowed: cpu"):
        check_names(tiny_settings("executor.device=cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_what_the_cpu_trains() -> None:
    plain, other = trained(), trained("executor.device=cuda")
    assert float((changes(plain) - changes(other)).norm() / changes(plain).norm()) < 1e-2


def test_the_share_of_a_gpu_covers_what_was_measured_with_a_margin() -> None:
    assert needed_share(10, 1000) == 0.02
    assert needed_share(999, 1000) == 1.0
    for used in (1, 17, 333):
        assert needed_share(used, 1000) * 1000 >= 1.25 * used


@pytest.mark.slow
def test_the_probe_times_every_size_and_recommends_the_fastest() -> None:
    packable = ("model.name=mlp", "model.options={hidden: []}", "method.name=fedavg", "data.partition={name: iid}")
    found = probe(build_scenario(tiny_settings(*packable, "selection.clients_per_round=6")))
    assert [size["pack"] for size in found["sizes"]] == [1, 2, 4]
    assert found["recommended"] == max(found["sizes"], key=lambda size: size["clients_per_s"])["pack"]
    assert found["sizes"][0]["packed"] == 0
    assert found["sizes"][2]["packed"] > 0


def test_the_probe_says_why_there_is_nothing_to_choose() -> None:
    with pytest.raises(SettingError, match=r"ca-hfp.*allowed: auto, 1"):
        probe(build_scenario(tiny_settings("model.name=mlp", "model.options={}")))


def test_noise_is_always_the_same_and_has_the_shape_that_is_asked_for() -> None:
    options = {"shape": [1, 4, 6], "classes": 3, "train_rows": 9, "test_rows": 5}
    data = datasets.load("noise", None, False, None, 0, options)
    assert data.train_images.shape == (9, 1, 4, 6)
    assert data.test_labels.tolist() == [0, 1, 2, 0, 1]
    assert data.digest == datasets.load("noise", None, False, None, 7, options).digest


@pytest.mark.parametrize(
    ("option", "value"),
    [("shape", [3, 32]), ("shape", [0, 8, 8]), ("classes", 0), ("train_rows", "many"), ("classes", 50)],
)
def test_noise_of_no_size_is_refused(option: str, value: object) -> None:
    options = {"train_rows": 20, "test_rows": 20, option: value}
    with pytest.raises(SettingError, match=rf"data.options.{option}=.*allowed: "):
        datasets.load("noise", None, False, None, 0, options)


def test_the_network_with_dropout_has_the_parameters_of_the_reference_workload() -> None:
    model = zoo.build("cnn-dropout", {}, (3, 32, 32), 10, 0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_626_442
    assert zoo.build("cnn-dropout", {}, (1, 28, 28), 62, 0)(torch.zeros(2, 1, 28, 28)).shape == (2, 62)
