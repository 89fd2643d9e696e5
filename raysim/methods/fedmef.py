"""FedMef (arXiv 2403.14737): before weights are pruned, training pushes what they hold into the others."""

from math import exp

import torch

from raysim.client.hooks import LocalHooks
from raysim.client.view import ClientView
from raysim.methods import topology
from raysim.methods.options import MethodOptions


def extrude(view: ClientView, options: MethodOptions) -> LocalHooks:
    """Penalise the squared norm of the weights about to be pruned, and step at least as far as the budget allows.

    Source: FedMef, budget-aware extrusion. The loss becomes L + lambda |theta_low|^2. Step t of T has the learning
    rate max(eta_t, beta_t), beta_t = p(t) (2 sigma(|theta_low|) - 1) eta_0, p(t) = (2 T - 2 t) / (2 T - t); eta_0 is
    the first round's, eta_t this round's, and T the client's steps in the round.
    """
    kept = topology.layers_of_client(view)
    counts = topology.replaced_counts(kept, view.broadcast.round, options)
    if not counts:
        return LocalHooks()
    low = {key: kept[key] & ~topology.survivors(view.start[key], kept[key], count) for key, count in counts.items()}
    weights, first_rate = dict(view.model.named_parameters()), view.workload.local.learning_rate
    step = 0

    def push(gradients: list[torch.Tensor]) -> list[torch.Tensor]:
        factor = 2 * float(options["extrusion_penalty"])
        return [
            gradient + factor * weights[name].detach() * low[name] if name in low else gradient
            for name, gradient in zip(view.trainable, gradients, strict=True)
        ]

    def rate() -> float:
        squares = sum(
            float((weights[name].detach() * chosen).double().square().sum()) for name, chosen in low.items()
        )
        return max(view.learning_rate, budget_share(step, view.num_steps) * size_factor(squares**0.5) * first_rate)

    def count_step() -> None:
        nonlocal step
        step += 1

    return LocalHooks(correct=(push,), rate=rate, after_step=(count_step,))


def budget_share(step: int, budget: int) -> float:
    """Return p(t): how a learning rate falls over a budget of steps (REX, Chen et al., arXiv 2107.04197).

    >>> budget_share(0, 10), round(budget_share(5, 10), 3)
    (1.0, 0.667)
    """
    return (2 * budget - 2 * step) / (2 * budget - step)


def size_factor(norm: float) -> float:
    """Return 2 sigma(norm) - 1, from 0 for a norm of 0 to 1.

    >>> size_factor(0.0), round(size_factor(2.0), 3)
    (0.0, 0.762)
    """
    return 2 / (1 + exp(-norm)) - 1
