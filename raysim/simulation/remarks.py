"""Remarks at the start of a run: what its settings ask for and its method or model does not do."""

import numpy as np

from raysim.simulation.scenario import Scenario

NAMED = 3
"""Widths or layers that are named; the rest are numbered."""


def changed_widths(scenario: Scenario) -> str:
    """Describe widths that the method trains instead of those of the tiers; empty if there are none.

    Methods that train the full model whatever the budget say so by their description.
    """
    method, given = scenario.method, scenario.workload.population.devices.keep_ratio
    if scenario.budget is not None or method.ignores_budgets:
        return ""
    widths, counts = np.unique(given, return_counts=True)
    trained = method.budget(widths)
    found = [
        f"{width:g} -> {instead:g} ({count:,} client{'s' * (count != 1)})"
        for width, instead, count in zip(widths.tolist(), trained.tolist(), counts.tolist(), strict=True)
        if width != instead
    ]
    return f"method.name={method.name!r} changes keep_ratio: {_first(found)}" if found else ""


def nothing_cut(scenario: Scenario) -> str:
    """Describe why nothing of the model can be cut, where the method would cut it; empty if something can."""
    plan, devices = scenario.workload.plan, scenario.workload.population.devices
    if plan.groups or not scenario.method.cuts_channels(devices.keep_ratio) or _is_untraced(scenario):
        return ""
    reasons = [f"{layer}: {reason}" for layer, reason in plan.unprunable.items()]
    why = _first(reasons) if reasons else "it has no layers with channels that can be dropped"
    return f"nothing of the model can be cut, and every client trains it whole: {why}"


def _is_untraced(scenario: Scenario) -> bool:
    """Whether the model could not be traced, of which the scenario's building has warned."""
    model, reasons = scenario.workload.model, scenario.workload.plan.unprunable
    layers = {name for name, layer in model.named_modules() if list(layer.parameters(recurse=False))}
    return set(reasons) == layers and len(set(reasons.values())) == 1


def _first(parts: list[str]) -> str:
    more = f" and {len(parts) - NAMED:,} more" if len(parts) > NAMED else ""
    return "; ".join(parts[:NAMED]) + more
