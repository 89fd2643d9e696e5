"""Settings of local training."""

from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from raysim.config.settings import Count, NotNegative, Positive, Settings, Share


class ScheduleSettings(Settings):
    """The learning rate from round to round; in asynchronous runs, a client has that of the round it started from."""

    name: Literal["constant", "exponential", "step", "cosine"] = "constant"
    """`constant`, `exponential` (times `factor` every round), `step` (times `factor` every `every` rounds, or after
    each of `milestones`) or `cosine` (falls to `final_share` over the rounds of the run)."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Number of first rounds over which the rate rises linearly, at least 0: round r of W has r / (W + 1) of it. The
    schedule begins after them."""
    factor: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Factor of `exponential`, default 0.99, and of `step`, default 0.1, in (0, 1)."""
    every: Count | None = None
    """Rounds from one step to the next, at least 1. For `name: step`."""
    milestones: list[Count] | None = None
    """Rounds after which the rate is stepped down, in ascending order, after the warm-up. For `name: step`."""
    final_share: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the learning rate that the rate approaches, in [0, 1); default 0. For `name: cosine`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        readers = {
            "factor": ("exponential", "step"),
            "every": ("step",),
            "milestones": ("step",),
            "final_share": ("cosine",),
        }
        for name, schedules in readers.items():
            if getattr(self, name) is not None and self.name not in schedules:
                raise ValueError(
                    f"{name}={getattr(self, name)} has no effect with name={self.name!r}; "
                    f"it belongs to {', '.join(schedules)}"
                )
        if self.name == "step" and (self.every is None) == (self.milestones is None):
            raise ValueError(
                f"every={self.every} and milestones={self.milestones} are not allowed; name='step' needs one of them"
            )
        order = [self.warmup, *(self.milestones or ())]
        if self.milestones == [] or any(later <= round for round, later in pairwise(order)):
            raise ValueError(
                f"milestones={self.milestones} is not allowed; allowed: rounds in ascending order, above "
                f"warmup={self.warmup}"
            )
        return self


class TrainingSettings(Settings):
    """Local training of one client."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """`sgd`, `adam` or `adamw` (weight decay apart from the gradient); its state starts empty in every round."""
    learning_rate: Positive = 0.05
    """Step size before `schedule` and `lr_decay`, above 0."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD's momentum, or the first beta of Adam and AdamW, in [0, 1)."""
    nesterov: bool = False
    """Whether SGD's momentum is Nesterov's."""
    weight_decay: NotNegative = 0.0
    """L2 penalty added to the gradient, at least 0. Of `adamw`: times the learning rate, the share by which weights
    shrink in a step; default 0.01."""
    lr_decay: Share = 1.0
    """Factor on the learning rate from round to round, in (0, 1]; for `schedule.name: constant`."""
    schedule: ScheduleSettings = ScheduleSettings()
    """The learning rate from round to round."""
    clip_norm: Positive | None = None
    """Largest norm of a step's gradient, above 0; null: no clipping."""
    epochs: Count = 1
    """Number of passes over a client's rows in a round, at least 1."""
    batch_size: Count = 10
    """Number of rows in one step, at least 1; a last batch of one row joins the one before."""
    precision: Literal["float32", "bf16"] = "float32"
    """`float32`, or `bf16`: layers compute in bfloat16 where PyTorch's autocast does; weights stay in float32."""
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    """Order of images in memory: `contiguous` or `channels_last`, on which convolutions and pooling often run faster,
    in training and in evaluation. The last bits differ. Dropout drops the same entries; other layers that draw may
    draw differently."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a label that is spread evenly over all classes, in [0, 1). Models are scored without it."""
    class_weights: list[Annotated[float, Field(ge=1e-6, le=1e6)]] | Literal["balanced"] | None = None
    """Weight of each class in the local loss: a list, 1e-6 to 1e6 each, or `balanced`, rows / (classes
    x rows of the class) of the training rows that do not validate; null: all weigh alike. A batch's loss is divided
    by the weights of its rows. Models are scored without it."""
    pack: Literal["auto"] | Count = "auto"
    """Largest number of clients, with equal masks and steps, that are trained together as one batch of models; 1:
    each by itself. `auto` packs small models without convolutions, random layers or buffers, where the method needs
    no more than plain training, by a rule of cohort and model alone. It decides the last bits. `raysim probe`
    recommends."""

    @model_validator(mode="before")
    @classmethod
    def _decay_of_adamw(cls, given: Any) -> Any:
        """Give AdamW the weight decay that it has in PyTorch, unless another is given."""
        is_adamw = isinstance(given, dict) and given.get("optimizer") == "adamw"
        return {"weight_decay": 0.01, **given} if is_adamw else given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise ValueError(
                f"nesterov=True has no effect with optimizer={self.optimizer!r} and momentum={self.momentum:g}; it "
                "belongs to 'sgd' with momentum above 0"
            )
        if self.lr_decay != 1 and self.schedule.name != "constant":
            raise ValueError(
                f"lr_decay={self.lr_decay:g} is not allowed with schedule.name={self.schedule.name!r}; allowed: 1, "
                "or schedule.name='constant'"
            )
        return self
