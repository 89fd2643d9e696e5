"""The two networks of two 5 x 5 convolutions and a wide hidden layer that AutoFLIP trains."""

from torch import nn


def two_cnn(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return the network of McMahan et al. with 512 hidden units: 1,663,370 parameters for grey images, ten classes.

    Source: McMahan et al., arXiv 1602.05629, section 3; AutoFLIP, arXiv 2405.10271, whose published code has the
    layers of vaseline555/Federated-Learning-in-PyTorch, `TwoCNN`.
    """
    return _two_convolutions(input_shape[0], 512, num_classes)


def femnist_cnn(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return LEAF's network for FEMNIST, 2,048 hidden units: 6,603,710 parameters for grey images and 62 classes.

    Source: Caldas et al., arXiv 1812.01097; AutoFLIP, arXiv 2405.10271, whose published code has the layers of
    vaseline555/Federated-Learning-in-PyTorch, `FEMNISTCNN`.
    """
    return _two_convolutions(input_shape[0], 2048, num_classes)


def _two_convolutions(in_channels: int, hidden: int, num_classes: int) -> nn.Module:
    """Convolutions lose two pixels at each side and are padded with one; the last feature map is made 7 x 7."""
    layers: list[nn.Module] = []
    for out_channels in (32, 64):
        layers += [nn.Conv2d(in_channels, out_channels, 5, padding=1), nn.ReLU(), nn.MaxPool2d(2, padding=1)]
        in_channels = out_channels
    layers += [nn.AdaptiveAvgPool2d(7), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64 * 7 * 7, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))
