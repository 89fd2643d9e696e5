"""Oort: clients by the utility of their data and their speed, with exploration (Lai et al., OSDI 2021)."""

import numpy as np
from numpy.typing import NDArray

from raysim.core.options import Option
from raysim.selection.view import SelectionView, first

OPTIONS = {
    "exploration": Option(0.9, "share of round 1 that goes to clients without a known loss", high=1.0),
    "exploration_decay": Option(0.98, "factor on that share from round to round", high=1.0),
    "exploration_min": Option(0.2, "least share", high=1.0),
    "clip": Option(0.95, "quantile at which statistical utilities are clipped", high=1.0),
    "cutoff": Option(0.95, "share of the last chosen utility from which others compete with the best", high=1.0),
    "penalty": Option(2.0, "exponent alpha of (T / t) where a client's t seconds exceed the preferred T"),
    "preferred_s": Option(0.0, "preferred seconds T of a round; 0: by quantile"),
    "preferred_quantile": Option(0.3, "quantile of all clients' last seconds that is T", high=1.0),
}

LEAST_UTILITY = 1e-4
"""Weight of a client without utility, so that a draw is possible."""


def oort(view: SelectionView) -> NDArray[np.int64]:
    """Exploit clients of high utility, explore others (algorithm 1).

    If there are too few of one kind, the other kind fills the round. Explored clients are drawn with equal
    probabilities: the paper draws them by speed, but a server has not measured a client that it has not selected.
    The pacer, which relaxes T, and the limit on how often a client is selected are left out.
    """
    clients = view.reachable()
    known = ~np.isnan(view.remembered("last_loss", clients))
    seen, unseen = clients[known], clients[~known]
    share = max(
        view.options["exploration"] * view.options["exploration_decay"] ** (view.round - 1),
        view.options["exploration_min"],
    )
    explored = min(int(share * view.size), len(unseen))
    exploited = min(view.size - explored, len(seen))
    explored = min(view.size - exploited, len(unseen))
    return np.concatenate([exploit(view, seen, exploited), first(unseen, view.arrivals(unseen), explored)])


def exploit(view: SelectionView, clients: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Draw in proportion to utility from the clients that reach a share of the lowest utility of the best `count`."""
    if not count:
        return clients[:0]
    values = np.maximum(utilities(view, clients), LEAST_UTILITY)
    lowest = np.partition(values, len(values) - count)[len(values) - count]
    competing = values >= view.options["cutoff"] * lowest
    return first(clients[competing], view.arrivals(clients[competing], values[competing]), count)


def utilities(view: SelectionView, clients: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the utility of clients whose loss is known, `(clients,)`.

    The statistical utility |B| sqrt(mean loss^2) is approximated by |B| x the mean loss, which is all that clients
    report. It is clipped and, as in the authors' program, scaled to [0, 1] before sqrt(0.1 ln R / last round) is
    added, which would otherwise be negligible. The sum is multiplied by (T / t)^alpha where t > T.
    """
    options = view.options
    data = view.examples[clients] * view.remembered("last_loss", clients)
    data = np.minimum(data, np.quantile(data, options["clip"]))
    spread = data.max() - data.min()
    scaled = (data - data.min()) / (spread if spread > 0 else 1.0)
    last_round = np.maximum(view.remembered("asked_round", clients), 1)
    return np.asarray((scaled + np.sqrt(0.1 * np.log(view.round) / last_round)) * _penalty(view, clients))


def _penalty(view: SelectionView, clients: NDArray[np.int64]) -> NDArray[np.float64]:
    seconds = view.remembered("last_s", clients)
    everybody = view.remembered("last_s", np.arange(view.num_clients))
    measured = everybody[~np.isnan(everybody)]
    preferred = view.options["preferred_s"]
    if not preferred and len(measured):
        preferred = np.quantile(measured, view.options["preferred_quantile"])
    slow = seconds > preferred if preferred else np.zeros(len(clients), dtype=np.bool_)
    return np.asarray(np.where(slow, preferred / np.where(slow, seconds, 1.0), 1.0) ** view.options["penalty"])
