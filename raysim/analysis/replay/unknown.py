"""List what a replay cannot know, since the records of a run do not determine it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysim.analysis.replay.finished_run import FinishedRun
from raysim.analysis.replay.rounds import ReplayedRound
from raysim.clock import outcomes
from raysim.clock.interruptions import availability_varies
from raysim.clock.modes import MODES
from raysim.methods.method import Method
from raysim.population.profiles import Devices
from raysim.simulation.scenario import StopRules

REPRODUCED = ("simulated_s", "energy_j", "down_bytes", "up_bytes", "train_flops")
SUBMODEL_CAUSES = {
    "tier": "their devices' keep_ratio differs",
    "solved": "solved for their devices, their budgets differ",
}
"""Why clients would have trained other submodels, by `budget.rule`."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A fact that a replay cannot derive from the records.

    Attributes:
        reason: A description of the unknown, with the cause.
        rounds: The number of rounds that it concerns; 0: not counted.
        client_rounds: The number of clients in rounds that it concerns; 0: not counted.
    """

    reason: str
    rounds: int = 0
    client_rounds: int = 0


def of_devices(recorded: FinishedRun, method: Method, others: Devices) -> list[Unknown]:
    """Return what is unknown on other devices from the first round on.

    Args:
        recorded: The run.
        method: Its method.
        others: The other devices of its clients.
    """
    name, mode = recorded.settings.method.name, MODES[recorded.settings.clock.mode]
    reasons = []
    if method.prepare is not None:
        reasons.append("the preparation before round 1 is not timed again: its seconds and joules are kept")
    if method.learns_widths:
        reasons.append(
            f"method.name={name!r} chooses submodels from what it learns, which may depend on devices: "
            f"they are as recorded, the {recorded.primary.title} is not known"
        )
    if not mode.starts_together:
        reasons.append(
            "clients start in the recorded order, as soon as there is room: which of them would have been selected "
            "depends on which are busy"
        )
    varies = availability_varies(recorded.devices) or availability_varies(others)
    if varies and not mode.starts_together:
        reasons.append("the clients that did not answer are as recorded")
    return [Unknown(reason) for reason in reasons]


def of_rounds(
    recorded: FinishedRun, method: Method, rounds: Sequence[ReplayedRound], changed: NDArray[np.bool_]
) -> list[Unknown]:
    """Return what is unknown in single rounds, and of clients in them.

    Args:
        recorded: The run.
        method: Its method.
        rounds: Its rounds, timed again.
        changed: Which recorded rows' clients would have trained another submodel, `(rows,)`.
    """
    found = [*_submodels(recorded, rounds, changed), *_epochs(recorded, method, rounds)]
    other = sum(each.other_work for each in rounds)
    found += [Unknown("other work counts than in the run", other)] if other else []
    answers = [each.answers for each in rounds if each.answers]
    reason = (
        "clients that did not answer in the run would have answered: their work is not known, and they are left out"
    )
    found += [Unknown(reason, len(answers), sum(answers))] if answers else []
    selects = sum(each.selects_others for each in rounds)
    rule = recorded.settings.selection.rule
    reason = f"selection.rule={rule!r} would have selected others: the selected clients are as recorded"
    found += [Unknown(reason, selects)] if selects else []
    short = sum(each.ran_out for each in rounds)
    found += [Unknown("more clients would have started than the run had", short)] if short else []
    return found + _learning(recorded, method, rounds) + _end(recorded, rounds)


def _submodels(recorded: FinishedRun, rounds: Sequence[ReplayedRound], changed: NDArray[np.bool_]) -> list[Unknown]:
    per_round = [int(changed[each.clients["row"]].sum()) for each in rounds]
    cause = SUBMODEL_CAUSES[recorded.settings.budget.rule]
    return _in_rounds(
        f"{cause}, they would have trained another submodel; timed with the one they trained", per_round
    )


def _epochs(recorded: FinishedRun, method: Method, rounds: Sequence[ReplayedRound]) -> list[Unknown]:
    trained, per_round = recorded.clients["planned_epochs"], []
    for each in rounds:
        answered = each.clients["fate"] != outcomes.UNREACHABLE
        per_round.append(int((each.clients["planned_epochs"] != trained[each.clients["row"]])[answered].sum()))
    shares = "a share of the FLOPs, " + ("which is exact" if method.load is None else "which is an estimate")
    return _in_rounds(f"they would have trained another number of epochs; timed with {shares}", per_round)


def _in_rounds(reason: str, per_round: Sequence[int]) -> list[Unknown]:
    return [Unknown(reason, sum(map(bool, per_round)), sum(per_round))] if any(per_round) else []


def _learning(recorded: FinishedRun, method: Method, rounds: Sequence[ReplayedRound]) -> list[Unknown]:
    """Return what is unknown since another model would have been learned."""
    lost = [each.round for each in rounds if not each.knows_score]
    if not lost:
        return []
    found = [
        Unknown(f"{recorded.primary.title} from round {lost[0]} on: another model would have been learned", len(lost))
    ]
    if not (method.has_known_costs or method.learns_widths):
        name = recorded.settings.method.name
        reason = f"method.name={name!r} chooses submodels from what it learns: they are as recorded"
        found.append(Unknown(reason, len(lost)))
    return found


def _end(recorded: FinishedRun, rounds: Sequence[ReplayedRound]) -> list[Unknown]:
    """Return what is unknown of the round in which the run would have ended."""
    settings, last = recorded.settings, rounds[-1]
    stop = StopRules.of(settings.stop, recorded.primary)
    if settings.stop.given and not last.knows_score:
        return [Unknown(f"in which round {settings.stop.given} would have ended the run")]
    if last.round < settings.rounds and not stop.are_met(last.totals):
        reason = f"the rounds after round {last.round}, the last one of the run"
        return [Unknown(reason, settings.rounds - last.round)]
    return []


def not_reproduced(recorded: FinishedRun, rounds: Sequence[ReplayedRound]) -> list[Unknown]:
    """Return what differs from the run on its own devices: nothing, unless another version made the run."""
    totals, summary = rounds[-1].totals, recorded.summary
    return [
        Unknown(
            f"{name} on the run's own devices: {getattr(totals, name)!r} instead of {summary[name]!r}; "
            "its records come from another version"
        )
        for name in REPRODUCED
        if getattr(totals, name) != summary[name]
    ]
