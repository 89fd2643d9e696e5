"""Every numeric field refuses what 64 bits, float32 in training, or a simulated clock cannot hold."""

import math
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from raysim.analysis.study.settings import ComparisonSettings
from raysim.analysis.sweep.plan import SweepSettings
from raysim.analysis.sweep.search import Domain
from raysim.config import loader
from raysim.config.experiment import ExperimentSettings
from raysim.config.settings import LARGEST, SMALLEST, Settings
from raysim.core.errors import SettingError
from raysim.core.options import Option
from tests.conftest import CONFIGS

DIGITS = CONFIGS / "digits.yaml"


def classes_in(annotation: Any) -> Iterator[Any]:
    if not get_args(annotation):
        yield annotation
    for part in get_args(annotation):
        yield from classes_in(part)


def sections(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield kind
    for field in kind.model_fields.values():
        for inner in classes_in(field.annotation):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from sections(inner)


ALL = {kind for top in (ExperimentSettings, SweepSettings, ComparisonSettings) for kind in sections(top)} | {Domain}
FIELDS = [
    (kind, name, number)
    for kind in sorted(ALL, key=lambda kind: kind.__name__)
    for name, field in kind.model_fields.items()
    for number in (int, float)
    if number in set(classes_in(field.annotation))
]
HUGE = [2**63, -(2**63) - 1, 10**400, -(10**5000)]
NOT_FINITE = [math.inf, -math.inf, math.nan, 1e31, -1e31, 1e300, -1e308]


SPEEDS = {"flops_per_s": 1e9, "down_bytes_per_s": 1e6, "up_bytes_per_s": 1e6}
POPULATION = {"clients": 4, "devices": {"preset": "uniform"}}
NEEDED = {
    "ExperimentSettings": {"rounds": 1, "population": POPULATION, "selection": {"clients_per_round": 2}},
    "PopulationSettings": POPULATION,
    "SelectionSettings": {"clients_per_round": 2},
    "ProfileSettings": {"name": "a", **SPEEDS},
    "TierSettings": {"name": "a", "share": 1.0, **SPEEDS},
    "DeviceSettings": {"preset": "uniform"},
    "SweepSettings": {"base": {}, "search": {"seed": {"grid": [1]}}},
    "HalvingSettings": {"grace_rounds": 1},
    "ComparisonSettings": {"base": {}, "methods": [], "seeds": [0]},
    "TuneSettings": {"grid": {"training.epochs": [1]}, "rounds": 1, "seeds": [0]},
    "MethodEntry": {"name": "fedavg"},
    "Domain": {"grid": [1]},
}
"""Fields without which a section is refused whatever else it holds."""


def test_the_walk_finds_fields_of_all_sections():
    found = {(kind.__name__, name) for kind, name, _ in FIELDS}
    assert {("TrainingSettings", "learning_rate"), ("TierSettings", "flops_per_s"), ("Domain", "uniform")} <= found
    assert len(FIELDS) > 90


@pytest.mark.parametrize(("kind", "name", "number"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_a_number_that_the_machine_cannot_hold_is_refused(kind, name, number):
    given = NEEDED.get(kind.__name__, {})
    loader.validated(given, kind)
    for value in HUGE if number is int else NOT_FINITE:
        for form in (value, [value, value], {"a": value}):
            with pytest.raises(SettingError):
                loader.validated(given | {name: form}, kind)


class Anything(Settings):
    """Settings with numbers of any kind, without bounds of their own."""

    number: float = 0.0
    whole: int = 0
    options: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    numbers: list[float] = []  # noqa: RUF012


@pytest.mark.parametrize(
    "given",
    [
        {"number": math.inf}, {"number": math.nan}, {"number": -1e31}, {"whole": 2**63}, {"whole": -(2**64)},
        {"options": {"a": {"b": [1, math.nan]}}}, {"options": {"a": 10**5000}}, {"numbers": [1.0, math.inf]},
    ],
)  # fmt: skip
def test_new_fields_and_options_are_covered_by_construction(given):
    with pytest.raises(SettingError, match=r"allowed: (up to|finite)"):
        loader.validated(given, Anything)


def test_numbers_at_the_bounds_are_allowed():
    loader.validated({"number": LARGEST, "whole": 2**63 - 1, "options": {"a": [-LARGEST, True, None, "x"]}}, Anything)
    loader.load(DIGITS, (f"training.learning_rate={LARGEST}", f"seed={2**63 - 1}", "rounds=2147483647"))


@pytest.mark.parametrize("name", ["training.learning_rate", "population.tiers.0.flops_per_s", "server.learning_rate"])
def test_a_number_that_is_zero_in_float32_or_makes_a_clock_endless_is_refused(name):
    with pytest.raises(SettingError, match=f"{name}: 1e-300 is not allowed; allowed: {SMALLEST:g} to"):
        loader.load(DIGITS, (f"{name}=1e-300",))


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e31, 10**31, -1, "x", True])
@pytest.mark.parametrize("default", [0.5, 1])
def test_an_option_of_a_table_is_finite_and_fits_into_64_bits(default, value):
    with pytest.raises(SettingError, match=r"method\.options\.a="):
        Option(default, "a number").check("a", value)


def test_a_cohort_that_no_population_fills_is_refused():
    with pytest.raises(SettingError, match="over_selection=1e\\+06 selects 20000000 clients"):
        loader.load(
            DIGITS, ("clock.mode=over-selection", "clock.over_selection=1e6", "selection.clients_per_round=20")
        )
