"""Selection rules: one function each, from what the server knows to the ids of those who are asked."""

import numpy as np
from numpy.typing import NDArray

from raysim.core import seeding
from raysim.selection.view import SelectionView, first


def uniform(view: SelectionView) -> NDArray[np.int64]:
    """Draw from all registered clients with equal chances, reachable or not."""
    allowed = np.arange(view.num_clients) if view.exclude is None else np.flatnonzero(~view.exclude)
    rng = seeding.generator(view.seed, "selection", view.round)
    return allowed[rng.choice(len(allowed), min(view.size, len(allowed)), replace=False)]


def available(view: SelectionView) -> NDArray[np.int64]:
    """Draw from the clients that can be reached with equal chances."""
    clients = view.reachable()
    return first(clients, view.arrivals(clients), view.size)


def by_examples(view: SelectionView) -> NDArray[np.int64]:
    """Draw each next client in proportion to its training rows."""
    clients = view.reachable()
    return first(clients, view.arrivals(clients, view.examples[clients].astype(np.float64)), view.size)


def power_of_choice(view: SelectionView) -> NDArray[np.int64]:
    """Draw candidates in proportion to their rows, and keep those with the highest last loss.

    Who has reported no loss yet comes first, those drawn first before others. Source: Cho, Wang and Joshi,
    arXiv 2010.01243, section 3, the variant rpow-d, which asks candidates for nothing.
    """
    clients = view.reachable()
    arrivals = view.arrivals(clients, view.examples[clients].astype(np.float64))
    wanted = max(view.size, view.options.get("candidates") or 2 * view.size)
    places = first(np.arange(len(clients)), arrivals, wanted)
    losses = view.remembered("last_loss", clients[places])
    ranked = np.lexsort((arrivals[places], -np.where(np.isnan(losses), np.inf, losses)))
    return clients[places[ranked[: view.size]]]


def round_robin(view: SelectionView) -> NDArray[np.int64]:
    """Take those who have not been asked for longest; among equals in an order drawn once."""
    clients = view.reachable()
    order = seeding.uniform(view.seed, "round robin", 0, clients)[0]
    return first(clients, view.remembered("asked_round", clients) + order, view.size)
