"""Settings of local training."""

from typing import Annotated, Literal

from pydantic import Field

from raysim.config.settings import Count, NotNegative, Positive, Settings, Share


class TrainingSettings(Settings):
    """Local training of one client."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """`sgd` or `adam`; its state starts empty in every round."""
    learning_rate: Positive = 0.05
    """Step size in round 1, above 0."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD's momentum, or Adam's first beta, in [0, 1)."""
    weight_decay: NotNegative = 0.0
    """L2 penalty added to the gradient, at least 0."""
    lr_decay: Share = 1.0
    """Factor on the learning rate from round to round, in (0, 1]."""
    clip_norm: Positive | None = None
    """Largest norm of a step's gradient, above 0; null: no clipping."""
    epochs: Count = 1
    """Number of passes over a client's rows in a round, at least 1."""
    batch_size: Count = 10
    """Number of rows in one step, at least 1; a last batch of one row joins the one before."""
    precision: Literal["float32", "bf16"] = "float32"
    """`float32`, or `bf16`: layers compute in bfloat16 where PyTorch's autocast does; weights stay in float32."""
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    """Order of images in memory: `contiguous` or `channels_last`, on which convolutions and pooling often run faster.
    The last bits differ. Dropout drops the same entries; other layers that draw may draw differently."""
    pack: Literal["auto"] | Count = "auto"
    """Largest number of clients, with equal masks and steps, that are trained together as one batch of models; 1:
    each by itself. `auto` packs small models without convolutions, random layers or buffers, where the method needs
    no more than plain training, by a rule of cohort and model alone. It decides the last bits. `raysim probe`
    recommends."""
