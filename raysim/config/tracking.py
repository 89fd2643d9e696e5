"""Settings of tracking in MLflow."""

from typing import Annotated

from pydantic import Field

from raysim.config.settings import Settings


class TrackingSettings(Settings):
    """Where MLflow stores the run, and which parts of it."""

    uri: str | None = None
    """MLflow tracking URI, without a password; null: MLFLOW_TRACKING_URI if set, else `sqlite:///runs/mlflow.db`."""
    register_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-][A-Za-z0-9 ._-]*$")] | None = "auto"
    """Name under which the final model gets a version in MLflow's registry: letters, digits, space, `.`, `-` and `_`;
    `auto`: the name of the experiment; null: the model is logged but not registered."""
    client_runs: bool = False
    """Whether each of the first 200 clients has a run of its own below this one, with its own curves."""
    system_metrics: bool = True
    """Whether CPU, memory, disk, network and GPU of the machine that runs the command are logged as `system/`."""
