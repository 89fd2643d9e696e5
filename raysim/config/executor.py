"""Settings of the executor: where clients are trained."""

from typing import Annotated, Literal

from pydantic import Field

from raysim.config.settings import Count, Settings


class ExecutorSettings(Settings):
    """Where clients are trained; this changes no result."""

    kind: Literal["ray", "in-process"] = "ray"
    """`ray` (actors) or `in-process` (one client after another); both give the same bits."""
    num_actors: Count | Literal["clients"] | None = None
    """Number of client actors, one CPU each; null: one per CPU, also of machines that join; `clients`: one per
    registered client, each with a share of a CPU and about 600 MB of memory. Only for `kind: ray`."""
    client_timeout_s: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Real seconds for the training of one client, above 0: a client that exceeds them is retried once by itself,
    then ends the run; null: no limit. Only for `kind: ray`."""
    device: Literal["cpu", "cuda"] = "cpu"
    """`cpu` or `cuda`. In-process, clients are trained one after another on one GPU; on Ray each actor uses the share
    of a GPU that the largest client was measured to need. Results are equal to the bit only on CPUs."""
    address: str | None = None
    """Address of a running Ray cluster; null: RAY_ADDRESS if set, else a new local Ray."""
    dashboard_host: str | None = None
    """Host on which the dashboard of a local Ray listens, `127.0.0.1` for this machine alone; null: no dashboard."""
