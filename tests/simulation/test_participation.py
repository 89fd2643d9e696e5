"""Tiers and clients that never count are named, in a forecast and at the end of a run."""

import doctest
import json

import numpy as np
import pytest
from torch import nn

from raysim.population.sampling import of_tiers
from raysim.simulation import participation
from raysim.simulation.build import build_scenario
from raysim.simulation.forecast import forecast
from raysim.simulation.participation import Participation, never_counted_lines
from tests.conftest import tiny_settings
from tests.population.test_serialization import tiers


class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.pairs, self.out = nn.Bilinear(8, 8, 6), nn.Linear(6, 10)

    def forward(self, inputs):
        return self.out(self.pairs(inputs[:, 0, 0], inputs[:, 0, 1]))


DEADLINE = ("clock.mode=deadline", "clock.deadline_s=1.0", "method.name=fedavg", "rounds=3")


def test_the_examples_hold():
    assert doctest.testmod(participation) == (0, 4)


def test_a_tier_of_which_nothing_counted_is_named_with_what_became_of_it():
    devices = of_tiers(tiers(0.0), 8, seed=3)
    of_first, of_second = (np.flatnonzero(devices.tier_of == tier) for tier in (0, 1))
    found = Participation(devices)
    for _ in range(2):
        found.add(of_first[:2], np.array(["late", "dropped"]))
        found.add(of_second[:2], np.array(["counted", "late"]))
    never = found.never_counted()
    assert never["tiers"] == [
        {"tier": devices.tiers[0], "clients": len(of_first), "fates": {"late": 2, "dropped": 2}}
    ]
    assert never["clients"] == [int(of_second[1])]
    assert (never["num_clients"], never["num_unselected"]) == (1, len(of_second) - 2)
    assert json.loads(json.dumps(never)) == never
    first, second, *_ = never_counted_lines(never)
    assert first == f"tier {devices.tiers[0]} ({len(of_first)} clients): never counted, 2 late, 2 dropped"
    assert second == f"1 client was selected and never counted: {of_second[1]}"


def test_of_many_clients_that_were_selected_in_vain_some_are_named():
    devices = of_tiers(tiers(0.0), 400, seed=3)
    found = Participation(devices)
    found.add(np.arange(400), np.where(np.arange(400) % 2, "counted", "late"))
    never = found.never_counted()
    assert (never["clients"], never["num_clients"]) == (list(range(0, 2 * participation.NAMED, 2)), 200)
    assert never_counted_lines(never)[0].endswith(" and 180 more")


def test_a_forecast_counts_who_would_be_late_and_names_a_tier_that_never_counts():
    slow = ("population.tiers.0.flops_per_s=1e4", "population.clients=12", "selection.clients_per_round=12")
    predicted = forecast(build_scenario(tiny_settings(*DEADLINE, *slow)))
    late = {row["tier"]: (row["late"], row["clients"]) for row in predicted["tiers"]}
    first = predicted["tiers"][0]["tier"]
    assert late[first][0] == late[first][1] > 0
    assert any(number == 0 for number, _ in late.values()), "the deadline can be met"
    assert [each["tier"] for each in predicted["never_counted"]["tiers"]] == [
        name for name, (number, clients) in late.items() if number == clients
    ]
    assert predicted["never_counted"]["tiers"][0]["fates"] == {"late": 3 * late[first][1]}
    without = forecast(build_scenario(tiny_settings("method.name=fedavg", *slow)))
    assert {row["late"] for row in without["tiers"]} == {0}
    assert without["never_counted"]["tiers"] == []


@pytest.mark.parametrize(
    ("method", "ratio", "line"),
    [
        ("heterofl", 0.75, "method.name='heterofl' changes keep_ratio: 0.75 -> 0.5 (2 clients)"),
        ("fedrolex", 0.3, "method.name='fedrolex' changes keep_ratio: 0.3 -> 0.25 (2 clients)"),
        ("heterofl", 0.5, ""),
        ("random", 0.75, ""),
        ("fedavg", 0.75, ""),
    ],
)
def test_widths_that_a_method_changes_are_named(method, ratio, line):
    ratios = [f"population.tiers.{tier}.keep_ratio={1.0 if tier else ratio}" for tier in range(4)]
    scenario = build_scenario(tiny_settings(f"method.name={method}", *ratios, "population.clients=8"))
    remarks = forecast(scenario)["remarks"]
    assert [each.replace("(1 client)", "(2 clients)") for each in remarks] == ([line] if line else [])


def test_a_model_of_which_nothing_can_be_cut_is_named_with_the_reason():
    pairs = ("model.name=tests.simulation.test_participation:Pairs", "model.options={}")
    (line,) = forecast(build_scenario(tiny_settings("method.name=random", *pairs)))["remarks"]
    assert line == (
        "nothing of the model can be cut, and every client trains it whole: "
        "pairs: layers of type Bilinear are not cut"
    )
    assert forecast(build_scenario(tiny_settings("method.name=fedavg", *pairs)))["remarks"] == []
