"""Settings of tracking: in MLflow, and by other observers."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from raysim.config.settings import Settings, UriText

WITHOUT_MLFLOW = "none"
"""Value of `tracking.uri` for a run without MLflow."""


class TrackingSettings(Settings):
    """Where the run is tracked: in MLflow, and by which other observers."""

    uri: UriText | None = None
    """MLflow tracking URI, without a password; null: MLFLOW_TRACKING_URI if set, else `sqlite:///runs/mlflow.db`;
    `none`: no MLflow; the run is only in its folder."""
    register_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-][A-Za-z0-9 ._-]{0,199}$")] | None = "auto"
    """Name under which the final model gets a version in MLflow's registry: letters, digits, space, `.`, `-` and `_`;
    `auto`: the name of the experiment; null: the model is logged but not registered."""
    client_runs: bool = False
    """Whether each of the first 200 clients has a run of its own below this one, with its own curves."""
    system_metrics: bool = True
    """Whether CPU, memory, disk, network and GPU of the machine that runs the command are logged as `system/`."""
    also: list[str] = Field(default_factory=list)
    """More observers of the run: `tensorboard` (event files in its folder; `pip install 'raysim[tensorboard]'`), or
    dotted paths as `my_pkg:observer`, each of a class or function without arguments that returns a
    `raysim.RunObserver`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        twice = [name for name in self.also if self.also.count(name) > 1]
        if twice:
            raise ValueError(f"also: {twice[0]!r} is given twice; allowed: each once")
        if self.uri == WITHOUT_MLFLOW:
            for name, allowed in (("register_model", ("auto", None)), ("client_runs", (False,))):
                if getattr(self, name) not in allowed:
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} has no effect with uri={WITHOUT_MLFLOW!r}, without MLflow"
                    )
        return self
