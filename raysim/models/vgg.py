"""VGG16 for 32 x 32 images, with the sizes in CA-HFP's table."""

from torch import nn

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return 13 convolutions with bias and BatchNorm, then 512 -> 512 -> 256 -> classes: 15.120 M parameters.

    Source: CA-HFP, arXiv 2603.12591, Table I.
    """
    layers: list[nn.Module] = []
    channels, height, width = input_shape
    for stage in STAGES:
        for out_channels in stage:
            layers += [
                nn.Conv2d(channels, out_channels, 3, padding=1),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            ]
            channels = out_channels
        layers.append(nn.MaxPool2d(2))
    pixels = (height // 2 ** len(STAGES)) * (width // 2 ** len(STAGES))
    model = nn.Sequential()
    model.add_module("features", nn.Sequential(*layers))
    model.add_module("flatten", nn.Flatten())
    hidden = [nn.Linear(512 * pixels, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU()]
    model.add_module("classifier", nn.Sequential(*hidden, nn.Linear(256, num_classes)))
    return model
