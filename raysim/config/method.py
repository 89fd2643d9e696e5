"""Settings of the method: which one, and changes to its defaults."""

from typing import Annotated, Any, Literal

from pydantic import Field

from raysim.config.settings import Count, NotNegative, Positive, Settings


class MethodSettings(Settings):
    """Which pruning method, and changes to its defaults (null: the method's default).

    A setting that the chosen method does not read is refused. Names may be `package.module:name`, a function of your
    own.
    """

    name: str = "ca-hfp"
    """Method: `fedavg`, `fedprox`, `random`, `feddropout`, `magnitude`, `heterofl`, `fedrolex`, `fjord`, `fedmp`,
    `dapperfl`, `fisher`, `scaffold`, `prunefl`, `feddst`, `fedtiny`, `fedmef`, `fedrts`, `autoflip`, `fiarse`,
    `nefl`, `hetlora`, `flexlora` (both of adapters), `ca-hfp`, `ca-hfp+`, or a `Method` of your own."""
    fill: str | None = None
    """How the server fills entries that a client did not train: `global`, `holders`, `zero`, `damped` or your own."""
    fill_gamma: Annotated[float, Field(ge=0, le=1)] | None = None
    """Exponent of the coverage in `fill: damped`, in [0, 1]; 0: as `global`, 1: as `holders`."""
    score: str | None = None
    """Form of CA-HFP's significance: `exact` (the default), `printed`, `robust`, `curvature` or `channel`; without
    estimates `l1` (of the filters) or `delta_w` (of their last change); or a score of your own."""
    mask: str | None = None
    """Which channels are kept: `top` (the best of each group), `global` (the best of the model), `global-per-flop`,
    `coverage` (chosen for the whole cohort together) or your own."""
    estimator: str | None = None
    """How gradient and curvature are estimated: `fisher` (squared minibatch gradients, reported by clients),
    `variation` or `secant` (from displacements, SGD only; clipping and weight decay are part of them) or
    `hutchinson` (Hessian-vector products)."""
    warmup_rounds: Annotated[int, Field(ge=0)] | None = None
    """Number of first rounds with random masks, at least 0."""
    refresh_rounds: Count | None = None
    """Rounds between two rankings of the channels, at least 1."""
    score_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Weight of the past in the running means of gradient and curvature, in [0, 1)."""
    curvature_scale: Positive | None = None
    """Factor of the estimated curvature, above 0; default: the batch size for `estimator: fisher` and `variation`,
    which square mean gradients of that many rows, else 1. Batches with fewer rows count in proportion."""
    curvature_max: Positive | None = None
    """Largest curvature of `estimator: secant`, above 0."""
    hutchinson_draws: Annotated[int, Field(ge=1, le=4)] | None = None
    """Number of random vectors of `estimator: hutchinson`, 1 to 4."""
    include_consumers: bool | None = None
    """Whether a channel's score also counts the weights that read it in the next layer."""
    hysteresis: NotNegative | None = None
    """Bonus for channels that were kept in the previous round, as a share of their score, at least 0."""
    silent_dormant: bool | None = None
    """Whether channels that no client has trained yet are zero in the global model that is scored and served."""
    silent_after: Annotated[int, Field(ge=0)] | None = None
    """Rounds without training after which a channel is zero in the global model that is scored and served; 0: never.
    Otherwise channels that no client has trained yet are zero, too."""
    unseen: Literal["first", "l1"] | None = None
    """Rank of channels that no client has held yet: `first` (before all others) or `l1` (by the l1 norm of their
    filters, scaled to the scores of their group; until there are any, all channels by l1)."""
    scaled_start: bool | None = None
    """Whether weights that read cut channels are divided, before round 1, by the square root of the mean share of
    these channels that clients hold, so that submodels start with outputs as large as the full model's."""
    normalization: Literal["batch", "static", "group"] | None = None
    """`batch` (running statistics averaged over holders), `static` (none in training, re-estimated before scoring)
    or `group` (every BatchNorm replaced by a GroupNorm)."""
    objective: Literal["plain", "proximal", "scaffold"] | None = None
    """Local objective: `plain`, `proximal` (FedProx) or `scaffold` (control variates; twice the bytes)."""
    proximal_mu: NotNegative | None = None
    """Weight of `objective: proximal`, at least 0."""
    options: dict[str, Any] | None = None
    """Options of this method alone, by name, for example `{prune_share: 0.3}` of `autoflip`."""
