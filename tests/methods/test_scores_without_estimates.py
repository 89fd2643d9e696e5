"""The scores that `method.score` names and that need no estimates: `l1` and `delta_w`."""

from pathlib import Path

import numpy as np
import pytest
import torch

from raysim.core import tensors
from raysim.core.tensors import Params
from raysim.executors.in_process import InProcessExecutor
from raysim.methods import resolve
from raysim.pruning.plan import ChannelPlan
from raysim.simulation import checkpoint
from raysim.simulation.build import build_scenario
from raysim.simulation.loop import run_rounds
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import ServerState, Storage
from raysim.simulation.transition import initial_state
from tests.conftest import settings_of
from tests.planned import plan_round, state_after, view_for

HALF = tuple(f"population.tiers.{tier}.keep_ratio=0.5" for tier in range(4))
NO_WARM_UP = ("method.warmup_rounds=0",)


def built(method: str, score: str, *more: str) -> Scenario:
    return build_scenario(settings_of(method, f"method.score={score}", "rounds=3", *HALF, *more))


def filter_norms(plan: ChannelPlan, values: Params) -> list[float]:
    """Channel by channel: the sum of the absolute values of its weights' rows."""
    norms = []
    for group in plan.groups:
        owners = [slot for slot in group.slots if slot.role == "weight" and values[slot.key].dim() > 1]
        for unit in range(group.size):
            rows = [values[slot.key].select(slot.dim, int(row)) for slot in owners for row in slot.indices[unit]]
            norms.append(sum(float(row.double().abs().sum()) for row in rows))
    return norms


@pytest.mark.parametrize(("method", "more"), [("magnitude", ()), ("ca-hfp", NO_WARM_UP), ("scaffold", ())])
def test_channels_whose_filters_changed_most_are_kept(method: str, more: tuple[str, ...]) -> None:
    """The same mask for everybody; what nobody trains does not change, and so is not kept in the next round."""
    scenario = built(method, "delta_w", *more)
    plan = scenario.workload.plan
    before, now = (state_after(scenario, count) for count in (1, 2))
    expected = filter_norms(plan, {key: value - before.params[key] for key, value in now.params.items()})
    scores = scenario.method.score(view_for(scenario, now, round=3))
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    masks = plan_round(scenario, now).masks
    assert len(masks.distinct) == 1
    for group in plan.groups:
        units = plan.units[group.name]
        best = sorted(range(group.size), key=lambda unit, first=units.start: (-expected[first + unit], unit))
        assert set(np.flatnonzero(masks[0].kept[units])) == set(best[: group.size // 2])


def test_before_a_change_is_known_channels_are_drawn() -> None:
    kept = plan_round(built("magnitude", "delta_w")).masks.kept
    assert len({row.tobytes() for row in kept}) > 1


def test_l1_is_the_ranking_of_magnitude_and_sends_no_sums() -> None:
    ours, theirs = built("ca-hfp", "l1", *NO_WARM_UP), build_scenario(settings_of("magnitude", "rounds=3", *HALF))
    ours_after, theirs_after = state_after(ours, 2), state_after(theirs, 2)
    assert tensors.digest(ours_after.params) == tensors.digest(theirs_after.params)
    assert ours_after.totals.up_bytes == theirs_after.totals.up_bytes
    assert not resolve.uses_estimator(ours.method)
    assert resolve.last_random_round(built("ca-hfp", "l1").method) == 3


def test_what_is_remembered_of_a_change_survives_a_resume(tmp_path: Path) -> None:
    scenario = built("magnitude", "delta_w")
    executor, folder = InProcessExecutor(scenario.workload), tmp_path / "checkpoints"
    whole = [state for state, _ in run_rounds(scenario, initial_state(scenario), executor, Storage(tmp_path, 1, 9))]
    for round in (1, 2):
        loaded = checkpoint.load(checkpoint.path_of(folder, round))
        rest = [state for state, _ in run_rounds(scenario, loaded, executor, Storage(tmp_path / str(round), 1, 9))]
        assert digests(rest[-1]) == digests(whole[-1])
    assert not torch.equal(whole[0].memory["filter_change"], whole[1].memory["filter_change"])


def digests(state: ServerState) -> tuple[str, str]:
    return tensors.digest(state.params), tensors.digest(state.memory)
