"""Selection rules: one function each, from the server's view to the ids of the selected clients."""

import numpy as np
from numpy.typing import NDArray

from raysim.core import seeding
from raysim.selection.view import SelectionView, first


def uniform(view: SelectionView) -> NDArray[np.int64]:
    """Draw from all registered clients with equal probabilities, reachable or not."""
    allowed = np.arange(view.num_clients) if view.exclude is None else np.flatnonzero(~view.exclude)
    rng = seeding.generator(view.seed, "selection", view.round)
    return allowed[rng.choice(len(allowed), min(view.size, len(allowed)), replace=False)]


def available(view: SelectionView) -> NDArray[np.int64]:
    """Draw with equal probabilities from the clients that can be reached."""
    clients = view.reachable()
    return first(clients, view.arrivals(clients), view.size)


def by_examples(view: SelectionView) -> NDArray[np.int64]:
    """Draw each next client in proportion to its training rows."""
    clients = view.reachable()
    return first(clients, view.arrivals(clients, view.examples[clients].astype(np.float64)), view.size)


def power_of_choice(view: SelectionView) -> NDArray[np.int64]:
    """Draw candidates in proportion to their rows, and keep those with the highest last loss.

    Clients that have reported no loss yet come first, in the order in which they were drawn. Source: Cho, Wang and
    Joshi, arXiv 2010.01243, section 3, the variant rpow-d, which needs no communication with candidates.
    """
    clients = view.reachable()
    arrivals = view.arrivals(clients, view.examples[clients].astype(np.float64))
    wanted = max(view.size, view.options.get("candidates") or 2 * view.size)
    candidates = first(np.arange(len(clients)), arrivals, wanted)
    losses = view.remembered("last_loss", clients[candidates])
    ranked = np.lexsort((arrivals[candidates], -np.where(np.isnan(losses), np.inf, losses)))
    return clients[candidates[ranked[: view.size]]]


def round_robin(view: SelectionView) -> NDArray[np.int64]:
    """Select the clients that were not selected for the longest time; among equals in an order drawn once."""
    clients = view.reachable()
    order = seeding.uniform(view.seed, "round robin", 0, clients)[0]
    return first(clients, view.remembered("asked_round", clients) + order, view.size)
