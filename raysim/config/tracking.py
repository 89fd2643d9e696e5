"""Settings of tracking in MLflow."""

from typing import Annotated

from pydantic import Field

from raysim.config.settings import Settings


class TrackingSettings(Settings):
    """Where MLflow keeps the run, and what of it."""

    uri: str | None = None
    """MLflow tracking URI, without a password; null = MLFLOW_TRACKING_URI if set, else `sqlite:///runs/mlflow.db`."""
    register_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-][A-Za-z0-9 ._-]*$")] | None = "auto"
    """Name under which the final model gets a version in MLflow's registry: letters, digits, space, `.`, `-` and `_`;
    `auto` = that of the experiment, null = it is logged and not registered."""
    client_runs: bool = False
    """Whether each client, up to the first 200, has a run of its own below this one, with its own curves."""
    system_metrics: bool = True
    """Whether CPU, memory, disk, network and GPU of the machine that runs the command are watched, as `system/`."""
