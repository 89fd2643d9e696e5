"""FedMP (arXiv 2112.01070): a bandit per client learns its pruning ratio."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.core.tensors import Params
from raysim.methods.method import CohortReport, RoundView
from raysim.methods.scores import draw

HIGHEST_RATIO = 0.9


@dataclass(frozen=True, slots=True, eq=False)
class Trials:
    """The ratios that one client has tried, arrays `(trials,)`, oldest first."""

    round: NDArray[np.float64]
    ratio: NDArray[np.float64]
    reward: NDArray[np.float64]


def chosen_widths(view: RoundView) -> NDArray[np.float64]:
    """Return one minus the pruning ratio that each client's bandit chooses."""
    history = _history(view.memory)
    ratios = []
    for index, client in enumerate(view.clients):
        mine = history[history[:, 0] == client]
        trials = Trials(mine[:, 1], mine[:, 2], mine[:, 3])
        low, high = best_leaf(trials, view.round, view.options["discount"], view.options["leaf_width"])
        ratios.append(draw(view, "pruning ratio", index).uniform(low, high))
    return 1 - np.array(ratios)


def leaves(tried: NDArray[np.float64], leaf_width: float) -> list[tuple[float, float]]:
    """Return the intervals of [0, 0.9] that a client's trials have split; those narrower than a leaf stay whole.

    >>> leaves(np.array([0.3]), 0.1)
    [(0.0, 0.3), (0.3, 0.9)]
    """
    found = [(0.0, HIGHEST_RATIO)]
    for ratio in tried.tolist():
        index = next(i for i, (low, high) in enumerate(found) if low <= ratio <= high)
        low, high = found[index]
        if high - low > leaf_width and low < ratio < high:
            found[index : index + 1] = [(low, ratio), (ratio, high)]
    return found


def best_leaf(trials: Trials, round: int, discount: float, leaf_width: float) -> tuple[float, float]:
    """Return the interval of the greatest upper confidence bound, untried ones first (algorithm 1, E-UCB).

    A trial where an interval was split counts in the upper part alone.
    """
    found = leaves(trials.ratio, leaf_width)
    weights = discount ** (round - trials.round)
    scale = max(float(np.abs(trials.reward).max(initial=0.0)), 1e-30)
    bounds = []
    for low, high in found:
        inside = (trials.ratio >= low) & ((trials.ratio < high) | (high == HIGHEST_RATIO))
        count = float(weights[inside].sum())
        if count == 0:
            return low, high
        mean = float((weights * trials.reward / scale)[inside].sum()) / count
        bounds.append(mean + np.sqrt(2 * np.log(max(float(weights.sum()), 1.0)) / count))
    return found[int(np.argmax(bounds))]


def remember_rewards(params: Params, memory: Params, report: CohortReport) -> tuple[Params, Params]:
    """Reward each client with its loss decrease over |its seconds - the cohort's mean| (eq 8)."""
    view = report.view
    losses = report.contribution.clients["train_loss"].astype(np.float64)
    last = memory.get("fedmp/last_loss", torch.full((view.num_clients,), torch.nan, dtype=torch.float64)).clone()
    before = last[view.clients].numpy()
    gain = np.where(np.isnan(before), 0.0, before - losses)
    mean = report.total_s.mean()
    reward = gain / np.maximum(np.abs(report.total_s - mean), 0.01 * mean)
    last[view.clients] = torch.from_numpy(losses)
    rounds = np.full(len(view.clients), view.round)
    trials = np.stack([view.clients, rounds, 1 - view.keep_ratios, reward], axis=1).astype(np.float64)
    history = np.concatenate([_history(memory), trials])
    return params, {**memory, "fedmp/last_loss": last, "fedmp/plays": torch.from_numpy(history)}


def _history(memory: Params) -> NDArray[np.float64]:
    """Return all trials as rows of client, round, ratio and reward."""
    trials = memory.get("fedmp/plays")
    return np.empty((0, 4)) if trials is None else np.asarray(trials.numpy(), dtype=np.float64)
