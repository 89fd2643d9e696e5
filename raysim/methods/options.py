"""Options of methods: those shared by several rows of the table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class MethodOptions:
    """The options of a method; the fields are those of the `method` settings.

    `own` holds the options that belong to one row alone, complete with their defaults.
    """

    fill: str = "global"
    fill_gamma: float = 0.5
    score: str = "exact"
    mask: str = "top"
    estimator: str = "fisher"
    warmup_rounds: int = 3
    refresh_rounds: int = 1
    score_decay: float = 0.9
    curvature_scale: float = 1.0
    curvature_max: float = 100.0
    hutchinson_draws: int = 2
    include_consumers: bool = False
    hysteresis: float = 0.0
    silent_dormant: bool = False
    silent_after: int = 0
    unseen: str = "first"
    scaled_start: bool = False
    normalization: str = "batch"
    objective: str = "plain"
    proximal_mu: float = 0.01
    own: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.own[name]
