"""FedProx's stragglers: part of a cohort trains fewer epochs (arXiv 1812.06127, section 5.2)."""

import numpy as np
from numpy.typing import NDArray

from raysim.core import seeding
from raysim.methods.method import RoundView
from raysim.methods.scores import draw


def variable_work(view: RoundView) -> NDArray[np.int64]:
    """Let a share of the cohort train a number of epochs drawn uniformly from 1 to `training.epochs`."""
    size = len(view.clients)
    if not size:
        return view.epochs
    order = seeding.generator(view.seed, "stragglers", view.round).permutation(size)
    epochs = np.full(size, view.local.epochs)
    chance = seeding.generator(view.seed, "number of stragglers", view.round, int(view.clients[0])).random()
    for index in order[: int(size * view.options["straggler_share"] + chance)]:  # a cohort of one has one, sometimes
        epochs[index] = draw(view, "epochs", index).integers(1, view.local.epochs + 1)
    return epochs
