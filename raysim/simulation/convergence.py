"""Estimate the terms of CA-HFP's Theorem 1 and its bounds (arXiv 2603.12591)."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from raysim.client.training import LocalTraining, effective_steps
from raysim.client.view import Workload
from raysim.core import seeding
from raysim.core.tensors import Params
from raysim.simulation import loss_surface
from raysim.simulation.loss_surface import LossSurface, squared_norm

CLIENT_ROWS = 256
"""Most training rows of one client that its gradient is computed on; drawn for the round."""


def gradient_spread(
    workload: Workload,
    surface: LossSurface,
    weights: Params,
    clients: NDArray[np.int64],
    shares: NDArray[np.float64],
    round: int,
) -> tuple[float, float]:
    """Return sigma^2 = sum p_k E ||minibatch gradient - g_k||^2 and zeta^2 = sum p_k ||g_k - sum p_l g_l||^2.

    Args:
        workload: The clients' rows and batch size.
        surface: The loss; its own rows are not used.
        weights: Full weights w at which every gradient is computed, whatever a client's mask.
        clients: Ids.
        shares: p_k, adding up to 1, `(clients,)`.
        round: Counted from 1.
    """
    variance, squares = 0.0, 0.0
    mean = {name: 0 * weights[name] for name in surface.names}
    for client, share in zip(clients.tolist(), shares.tolist(), strict=True):
        rng = seeding.generator(workload.seed, "diagnosed client rows", round, client)
        rows = rng.permutation(workload.population.train[client])[:CLIENT_ROWS]
        own = surface.on(*workload.data.train_rows(rows))
        gradient, spread = loss_surface.gradient_and_variance(own, weights, workload.local.batch_size)
        variance += share * spread
        squares += share * squared_norm(gradient)
        for name, value in gradient.items():
            mean[name] += share * value
    return variance, max(0.0, squares - squared_norm(mean))


def steps_and_size(
    local: LocalTraining, round: int, epochs: NDArray[np.int64], examples: NDArray[np.int64]
) -> tuple[float, float]:
    """Return E, the mean number of steps per example of the cohort, and eta, the move of a step per gradient.

    The theorem is about plain SGD. Under momentum eta is rate x a_n / n, so that eta E is the move of n steps on
    a constant gradient (a_n of the `variation` estimator); for Adam and AdamW it is the rate.
    """
    momentum = local.momentum if local.optimizer == "sgd" else 0.0
    steps = [
        replace(local, epochs=int(passes)).num_steps(int(rows)) for passes, rows in zip(epochs, examples, strict=True)
    ]
    shares = examples / examples.sum()
    mean = float(shares @ steps)
    moved = float(shares @ [effective_steps(count, momentum, local.nesterov) for count in steps])
    return mean, local.learning_rate_in(round) * moved / mean


def bounds(
    start_loss: float, steps: float, step_size: float, rounds: int, smoothness: float, spread: float, error: float
) -> tuple[float, float]:
    """Return 4 F0 / (eta E T) + 16 L eta E (sigma^2 + zeta^2) + c ||e||^2 with c = 12 L eta E, and with 12 L / eta.

    The first is Theorem 1 as printed, the second has the constant that follows from Lemma 1.

    >>> bounds(start_loss=1.0, steps=2.0, step_size=0.5, rounds=4, smoothness=1.0, spread=0.25, error=1.0)
    (17.0, 29.0)
    """
    moved = step_size * steps
    both = 4 * start_loss / (moved * rounds) + 16 * smoothness * moved * spread
    return both + 12 * smoothness * moved * error, both + 12 * smoothness * error / step_size
