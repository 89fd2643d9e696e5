"""Replay a finished run on other devices or with another deadline."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raysim.analysis.replay import other_devices, unknown
from raysim.analysis.replay.finished_run import FinishedRun
from raysim.analysis.replay.rounds import ReplayedRound, replay_rounds
from raysim.analysis.replay.unknown import Unknown
from raysim.analysis.replay.work import Conditions
from raysim.clock.modes import DEADLINE, ClockRules
from raysim.config import loader
from raysim.config.population import PopulationSettings
from raysim.core.errors import SettingError
from raysim.methods.method import Method
from raysim.population import sources
from raysim.population.profiles import Devices
from raysim.simulation.build import clock_rules, method_of


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """A run, timed again.

    Attributes:
        recorded: The run.
        rounds: Its rounds, timed again.
        devices: The devices on which it is timed.
        changed: Which recorded rows' clients would have trained another submodel, `(rows,)`.
        unknown: The facts that a replay cannot derive from the records.
    """

    recorded: FinishedRun
    rounds: Sequence[ReplayedRound]
    devices: Devices
    changed: NDArray[np.bool_]
    unknown: Sequence[Unknown]

    @property
    def flagged_rounds(self) -> list[int]:
        """The rounds in which other work counts than in the run, or other clients would have been selected."""
        return [each.round for each in self.rounds if each.other_work or each.answers or each.selects_others]


def replay(recorded: FinishedRun, others: Devices | None = None, deadline_s: float | None = None) -> Replay:
    """Time a finished run again, without training.

    Args:
        recorded: The run.
        others: Other devices of all its clients; None: its own.
        deadline_s: Another deadline of each round; None: that of the run.

    Raises:
        SettingError: If a deadline has no effect.
    """
    settings = recorded.settings
    rules = with_deadline(clock_rules(settings), deadline_s)
    method = method_of(settings)
    devices = recorded.devices if others is None else others
    moved = not other_devices.are_same(recorded.devices, devices)
    changed = np.zeros(len(recorded.clients["client"]), dtype=np.bool_)
    if moved:
        under = other_devices.keep_ratios_under(recorded, method, devices)
        changed = under != recorded.clients["keep_ratio"]
    refit = rules.accept_partial and (moved or deadline_s is not None) and method.work is None
    epochs = settings.training.epochs if refit else None
    cohort_size = settings.selection.clients_per_round
    conditions = Conditions(devices, rules, settings.seed, cohort_size, epochs, method.min_epochs)
    selects_others = moved and other_devices.selects_by_device(settings.selection.rule, recorded.devices, devices)
    knows_score = not (moved and method.learns_widths)
    rounds = list(replay_rounds(recorded, method, conditions, changed, knows_score, selects_others))
    if not moved and deadline_s is None:
        return Replay(recorded, rounds, devices, changed, unknown.not_reproduced(recorded, rounds))
    found = unknown.not_reproduced(recorded, unchanged(recorded, method, conditions))
    found += unknown.of_devices(recorded, method, devices) if moved else []
    return Replay(recorded, rounds, devices, changed, found + unknown.of_rounds(recorded, method, rounds, changed))


def unchanged(recorded: FinishedRun, method: Method, conditions: Conditions) -> list[ReplayedRound]:
    """Return the rounds of a run, timed again on its own devices with its own deadline."""
    rules = clock_rules(recorded.settings)
    own = replace(conditions, devices=recorded.devices, rules=rules, epochs=None)
    return list(replay_rounds(recorded, method, own, np.zeros(len(recorded.clients["client"]), dtype=np.bool_)))


def with_deadline(rules: ClockRules, deadline_s: float | None) -> ClockRules:
    """Return the rules of a round with another deadline.

    Raises:
        SettingError: If it is not above 0, or rounds do not end at a deadline.
    """
    if deadline_s is None:
        return rules
    if not 0 < deadline_s < np.inf:
        raise SettingError(f"--deadline={deadline_s:g} is not allowed; allowed: seconds above 0")
    if not rules.mode.takes_deadline:
        raise SettingError(
            f"--deadline={deadline_s:g} has no effect on a run with clock.mode={rules.mode.name!r}; "
            "allowed: runs with 'sync' or 'deadline'"
        )
    return replace(rules, mode=DEADLINE, deadline_s=deadline_s)


def read_devices(path: Path, recorded: FinishedRun) -> Devices:
    """Assign other devices to the clients of a run, from the `population` section in a file or a whole experiment.

    Raises:
        SettingError: If the file cannot be read, a setting is not allowed, or it is for another number of clients.
    """
    section = loader.population_section(path, "--devices")
    clients = recorded.settings.population.clients
    with errors_of(path):
        population = loader.validated({"clients": clients} | section, PopulationSettings)
    if population.clients != clients:
        raise SettingError(
            f"--devices={str(path)!r}: clients={population.clients} is not allowed; allowed: the run's {clients}"
        )
    with errors_of(path):
        return sources.of_settings(population, recorded.settings.split_seed)


@contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Name the file of other devices in errors."""
    try:
        yield
    except SettingError as error:
        raise SettingError(f"--devices={str(path)!r}: {error}") from None
