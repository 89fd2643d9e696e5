"""A deadline that no client meets is refused before any client trains; one that some client may meet is not."""

import numpy as np
import pytest

from raysim.core.errors import SettingError
from raysim.simulation.build import build_scenario
from raysim.simulation.feasibility import least_seconds
from raysim.simulation.participants import cohort_of
from raysim.simulation.planning import plan_round
from raysim.simulation.transition import initial_state
from tests.conftest import settings_of, tiny_settings

STEADY = tuple(
    f"population.tiers.{tier}.{name}=0.0" for tier in range(4) for name in ("compute_variation", "link_variation")
)
BY_DEADLINE = ("clock.mode=deadline", "selection.clients_per_round=6", *STEADY)


def test_the_least_seconds_are_those_of_the_clock_where_nothing_varies():
    scenario = build_scenario(tiny_settings("clock.deadline_s=100.0", *BY_DEADLINE))
    (work,) = plan_round(scenario, initial_state(scenario)).ended
    assert least_seconds(scenario, work.cohort) == pytest.approx(work.timing.total_s, rel=1e-12)


@pytest.mark.slow
def test_a_deadline_before_the_fastest_is_refused_and_one_after_it_is_not():
    scenario = build_scenario(tiny_settings("clock.deadline_s=100.0", *BY_DEADLINE))
    fastest_s = float(least_seconds(scenario, cohort_of(scenario, np.arange(6), 1)).min())
    build_scenario(tiny_settings(f"clock.deadline_s={1.001 * fastest_s}", *BY_DEADLINE))
    with pytest.raises(SettingError, match=rf"clock.deadline_s=\S+ is met by none of 6 .* {fastest_s:.4g} s"):
        build_scenario(tiny_settings(f"clock.deadline_s={0.999 * fastest_s}", *BY_DEADLINE))


@pytest.mark.slow
def test_lucky_rounds_and_partial_work_are_thought_of():
    steady = build_scenario(settings_of("dapperfl", "training.epochs=4", "clock.deadline_s=100.0", *BY_DEADLINE))
    fastest_s = float(least_seconds(steady, cohort_of(steady, np.arange(6), 1)).min())
    early = ("training.epochs=4", f"clock.deadline_s={0.9 * fastest_s}")
    build_scenario(settings_of("dapperfl", *early, *BY_DEADLINE, "clock.accept_partial=true"))
    lucky = tuple(f"population.tiers.{tier}.compute_variation=0.4" for tier in range(4))
    build_scenario(settings_of("dapperfl", *early, *BY_DEADLINE, *lucky))
    with pytest.raises(SettingError, match="is met by none"):
        build_scenario(settings_of("dapperfl", *early, *BY_DEADLINE))
