import pytest
import torch
from torch import nn

from raysim.client.memory_format import computing_on, laid_out
from raysim.core import tensors
from tests.client.test_trainer import changes, trained


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
