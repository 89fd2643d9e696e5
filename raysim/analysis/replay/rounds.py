"""The rounds of a recorded run, timed anew with the functions that time a run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from raysim.analysis.replay.changes import asks_by_device, looks_at
from raysim.analysis.replay.order import Starts
from raysim.analysis.replay.source import Recorded
from raysim.analysis.replay.starts import Conditions, some, work_of
from raysim.clock import energy
from raysim.clock.interruptions import are_reachable, interrupted
from raysim.clock.modes import fill_buffer
from raysim.clock.outcomes import ABSENT, COUNTED, INFEASIBLE, UNREACHABLE
from raysim.clock.work import Absent, Plan, Work, unfinished
from raysim.core.tensors import Columns
from raysim.models.cost import ModelCost
from raysim.simulation.accounting import (
    absent_columns,
    add_round,
    clock_columns,
    in_order,
    waiting_s,
    with_score,
    with_targets,
)
from raysim.simulation.scenario import StopRules
from raysim.simulation.state import Score, Totals


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """A round timed anew.

    Attributes:
        round: Counted from 1.
        round_s: Its simulated seconds.
        totals: What the run has spent by then, and reached as far as that is known.
        clients: Its table; `row` tells each client's row among the recorded ones.
        other_work: Whether the work that counts is not that of the recorded round.
        answers: Clients that would answer, and did not in the run.
        asks_others: Whether the selection rule would have asked other clients.
        ran_out: Whether more clients would start than the records hold.
        knows_accuracy: Whether the global model is the recorded one.
    """

    round: int
    round_s: float
    totals: Totals
    clients: Columns
    other_work: bool
    answers: int
    asks_others: bool
    ran_out: bool
    knows_accuracy: bool


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    totals: Totals
    knows_accuracy: bool
    asks_others: bool
    history: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    in_flight: tuple[Work, ...] = ()


def replay_rounds(
    recorded: Recorded, conditions: Conditions, changed: NDArray[np.bool_], knows_accuracy: bool = True,
    asks_others: bool = False,
) -> Iterator[Replayed]:  # fmt: skip
    """Time the recorded rounds anew, in order, until there are no more or the run's stop rules are met.

    Args:
        recorded: The run.
        conditions: Under what it is timed.
        changed: Which rows' clients would have trained another submodel, `(rows,)`.
        knows_accuracy: Whether rounds start from the recorded model.
        asks_others: Whether the selection rule would have asked other clients from round 1 on.
    """
    stop = StopRules(**recorded.settings.stop.model_dump(exclude_none=True))
    last = len(recorded.rounds["round"])
    replay = _Replay(recorded, conditions, changed)
    state = _State(spent_before(recorded), knows_accuracy, asks_others)
    for round in range(1, last + 1):
        state = replay.selected(state, round)
        plan, asked, answers = replay.plan(state, round)
        after, table = replay.moved_on(state, plan, asked, round)
        is_over = round == last or stop.are_met(after.totals)
        if is_over and after.in_flight:
            after, table = replay.closed(after, table, asked, round)
        score = _score_of(recorded, round) if after.knows_accuracy else None
        reached = with_targets(after.totals, score, recorded.settings.evaluation.targets, round)
        after = replace(after, totals=reached)
        state = replace(after, knows_accuracy=after.knows_accuracy and not answers)
        yield Replayed(
            round, plan.round_s, state.totals, table, other_work(table, asked), answers, state.asks_others,
            replay.ran_out, state.knows_accuracy,
        )  # fmt: skip
        if is_over:
            return


class _Replay:
    """One way of timing a run; see `replay_rounds`."""

    def __init__(self, recorded: Recorded, conditions: Conditions, changed: NDArray[np.bool_]) -> None:
        self._recorded, self._conditions, self._changed = recorded, conditions, changed
        self._dense = ModelCost(**recorded.summary["full_model"])
        self._rounds = _rows_by_round(recorded)
        self._began_s = [spent_before(recorded).simulated_s, *recorded.rounds["simulated_s"][:-1].tolist()]
        self._starts = None
        if not conditions.rules.mode.starts_together:
            self._starts = Starts(conditions, recorded.clients, self._began_s)

    @property
    def ran_out(self) -> bool:
        """Whether more clients would have started than the records hold."""
        return self._starts is not None and self._starts.ran_out

    def selected(self, state: _State, round: int) -> _State:
        """Return the state when clients are asked: whether its rule would ask others, now or before."""
        rule, devices = self._recorded.settings.selection.rule, self._conditions.devices
        sees_time = asks_by_device(rule, devices, devices)
        moved = sees_time and state.totals.simulated_s != self._began_s[round - 1]
        learned = (sees_time or looks_at(rule, "last_loss")) and not state.knows_accuracy
        asks_others = state.asks_others or moved or learned
        return replace(state, asks_others=asks_others, knows_accuracy=state.knows_accuracy and not asks_others)

    def plan(self, state: _State, round: int) -> tuple[Plan, Columns, int]:
        """Return who ends when, the recorded round's rows, and how many of those would answer only now."""
        rows, now_s, conditions = self._rounds[round], state.totals.simulated_s, self._conditions
        if self._starts is None:
            clients = rows["client"]
            online = are_reachable(conditions.devices.of(clients), state.history, clients, now_s, conditions.seed)
            answers = int((online & (rows["fate"] == UNREACHABLE)).sum())
            return plan_together(conditions, rows, online, round, now_s, state.history), rows, answers
        self._starts.begin(round, state.history, state.in_flight)
        plan = fill_buffer(conditions.rules, state.in_flight, now_s, self._starts.fill)
        never = np.isin(rows["fate"], ABSENT)
        selected_s = self._asked_s(rows["start_s"][never], round, now_s, plan.round_s)
        return replace(plan, absent=_absent(some(rows, never), selected_s, rows["fate"][never])), rows, 0

    def _asked_s(
        self, recorded_s: NDArray[np.float64], round: int, now_s: float, round_s: float
    ) -> NDArray[np.float64]:  # fmt: skip
        """Return when clients are asked: as long after the round's begin as in the run, but before its end."""
        selected_s = recorded_s + (now_s - self._began_s[round - 1])
        is_shorter = round_s < self._recorded.rounds["round_s"][round - 1]
        return np.asarray(np.clip(selected_s, now_s, now_s + round_s if is_shorter else np.inf))

    def moved_on(self, state: _State, plan: Plan, rows: Columns, round: int) -> tuple[_State, Columns]:
        """Return the state after a round, and the round's table."""
        recorded, conditions, now_s = self._recorded, self._conditions, state.totals.simulated_s
        table = self._table(plan, rows, round, now_s, state.history)
        totals = add_round(state.totals, plan, table, self._dense, recorded.settings.training.epochs)
        knows = state.knows_accuracy and not other_work(table, rows) and not self._trained_otherwise(table)
        totals = with_score(totals, _score_of(recorded, round) if knows else None)
        waits = conditions.rules.mode.waits_for_end
        ends_s = now_s + plan.round_s - conditions.rules.server_s if waits else None
        history = energy.remembered(conditions.devices, state.history, table, ends_s)
        return _State(totals, knows, state.asks_others, history, plan.in_flight), table

    def closed(self, state: _State, table: Columns, rows: Columns, round: int) -> tuple[_State, Columns]:
        """Return the last round's state and table: work that would go on ends unfinished."""
        now_s = state.totals.simulated_s
        rest = Plan(tuple(unfinished(work, now_s) for work in state.in_flight), Absent.nobody(), (), 0.0, {})
        given_up = self._table(rest, rows, round, now_s, state.history)
        totals = add_round(state.totals, rest, given_up, self._dense, self._recorded.settings.training.epochs)
        totals = replace(totals, empty_rounds=state.totals.empty_rounds)
        together = in_order([table, given_up], round)
        return replace(state, totals=totals, in_flight=()), together

    def _table(
        self, plan: Plan, rows: Columns, round: int, now_s: float, history: Mapping[str, NDArray[np.float64]]
    ) -> Columns:  # fmt: skip
        """Return the round's table, with each client's row among the recorded ones and what that alone tells."""
        devices = self._conditions.devices
        waits_s = waiting_s(self._conditions.rules, plan, now_s)
        tables = [clock_columns(devices, history, *each) for each in zip(plan.ended, waits_s, strict=True)]
        examples = rows["examples"][np.searchsorted(rows["client"], plan.absent.clients)]
        table = in_order([*tables, absent_columns(devices, plan.absent, examples, round)], round)
        row = self._rows_of(table, rows)
        return table | {"row": row, "pruning_ratio": self._recorded.clients["pruning_ratio"][row]}

    def _rows_of(self, table: Columns, rows: Columns) -> NDArray[np.int64]:
        """Return which recorded row each client's work or absence is told by."""
        if self._starts is None:
            return np.asarray(rows["row"][np.searchsorted(rows["client"], table["client"])])
        started = self._starts.row_of
        asked = dict(zip(rows["client"].tolist(), rows["row"].tolist(), strict=True))
        absent = np.isin(table["fate"], ABSENT).tolist()
        found = zip(table["client"].tolist(), absent, strict=True)
        return np.array([(asked if is_absent else started)[client] for client, is_absent in found], dtype=np.int64)

    def _trained_otherwise(self, table: Columns) -> bool:
        """Whether somebody would have trained another submodel, or another number of epochs."""
        answered = table["fate"] != UNREACHABLE
        row = table["row"][answered]
        epochs = self._recorded.clients["planned_epochs"][row]
        return bool(self._changed[row].any() or (table["planned_epochs"][answered] != epochs).any())


def plan_together(
    conditions: Conditions, rows: Columns, online: NDArray[np.bool_], round: int, now_s: float,
    history: Mapping[str, NDArray[np.float64]],
) -> Plan:  # fmt: skip
    """Plan a round that the clients of the recorded one start together.

    Args:
        conditions: Under what they work.
        rows: The recorded round.
        online: Which of its clients answer.
        round: Counted from 1.
        now_s: Simulated time at which it begins.
        history: What is remembered of every client.
    """
    rules = conditions.rules
    starts = online & ~np.isin(rows["fate"], ABSENT)
    outcomes = np.where(online & (rows["fate"] == INFEASIBLE), INFEASIBLE, UNREACHABLE)[~starts]
    absent = _absent(some(rows, ~starts), np.full(len(outcomes), now_s), outcomes)
    if not starts.any():
        return Plan((), absent, (), rules.nobody_s + rules.server_s, {})
    work = work_of(conditions, some(rows, starts), round, now_s)
    work = interrupted(work, conditions.devices, history, conditions.seed)
    work, duration_s = rules.mode.end(work, rules, conditions.cohort_size)
    return Plan((work,), absent, (), duration_s + rules.server_s, {})


def _absent(rows: Columns, selected_s: NDArray[np.float64], outcomes: NDArray[np.str_]) -> Absent:
    return Absent(rows["client"], selected_s, outcomes, rows["limited_by"])


def other_work(table: Columns, rows: Columns) -> bool:
    """Whether other work counts than in the recorded round: of other clients, or from other versions."""
    counted, before = table["fate"] == COUNTED, rows["fate"] == COUNTED
    return any(not np.array_equal(table[name][counted], rows[name][before]) for name in ("client", "started_round"))


def spent_before(recorded: Recorded) -> Totals:
    """Return what the run had spent before round 1."""
    summary, clients = recorded.summary, recorded.clients
    totals = Totals(
        **{name: summary[name] for name in summary if name.startswith("preparation_")},
        down_bytes=summary["down_bytes"] - int(clients["down_bytes"].sum()),
        up_bytes=summary["up_bytes"] - int(clients["up_bytes"].sum()),
    )
    return replace(
        totals, train_flops=totals.preparation_flops, simulated_s=totals.preparation_s,
        energy_j=totals.preparation_j,
    )  # fmt: skip


def _rows_by_round(recorded: Recorded) -> dict[int, Columns]:
    """Return the rows of each round in the order of ids; in the table, unfinished work comes after the rest."""
    clients, rounds = recorded.clients, recorded.rounds["round"]
    order = np.lexsort((clients["client"], clients["round"]))
    table = some(clients | {"row": np.arange(len(order))}, order)
    ends = np.searchsorted(table["round"], rounds, side="right")
    begins = np.searchsorted(table["round"], rounds, side="left")
    return {
        int(round): some(table, slice(begin, end)) for round, begin, end in zip(rounds, begins, ends, strict=True)
    }


def _score_of(recorded: Recorded, round: int) -> Score | None:
    accuracy, loss = (float(recorded.rounds[name][round - 1]) for name in ("accuracy", "loss"))
    return None if np.isnan(accuracy) else Score(accuracy, loss)
