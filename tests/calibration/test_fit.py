"""The fit finds what made synthetic seconds, and looks at no held-out width."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest

from raysim.calibration.fit import Calibration, Constants, Measurement, StepLoad, fit
from raysim.clock import timing as clock
from raysim.population.profiles import DeviceProfile
from raysim.population.sampling import listed

RATIOS = (1.0, 0.75, 0.5, 0.25, 0.125)
TRUE = Constants(step_overhead_s=2e-3, flops_per_s=5e10, memory_bytes_per_s=1e9)


def load_of(ratio: float) -> StepLoad:
    """FLOPs fall with the square of the width, activations with the width, as in a chain of convolutions."""
    return StepLoad(ratio, int(1e7 * ratio**2), int(2e9 * ratio**2), int(2e7 * ratio))


def synthetic(constants: Constants, ratios=RATIOS, held_out=()) -> list[Measurement]:
    return [
        Measurement(load_of(ratio), ratio in held_out, (constants.step_s(load_of(ratio)),) * 3) for ratio in ratios
    ]


def calibration_of(constants: Constants, name="any") -> Calibration:
    measured = synthetic(constants, (*RATIOS, 0.375), held_out=(0.375,))
    return Calibration(name, (3, 32, 32), 10, 10, tuple(measured), fit(measured), tuple(map(load_of, RATIOS)))


@pytest.mark.parametrize(
    "constants",
    [
        TRUE,
        replace(TRUE, step_overhead_s=0.0),
        replace(TRUE, memory_bytes_per_s=inf),
        replace(TRUE, flops_per_s=inf),
        Constants(0.0, 5e10, inf),
    ],
)
def test_the_fit_recovers_the_constants_that_made_the_seconds(constants):
    found = fit(synthetic(constants))
    assert found.step_overhead_s == pytest.approx(constants.step_overhead_s, rel=1e-6, abs=1e-9)
    for name in ("flops_per_s", "memory_bytes_per_s"):
        # a term that took no time may come out as one that takes next to none
        assert 1 / getattr(found, name) == pytest.approx(1 / getattr(constants, name), rel=1e-6, abs=1e-17)


def test_relative_errors_count_so_that_narrow_widths_are_not_drowned():
    measured = synthetic(TRUE)
    noisy = [
        replace(each, repeats_s=(each.step_s * (1.1 if place % 2 else 0.9),)) for place, each in enumerate(measured)
    ]
    errors = [abs(fit(noisy).error(each)) for each in noisy]
    assert max(errors) < 0.2


def test_a_noisy_neighbour_in_most_repeats_changes_nothing():
    calm = synthetic(TRUE)
    shaken = [
        replace(each, repeats_s=(*(each.step_s * (2 + place) for _ in range(4)), each.step_s))
        for place, each in enumerate(calm)
    ]
    assert fit(shaken) == fit(calm)


def test_no_constant_is_negative():
    falling = [replace(each, repeats_s=(1 - each.load.keep_ratio / 2,)) for each in synthetic(TRUE)]
    found = fit(falling)
    assert found.step_overhead_s > 0
    assert (found.flops_per_s, found.memory_bytes_per_s) == (inf, inf)


def test_held_out_widths_never_enter_the_fit():
    measured = synthetic(TRUE, (*RATIOS, 0.625), held_out=(0.625,))
    spoiled = [replace(each, repeats_s=(1e3,)) if each.held_out else each for each in measured]
    assert fit(spoiled) == fit(measured) == fit([each for each in measured if not each.held_out])


def test_errors_are_those_of_held_out_widths_only():
    calibration = calibration_of(TRUE)
    doubled = [
        replace(each, repeats_s=(2 * each.step_s,)) if each.held_out else each for each in calibration.measurements
    ]
    errors = replace(calibration, measurements=tuple(doubled))
    assert errors.held_out == {0.375: pytest.approx(-0.5)}
    assert errors.largest_error == errors.median_error == pytest.approx(0.5)


def test_the_prediction_is_the_simulated_clocks():
    constants = {name: getattr(TRUE, name) for name in Constants.__slots__}
    device = DeviceProfile("this", down_bytes_per_s=1.0, up_bytes_per_s=1.0, **constants)
    load, steps = load_of(0.5), 7
    amounts = {"train_flops": load.train_flops, "activation_bytes": load.activation_bytes, "steps": 1}
    given = {name: np.array([steps * amounts.get(name, 0)]) for name in clock.CohortLoad.__slots__}
    timing = clock.schedule(clock.CohortLoad(**given), listed([device]), np.array([0]), 1, 0)
    assert timing.compute_s[0] == pytest.approx(steps * TRUE.step_s(load))
