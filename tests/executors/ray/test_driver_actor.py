"""The driver actor's parts that need no cluster, in this process."""

from pathlib import Path

import pytest

from raysim.core import tensors
from raysim.executors.in_process import InProcessRunner
from raysim.executors.ray.driver_actor import DriverActor
from raysim.simulation.build import build_scenario
from raysim.simulation.state import Storage
from tests.conftest import settings_of

SILENT = (
    "rounds=1", "selection.clients_per_round=2", "method.warmup_rounds=0", "method.silent_dormant=true",
    *(f"population.tiers.{tier}.keep_ratio=0.3" for tier in range(4)),
)  # fmt: skip


def test_the_final_state_is_sent_in_two_parts_the_trained_model_and_what_is_served_otherwise(tmp_path: Path) -> None:
    runner, driver = InProcessRunner(), DriverActor()
    with pytest.raises(RuntimeError, match="no round has been run"):
        driver.final_state()
    list(runner.run(build_scenario(settings_of("ca-hfp", *SILENT)), Storage(tmp_path, 1, 1)))
    driver._scenario, driver._state = runner._scenario, runner._state
    expected = runner.final_state()

    final, params, changed = driver.final_state()
    assert (final.round, final.totals, final.params, final.served_params) == (1, expected.totals, {}, {})
    assert tensors.digest(tensors.as_tensors(params)) == tensors.digest(expected.params)
    assert 0 < len(changed) < len(params)
    served = tensors.as_tensors(params | changed)
    assert tensors.digest(served) == tensors.digest(expected.served_params) != tensors.digest(expected.params)


def test_a_driver_that_is_asked_to_stop_names_the_round_that_is_its_last() -> None:
    assert DriverActor().stop() == 1
