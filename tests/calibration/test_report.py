import json
from dataclasses import replace
from math import inf

import pytest
import yaml

from raysim.calibration import report
from tests.calibration.test_fit import TRUE, calibration_of
from tests.conftest import tiny_settings


@pytest.mark.parametrize(
    "constants", [TRUE, replace(TRUE, flops_per_s=inf), replace(TRUE, memory_bytes_per_s=inf, step_overhead_s=0.0)]
)
def test_the_printed_lines_fit_into_a_tier(constants):
    lines = yaml.safe_load(report.tier_yaml(replace(calibration_of(TRUE), constants=constants)))
    tier = tiny_settings(*(f"population.tiers.0.{name}={json.dumps(value)}" for name, value in lines.items()))
    found = tier.population.tiers[0]
    assert found.step_overhead_s == pytest.approx(constants.step_overhead_s, rel=1e-3)
    assert found.flops_per_s == pytest.approx(min(constants.flops_per_s, 1e18), rel=1e-3)
    memory = inf if found.memory_bytes_per_s is None else found.memory_bytes_per_s
    assert memory == pytest.approx(constants.memory_bytes_per_s, rel=1e-3)


def test_a_busy_machine_is_told():
    calibration = calibration_of(TRUE)
    shaken = tuple(
        replace(each, repeats_s=tuple(each.step_s * factor for factor in (1, 1.3, 1.3)))
        for each in calibration.measurements
    )
    assert len(report.summary_lines(calibration)) == 1
    assert "the machine was busy" in report.summary_lines(replace(calibration, measurements=shaken))[1]


def test_a_table_has_every_models_errors():
    one, other = calibration_of(TRUE, "one"), calibration_of(TRUE, "other")
    lines = report.markdown([one, other]).splitlines()
    assert lines[0] == "| model, error % at keep ratio | 0.375 | largest | median |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| `one`", "| `other`"]
    assert {line.count("|") for line in lines} == {5}
