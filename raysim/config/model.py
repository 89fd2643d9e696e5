"""Settings of the model."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from raysim.config.settings import Count, PathText, Positive, Settings


class AdapterSettings(Settings):
    """Adapters of low rank beside frozen layers."""

    kind: Literal["lora"] = "lora"
    """`lora`: W + (alpha / rank) B A with W frozen, B zero at first (arXiv 2106.09685)."""
    rank: Count = 8
    """Ranks of each adapter, at least 1; budgets (`keep_ratio`) choose how many of them a client trains."""
    alpha: Positive = 16.0
    """Factor of the product, above 0; it is divided by `rank`, whatever the ranks of a submodel."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability with which the inputs of an adapter are dropped in training, in [0, 1)."""
    targets: Annotated[list[str], Field(min_length=1)] = Field(default_factory=lambda: ["*"])
    """Linear layers and convolutions that get one, as names with wildcards."""
    train_also: list[str] = Field(default_factory=list)
    """Layers or parameters that are trained beside the adapters, as names with wildcards, such as the classifier."""


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
    train_only: Annotated[list[str], Field(min_length=1)] | None = None
    """Layers or parameters that are trained, as names with wildcards; all others are frozen: they travel down once,
    and never up. null: those that the model itself does not freeze."""
    adapter: AdapterSettings | None = None
    """Adapters that are trained while the model itself is frozen; needs `pip install raysim[adapters]`."""
    keep_residual: bool = False
    """Whether channels that residual additions join across layers are left whole."""
    keep_whole: list[str] | None = None
    """Layers that are never cut, as names with wildcards (`classifier.*`); null: the default of the model."""

    @model_validator(mode="after")
    def _check_adapter(self) -> Self:
        if self.adapter is not None and self.train_only is not None:
            raise ValueError("train_only is not allowed with adapter; allowed: adapter.train_also")
        if self.adapter is not None and self.keep_whole is not None:
            raise ValueError("keep_whole has no effect with adapter: ranks alone are cut; allowed: null")
        return self
