"""What a chunk of clients sends back, and how such contributions add up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from raysim.exact_sum import ExactSum
from raysim.types import Columns, Params


@dataclass(frozen=True, slots=True, eq=False)
class Contribution:
    """What a chunk of clients sends back.

    Attributes:
        sums: Exact sums over the clients: `update` of n_k D_k, for masks of single elements `held` of n_k m_k,
            and what the method's local rules report.
        clients: One row per client: `client`, `train_loss`, `epochs`, `accuracy` and `heldout_loss` (NaN if
            not scored).
        kept: Which units each client sends back, `(clients, num_units)`.
        channel_sums: Numbers per channel of each client, `(clients, sums, num_units)`; no sums where the
            method asks for none.
        memories: What is to be remembered of single clients, by id.
    """

    sums: dict[str, ExactSum]
    clients: Columns
    kept: NDArray[np.bool_]
    channel_sums: NDArray[np.float64]
    memories: Mapping[int, Params] = field(default_factory=dict)


def merge(contributions: Sequence[Contribution]) -> Contribution:
    """Add up contributions; the result does not depend on their order or on who is in which."""
    sums: dict[str, ExactSum] = {}
    for contribution in contributions:
        for name, total in contribution.sums.items():
            if name not in sums:
                sums[name] = ExactSum.zeros_like(total.totals)
            sums[name].merge(total)
    by_id = np.argsort(np.concatenate([contribution.clients["client"] for contribution in contributions]))
    names = contributions[0].clients
    return Contribution(
        sums={name: sums[name] for name in sorted(sums)},
        clients={name: np.concatenate([c.clients[name] for c in contributions])[by_id] for name in names},
        kept=np.concatenate([c.kept for c in contributions])[by_id],
        channel_sums=np.concatenate([c.channel_sums for c in contributions])[by_id],
        memories=dict(sorted(item for c in contributions for item in c.memories.items())),
    )
