"""What rounds that were timed anew show that the records of a run cannot tell."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raysim.analysis.replay.changes import Unknown
from raysim.analysis.replay.rounds import Replayed
from raysim.analysis.replay.source import Recorded
from raysim.clock.outcomes import UNREACHABLE
from raysim.methods.method import Method
from raysim.simulation.scenario import StopRules

REPRODUCED = ("simulated_s", "energy_j", "down_bytes", "up_bytes", "train_flops")


def of_rounds(
    recorded: Recorded, method: Method, rounds: Sequence[Replayed], changed: NDArray[np.bool_]
) -> list[Unknown]:
    """Return what is unknown of single rounds, and of clients in them.

    Args:
        recorded: The run.
        method: Its method.
        rounds: Its rounds, timed anew.
        changed: Which recorded rows' clients would have trained another submodel, `(rows,)`.
    """
    found = [*_submodels(recorded, rounds, changed), *_epochs(recorded, method, rounds)]
    other = sum(each.other_work for each in rounds)
    found += [Unknown("other work counts than in the run", other)] if other else []
    answers = [each.answers for each in rounds if each.answers]
    reason = (
        "clients that did not answer in the run would: what they would have trained is not known, they are left out"
    )
    found += [Unknown(reason, len(answers), sum(answers))] if answers else []
    asks = sum(each.asks_others for each in rounds)
    rule = recorded.settings.selection.rule
    reason = f"selection.rule={rule!r} would have asked others: who is asked is as recorded"
    found += [Unknown(reason, asks)] if asks else []
    short = sum(each.ran_out for each in rounds)
    found += [Unknown("more clients would have started than the run had", short)] if short else []
    return found + _learning(recorded, method, rounds) + _end(recorded, rounds)


def _submodels(recorded: Recorded, rounds: Sequence[Replayed], changed: NDArray[np.bool_]) -> list[Unknown]:
    per_round = [int(changed[each.clients["row"]].sum()) for each in rounds]
    causes = {"tier": "their devices' keep_ratio differs", "solved": "solved for their devices, their budgets differ"}
    cause = causes[recorded.settings.budget.rule]
    reason = f"{cause}, they would have trained another submodel; timed with the one they trained"
    return _counted(reason, per_round)


def _epochs(recorded: Recorded, method: Method, rounds: Sequence[Replayed]) -> list[Unknown]:
    trained, per_round = recorded.clients["planned_epochs"], []
    for each in rounds:
        answered = each.clients["fate"] != UNREACHABLE
        per_round.append(int((each.clients["planned_epochs"] != trained[each.clients["row"]])[answered].sum()))
    shares = "a share of the FLOPs, " + ("which is exact" if method.load is None else "which is an estimate")
    return _counted(f"they would have trained another number of epochs; timed with {shares}", per_round)


def _counted(reason: str, per_round: Sequence[int]) -> list[Unknown]:
    return [Unknown(reason, sum(map(bool, per_round)), sum(per_round))] if any(per_round) else []


def _learning(recorded: Recorded, method: Method, rounds: Sequence[Replayed]) -> list[Unknown]:
    """Return what is unknown since another model would have been learned."""
    settings, lost = recorded.settings, [each.round for each in rounds if not each.knows_accuracy]
    if not lost:
        return []
    found = [Unknown(f"accuracy from round {lost[0]} on: another model would have been learned", len(lost))]
    if not (method.has_known_costs or method.learns_widths):
        reason = f"method.name={settings.method.name!r} chooses submodels from what it learns: they are as recorded"
        found.append(Unknown(reason, len(lost)))
    return found


def _end(recorded: Recorded, rounds: Sequence[Replayed]) -> list[Unknown]:
    """Return what is unknown of when the run would have ended."""
    settings, last = recorded.settings, rounds[-1]
    stop = StopRules(**settings.stop.model_dump(exclude_none=True))
    if settings.stop.accuracy is not None and not last.knows_accuracy:
        return [Unknown(f"in which round stop.accuracy={settings.stop.accuracy:g} would have ended the run")]
    if last.round < settings.rounds and not stop.are_met(last.totals):
        return [
            Unknown(f"what comes after round {last.round}, with which the run ended", settings.rounds - last.round)
        ]
    return []


def not_reproduced(recorded: Recorded, rounds: Sequence[Replayed]) -> list[Unknown]:
    """Return what differs from the run on its own devices: nothing, unless it was run by another version."""
    totals, summary = rounds[-1].totals, recorded.summary
    return [
        Unknown(
            f"{name} on the run's own devices: {getattr(totals, name)!r} instead of {summary[name]!r}; "
            "its records come from another version"
        )
        for name in REPRODUCED
        if getattr(totals, name) != summary[name]
    ]
