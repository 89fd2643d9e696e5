"""The learning rate from round to round: a schedule by name, after a linear warm-up."""

from collections.abc import Callable
from dataclasses import dataclass
from math import pi, sin


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule of the learning rate; the fields are those of the `training.schedule` settings.

    Attributes:
        name: A name of `SCHEDULES`.
        warmup: Rounds over which the rate rises linearly; the schedule begins after them.
        factor: Factor on the rate, of `exponential` from round to round, of `step` at each step.
        every: Rounds from one step to the next.
        milestones: Last rounds before each step, in place of `every`.
        final_share: Share of the rate that `cosine` approaches.
        rounds: Rounds of the run, over which `cosine` falls.
    """

    name: str = "constant"
    warmup: int = 0
    factor: float | None = None
    every: int | None = None
    milestones: tuple[int, ...] | None = None
    final_share: float | None = None
    rounds: int = 1

    def share_in(self, round: int) -> float:
        """Return the share of the learning rate in a round, counted from 1; rounds before it have that of round 1.

        In warm-up round r of W it is r / (W + 1) (Goyal et al., arXiv 1706.02677, section 2.2); the schedule has 1 in
        round W + 1.

        >>> [Schedule("step", warmup=1, factor=0.5, every=2).share_in(round) for round in range(1, 7)]
        [0.5, 1.0, 1.0, 0.5, 0.5, 0.25]
        """
        round = max(round, 1)
        return round / (self.warmup + 1) if round <= self.warmup else SCHEDULES[self.name](self, round)


def constant(_schedule: Schedule, _round: int) -> float:
    """Return 1."""
    return 1.0


def exponential(schedule: Schedule, round: int) -> float:
    """Return factor^(rounds since the warm-up), as `torch.optim.lr_scheduler.ExponentialLR`."""
    factor = 0.99 if schedule.factor is None else schedule.factor
    return float(factor ** (round - 1 - schedule.warmup))


def step(schedule: Schedule, round: int) -> float:
    """Return factor^(number of steps so far), as `StepLR` and `MultiStepLR`; milestones are rounds of the run."""
    factor = 0.1 if schedule.factor is None else schedule.factor
    if schedule.milestones is not None:
        return float(factor ** sum(round > milestone for milestone in schedule.milestones))
    return float(factor ** ((round - 1 - schedule.warmup) // (schedule.every or 1)))


def cosine(schedule: Schedule, round: int) -> float:
    """Return final + (1 - final) (1 + cos(pi t / T)) / 2, t of the T rounds after the warm-up being over.

    As `CosineAnnealingLR` (Loshchilov and Hutter, arXiv 1608.03983, eq 5): the last round is still above the final
    share, and trains.
    """
    final, rounds = schedule.final_share or 0.0, max(schedule.rounds - schedule.warmup, 1)
    left = max(rounds - (round - 1 - schedule.warmup), 0)
    return final + (1 - final) * sin(pi / 2 * left / rounds) ** 2


SCHEDULES: dict[str, Callable[[Schedule, int], float]] = {
    "constant": constant,
    "exponential": exponential,
    "step": step,
    "cosine": cosine,
}

CONSTANT = Schedule()
"""The same rate in every round."""
