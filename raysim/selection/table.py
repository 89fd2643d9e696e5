"""The table of selection rules; selecting by a rule, and the columns kept for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.core import plugins
from raysim.core.errors import SettingError, unknown_name
from raysim.core.options import Option, own_options
from raysim.selection import oort, rules
from raysim.selection.view import COLUMNS, SelectionView

History = Mapping[str, NDArray[np.float64]]
"""Columns kept of all clients, `(clients,)` each, by name."""


@dataclass(frozen=True, slots=True, eq=False)
class SelectionRule:
    """One row of the table.

    Attributes:
        name: Name in the settings.
        source: Where it comes from.
        pick: Returns the ids of the selected clients, at most `size`, from the server's view.
        columns: The columns of `COLUMNS` that it needs.
        own: Its options.
        options: Their values.
    """

    name: str
    source: str
    pick: Callable[[SelectionView], NDArray[np.int64]]
    columns: tuple[str, ...] = ()
    own: Mapping[str, Option] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def resolve(name: str, given: Mapping[str, Any], clients_per_round: int) -> SelectionRule:
    """Look up a rule and apply the given options.

    Args:
        name: A row of the table, or a dotted path to a user's function, which gets all columns, and its options
            unchecked.
        given: Options by name.
        clients_per_round: Clients of a round.

    Raises:
        SettingError: If the rule or an option is unknown, or an option's value is not allowed.
    """
    if plugins.is_dotted(name):
        pick = plugins.load("selection.rule", name)
        if not callable(pick):
            raise SettingError(f"selection.rule={name!r} is {type(pick).__name__}; allowed: a function")
        return SelectionRule(name, "your own", pick, tuple(COLUMNS), options=dict(given))
    if name not in SELECTIONS:
        raise unknown_name("selection.rule", name, SELECTIONS)
    row = SELECTIONS[name]
    rule = replace(row, options=own_options(name, row.own, given, "selection.rule"))
    if rule.options.get("preferred_s") and "preferred_quantile" in given:
        raise SettingError(
            f"selection.options.preferred_quantile={given['preferred_quantile']} has no effect with preferred_s="
            f"{rule.options['preferred_s']:g}; it belongs to preferred_s=0"
        )
    candidates = rule.options.get("candidates", 0)
    if 0 < candidates < clients_per_round:
        raise SettingError(
            f"selection.options.candidates={candidates} is less than selection.clients_per_round="
            f"{clients_per_round}; allowed: {clients_per_round} or more, or 0 for twice as many"
        )
    return rule


def looks_at(rule: str, column: str) -> bool:
    """Whether a selection rule looks at a column of the clients' history; a user's own rule may look at all."""
    return plugins.is_dotted(rule) or column in SELECTIONS[rule].columns


def choose(rule: SelectionRule, view: SelectionView) -> NDArray[np.int64]:
    """Return the ids of the selected clients, ascending; fewer than `size` if there are not so many.

    Raises:
        ValueError: If a user's rule returns something else.
    """
    chosen = np.sort(np.asarray(rule.pick(replace(view, options=rule.options))))
    if chosen.ndim != 1 or (len(chosen) and not np.issubdtype(chosen.dtype, np.integer)):
        raise ValueError(f"selection rule {rule.name!r} gives {chosen.dtype} of shape {chosen.shape}; allowed: ids")
    if len(chosen) > view.size or (np.diff(chosen) == 0).any():
        raise ValueError(f"selection rule {rule.name!r} gives {len(chosen)} ids; allowed: up to {view.size} distinct")
    if len(chosen) and (chosen[0] < 0 or chosen[-1] >= view.num_clients):
        raise ValueError(f"selection rule {rule.name!r} gives an id that is not in 0 to {view.num_clients - 1}")
    chosen = chosen.astype(np.int64)
    if view.exclude is not None and view.exclude[chosen].any():
        raise ValueError(f"selection rule {rule.name!r} gives an excluded client")
    return chosen


def initial_history(rule: SelectionRule, num_clients: int) -> dict[str, NDArray[np.float64]]:
    """Return the columns of a rule before the first round."""
    return {name: np.full(num_clients, COLUMNS[name]) for name in rule.columns}


def updated_history(
    rule: SelectionRule,
    history: History,
    clients: NDArray[np.int64],
    losses: NDArray[np.float64],
    seconds: NDArray[np.float64],
    round: int,
) -> dict[str, NDArray[np.float64]]:
    """Return the columns of a rule after a round.

    Args:
        rule: The selection rule.
        history: Its columns before the round; not changed.
        clients: The selected clients, `(selected,)`.
        losses: Their mean training losses. NaN: none has arrived, the previous one stays.
        seconds: Their simulated seconds. NaN: as for losses.
        round: Counted from 1.
    """
    new = {"asked_round": np.full(len(clients), float(round)), "last_loss": losses, "last_s": seconds}
    updated = {}
    for name in rule.columns:
        column, known = history[name].copy(), ~np.isnan(new[name])
        column[clients[known]] = new[name][known]
        updated[name] = column
    return updated


SELECTIONS: dict[str, SelectionRule] = {
    rule.name: rule
    for rule in (
        SelectionRule("uniform", "McMahan et al., arXiv 1602.05629", rules.uniform),
        SelectionRule("available", "uniform among those that can be reached", rules.available),
        SelectionRule(
            "power-of-choice", "Cho, Wang and Joshi, arXiv 2010.01243, rpow-d", rules.power_of_choice, ("last_loss",),
            {"candidates": Option(0, "clients drawn, those with the highest loss are selected; 0: twice as many")},
        ),
        SelectionRule("oort", "Lai et al., OSDI 2021, algorithm 1", oort.oort, tuple(COLUMNS), oort.OPTIONS),
        SelectionRule("round-robin", "longest not selected", rules.round_robin, ("asked_round",)),
        SelectionRule("by-examples", "in proportion to training rows", rules.by_examples),
    )
}  # fmt: skip
