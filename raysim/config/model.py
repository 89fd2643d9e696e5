"""Settings of the model."""

from typing import Any

from pydantic import Field

from raysim.config.settings import PathText, Settings


class ModelSettings(Settings):
    """Which network is trained."""

    name: str = "cnn"
    """Model: of images `cnn`, `cnn-dropout`, `convnet`, `lenet`, `vgg16`, `resnet`, `resnet32`, `two-cnn`,
    `femnist-cnn`, `unet` (segmentation), or a classification model of torchvision as `torchvision/resnet18`; of token
    ids `char-lstm`, `gru`, `transformer`; of series `char-lstm`, `gru`; of floats of any shape `mlp`; a
    model of transformers as `huggingface:gpt2`, or `huggingface:FOLDER`; or a dotted path `my_pkg.net:build`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the model's builder, for example `{channels: [16, 32]}`."""
    weights: PathText | None = None
    """Local file with a state dict to start from, `.pt`, `.pth` or `.safetensors`; null: weights are drawn from the
    seed."""
    keep_residual: bool = False
    """Whether channels that residual additions join across layers are left whole."""
    keep_whole: list[str] | None = None
    """Layers that are never cut, as names with wildcards (`classifier.*`); null: the default of the model."""
