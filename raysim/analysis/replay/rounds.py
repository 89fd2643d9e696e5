"""Time the rounds of a recorded run again, with the functions that time a run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from raysim.analysis.replay.async_starts import AsyncStarts
from raysim.analysis.replay.fedavg import DenseReplay
from raysim.analysis.replay.finished_run import FinishedRun
from raysim.analysis.replay.other_devices import selects_by_device
from raysim.analysis.replay.work import Conditions, rows_of, work_of
from raysim.clock import energy, outcomes
from raysim.clock.interruptions import are_reachable, interrupted
from raysim.clock.modes import fill_buffer
from raysim.clock.work import Absent, Plan, Work, unfinished
from raysim.core.tensors import Columns
from raysim.methods.method import Method
from raysim.selection.table import looks_at
from raysim.simulation.accounting import (
    absent_columns,
    add_round,
    clock_columns,
    in_order,
    waiting_s,
    with_scores,
    with_targets,
)
from raysim.simulation.scenario import StopRules
from raysim.simulation.state import Score, Totals


@dataclass(frozen=True, slots=True, eq=False)
class ReplayedRound:
    """A round, timed again.

    Attributes:
        round: Counted from 1.
        round_s: Its simulated seconds.
        totals: Costs of the run by then, and its results as far as they are known.
        clients: Its table of clients; `row` is the index of each client's row in the recorded table.
        other_work: Whether other work counts than in the recorded round.
        answers: The number of clients that would answer and did not in the run.
        selects_others: Whether the selection rule would have selected other clients.
        ran_out: Whether more clients would start than the run had.
        knows_score: Whether the global model is the recorded one.
    """

    round: int
    round_s: float
    totals: Totals
    clients: Columns
    other_work: bool
    answers: int
    selects_others: bool
    ran_out: bool
    knows_score: bool


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    totals: Totals
    knows_score: bool
    selects_others: bool
    history: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    in_flight: tuple[Work, ...] = ()


def replay_rounds(
    recorded: FinishedRun,
    method: Method,
    conditions: Conditions,
    changed: NDArray[np.bool_],
    knows_score: bool = True,
    selects_others: bool = False,
) -> Iterator[ReplayedRound]:
    """Time the recorded rounds again, in order, until there are no more or the stop rules of the run are met.

    Args:
        recorded: The run.
        method: Its method.
        conditions: The devices and rules with which it is timed.
        changed: Which rows' clients would have trained another submodel, `(rows,)`.
        knows_score: Whether rounds start from the recorded model.
        selects_others: Whether the selection rule would have selected other clients from round 1 on.
    """
    metric = recorded.primary
    stop = StopRules.of(recorded.settings.stop, metric)
    last = len(recorded.rounds["round"])
    replay, dense = _Replay(recorded, conditions, changed), DenseReplay(recorded, method, conditions)
    state = _State(spent_before(recorded), knows_score, selects_others)
    for round in range(1, last + 1):
        state = replay.selected(state, round)
        plan, rows, answers = replay.plan(state, round)
        after, table = replay.after(state, plan, rows, round)
        is_over = round == last or stop.are_met(after.totals)
        if is_over and after.in_flight:
            after, table = replay.closed(after, table, rows, round)
        score = _score_of(recorded, round) if after.knows_score else None
        reached = with_targets(after.totals, score, recorded.settings.evaluation.targets, round, metric)
        after = replace(after, totals=replace(reached, fedavg=dense.after(reached, is_over)))
        state = replace(after, knows_score=after.knows_score and not answers)
        yield ReplayedRound(
            round,
            plan.round_s,
            state.totals,
            table,
            other_work(table, rows),
            answers,
            state.selects_others,
            replay.ran_out,
            state.knows_score,
        )
        if is_over:
            return


class _Replay:
    """The run and the conditions of one replay; see `replay_rounds`."""

    def __init__(self, recorded: FinishedRun, conditions: Conditions, changed: NDArray[np.bool_]) -> None:
        self._recorded, self._conditions, self._changed = recorded, conditions, changed
        self._rounds = _rows_by_round(recorded)
        self._began_s = [spent_before(recorded).simulated_s, *recorded.rounds["simulated_s"][:-1].tolist()]
        self._starts = None
        if not conditions.rules.mode.starts_together:
            self._starts = AsyncStarts(conditions, recorded.clients, self._began_s)

    @property
    def ran_out(self) -> bool:
        """Whether more clients would have started than the records hold."""
        return self._starts is not None and self._starts.ran_out

    def selected(self, state: _State, round: int) -> _State:
        """Return the state after the selection: whether the rule would have selected others, now or before."""
        rule, devices = self._recorded.settings.selection.rule, self._conditions.devices
        sees_time = selects_by_device(rule, devices, devices)
        moved = sees_time and state.totals.simulated_s != self._began_s[round - 1]
        learned = (sees_time or looks_at(rule, "last_loss")) and not state.knows_score
        selects_others = state.selects_others or moved or learned
        return replace(state, selects_others=selects_others, knows_score=state.knows_score and not selects_others)

    def plan(self, state: _State, round: int) -> tuple[Plan, Columns, int]:
        """Return when clients end, the rows of the recorded round, and how many clients would answer only now."""
        rows, now_s, conditions = self._rounds[round], state.totals.simulated_s, self._conditions
        if self._starts is None:
            clients = rows["client"]
            online = are_reachable(conditions.devices.of(clients), state.history, clients, now_s, conditions.seed)
            answers = int((online & (rows["fate"] == outcomes.UNREACHABLE)).sum())
            return plan_together(conditions, rows, online, round, now_s, state.history), rows, answers
        self._starts.begin(round, state.history, state.in_flight)
        plan = fill_buffer(conditions.rules, state.in_flight, now_s, self._starts.fill)
        never = np.isin(rows["fate"], outcomes.ABSENT)
        selected_s = self._selected_s(rows["start_s"][never], round, now_s, plan.round_s)
        return replace(plan, absent=_absent(rows_of(rows, never), selected_s, rows["fate"][never])), rows, 0

    def _selected_s(
        self, recorded_s: NDArray[np.float64], round: int, now_s: float, round_s: float
    ) -> NDArray[np.float64]:
        """Return when clients are selected: as long after the round began as in the run, but before it ends."""
        selected_s = recorded_s + (now_s - self._began_s[round - 1])
        is_shorter = round_s < self._recorded.rounds["round_s"][round - 1]
        return np.asarray(np.clip(selected_s, now_s, now_s + round_s if is_shorter else np.inf))

    def after(self, state: _State, plan: Plan, rows: Columns, round: int) -> tuple[_State, Columns]:
        """Return the state after a round, and the round's table."""
        recorded, conditions, now_s = self._recorded, self._conditions, state.totals.simulated_s
        table = self._table(plan, rows, round, now_s, state.history)
        totals = add_round(state.totals, plan, table)
        knows = state.knows_score and not other_work(table, rows) and not self._trained_otherwise(table)
        score = _score_of(recorded, round) if knows else None
        totals = with_scores(totals, score, _score_of(recorded, round, "validation_"), round, recorded.primary)
        waits = conditions.rules.mode.waits_for_end
        ends_s = now_s + plan.round_s - conditions.rules.server_s if waits else None
        history = energy.remembered(conditions.devices, state.history, table, ends_s)
        return _State(totals, knows, state.selects_others, history, plan.in_flight), table

    def closed(self, state: _State, table: Columns, rows: Columns, round: int) -> tuple[_State, Columns]:
        """Return the state and table of the last round, in which work in flight ends unfinished."""
        now_s = state.totals.simulated_s
        rest = Plan(tuple(unfinished(work, now_s) for work in state.in_flight), Absent.nobody(), (), 0.0, {})
        given_up = self._table(rest, rows, round, now_s, state.history)
        totals = add_round(state.totals, rest, given_up)
        totals = replace(totals, empty_rounds=state.totals.empty_rounds)
        together = in_order([table, given_up], round)
        return replace(state, totals=totals, in_flight=()), together

    def _table(
        self, plan: Plan, rows: Columns, round: int, now_s: float, history: Mapping[str, NDArray[np.float64]]
    ) -> Columns:
        """Return the table of the round, with the index of each client's recorded row, and its pruning ratio."""
        devices = self._conditions.devices
        waits_s = waiting_s(self._conditions.rules, plan, now_s)
        tables = [clock_columns(devices, history, *each) for each in zip(plan.ended, waits_s, strict=True)]
        examples = rows["examples"][np.searchsorted(rows["client"], plan.absent.clients)]
        table = in_order([*tables, absent_columns(devices, plan.absent, examples, round)], round)
        row = self._recorded_rows(table, rows)
        return table | {"row": row, "pruning_ratio": self._recorded.clients["pruning_ratio"][row]}

    def _recorded_rows(self, table: Columns, rows: Columns) -> NDArray[np.int64]:
        """Return the index of the recorded row of each client's work or absence, `(rows,)`."""
        if self._starts is None:
            return np.asarray(rows["row"][np.searchsorted(rows["client"], table["client"])])
        started = self._starts.row_of
        selected = dict(zip(rows["client"].tolist(), rows["row"].tolist(), strict=True))
        absent = np.isin(table["fate"], outcomes.ABSENT).tolist()
        found = zip(table["client"].tolist(), absent, strict=True)
        return np.array([(selected if is_absent else started)[client] for client, is_absent in found], dtype=np.int64)

    def _trained_otherwise(self, table: Columns) -> bool:
        """Whether a client would have trained another submodel, or another number of epochs."""
        answered = table["fate"] != outcomes.UNREACHABLE
        row = table["row"][answered]
        epochs = self._recorded.clients["planned_epochs"][row]
        return bool(self._changed[row].any() or (table["planned_epochs"][answered] != epochs).any())


def plan_together(
    conditions: Conditions,
    rows: Columns,
    online: NDArray[np.bool_],
    round: int,
    now_s: float,
    history: Mapping[str, NDArray[np.float64]],
) -> Plan:
    """Plan a round that its recorded clients start together.

    Args:
        conditions: The devices and rules.
        rows: The rows of the recorded round.
        online: Which of its clients answer, `(rows,)`.
        round: Counted from 1.
        now_s: The simulated time at which it begins.
        history: The stored values of all clients, by name.
    """
    rules = conditions.rules
    starts = online & ~np.isin(rows["fate"], outcomes.ABSENT)
    is_infeasible = online & (rows["fate"] == outcomes.INFEASIBLE)
    why = np.where(is_infeasible, outcomes.INFEASIBLE, outcomes.UNREACHABLE)[~starts]
    absent = _absent(rows_of(rows, ~starts), np.full(len(why), now_s), why)
    if not starts.any():
        return Plan((), absent, (), rules.nobody_s + rules.server_s, {})
    work = work_of(conditions, rows_of(rows, starts), round, now_s)
    work = interrupted(work, conditions.devices, history, conditions.seed)
    work, duration_s = rules.mode.end(work, rules, conditions.cohort_size)
    return Plan((work,), absent, (), duration_s + rules.server_s, {})


def _absent(rows: Columns, selected_s: NDArray[np.float64], why: NDArray[np.str_]) -> Absent:
    return Absent(rows["client"], selected_s, why, rows["limited_by"])


def other_work(table: Columns, rows: Columns) -> bool:
    """Whether other work counts than in the recorded round: of other clients, or from other model versions."""
    counted, before = table["fate"] == outcomes.COUNTED, rows["fate"] == outcomes.COUNTED
    return any(not np.array_equal(table[name][counted], rows[name][before]) for name in ("client", "started_round"))


def spent_before(recorded: FinishedRun) -> Totals:
    """Return what the run had spent before round 1."""
    summary, clients = recorded.summary, recorded.clients
    totals = Totals(
        **{name: summary[name] for name in summary if name.startswith("preparation_")},
        statistics_flops=summary.get("statistics_flops", 0),
        down_bytes=summary["down_bytes"] - int(clients["down_bytes"].sum()),
        up_bytes=summary["up_bytes"] - int(clients["up_bytes"].sum()),
    )
    return replace(
        totals,
        train_flops=totals.preparation_flops,
        simulated_s=totals.preparation_s,
        energy_j=totals.preparation_j,
    )


def _rows_by_round(recorded: FinishedRun) -> dict[int, Columns]:
    """Return the rows of each round in the order of ids; in the table, unfinished work follows the rest."""
    clients, rounds = recorded.clients, recorded.rounds["round"]
    order = np.lexsort((clients["client"], clients["round"]))
    table = rows_of(clients | {"row": np.arange(len(order))}, order)
    ends = np.searchsorted(table["round"], rounds, side="right")
    begins = np.searchsorted(table["round"], rounds, side="left")
    return {
        int(round): rows_of(table, slice(begin, end)) for round, begin, end in zip(rounds, begins, ends, strict=True)
    }


def _score_of(recorded: FinishedRun, round: int, rows: str = "") -> Score | None:
    """Return the score on the test rows, or with `validation_` that on the validation rows, if there is one."""
    name = recorded.primary.name
    if f"{rows}{name}" not in recorded.rounds:
        return None
    primary, loss = (float(recorded.rounds[f"{rows}{column}"][round - 1]) for column in (name, "loss"))
    return None if np.isnan(primary) else Score(primary, loss)
