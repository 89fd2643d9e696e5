import pytest

from raysim.core.formatting import duration
from raysim.simulation.forecast import forecast
from raysim.terminal import console
from raysim.terminal.console import summary_lines

SUMMARY = {
    "method": "ca-hfp", "rounds": 2, "output_dir": "/runs/a", "accuracy": 0.91234, "best_accuracy": 0.95,
    "pruning_ratio_mean": 0.25, "bytes_percent_of_fedavg": 61.04, "flops_percent_of_fedavg": 48.0,
    "simulated_percent_of_fedavg": 86.4, "energy_percent_of_fedavg": None, "why_no_fedavg": "",
    "fedavg": {"client_rounds": 6},
    "simulated_s": 75.0, "wall_s": 3.21, "energy_j": 0.0, "costs": {}, "fates": {"counted": 6}, "targets": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"), (3.24, "3.2 s"), (60, "1 min 0 s"), (75.9, "1 min 15 s"), (3599.9, "59 min 59 s"),
        (3600, "1 h 0 min"), (90000, "25 h 0 min"),
    ],
)  # fmt: skip
def test_durations_read_as_a_person_would_say_them(seconds, text):
    assert duration(seconds) == text


def test_a_summary_says_what_was_reached_and_where_to_look():
    lines = summary_lines(SUMMARY, "mlflow ui", "http://127.0.0.1:5000/#/runs/1")
    text = "\n".join(lines)
    for part in (
        "ca-hfp, 2 rounds, files in /runs/a",
        "0.9123 (best 0.9500)",
        "0.2500 of the parameters",
        "61.0 %",
        "48.0 %",
        "time against FedAvg     86.4 %",
        "1 min 15 s",
        "3.2 s",
        "mlflow ui",
        "http://127.0.0.1:5000/#/runs/1",
    ):
        assert part in text
    assert summary_lines(SUMMARY) == lines[:-2], "a run that is not in MLflow"


def test_where_fedavg_would_have_counted_fewer_clients_or_is_not_known_the_summary_tells():
    fewer = SUMMARY | {"fedavg": {"client_rounds": 2}}
    assert "client rounds counted   2 in the same rounds of FedAvg, 6 here" in summary_lines(fewer)
    lines = summary_lines(SUMMARY | {"why_no_fedavg": "a target ends the run", "fedavg": None})
    assert "against FedAvg          not compared: a target ends the run" in lines
    assert not any("%" in line for line in lines)


def test_the_summary_tells_energy_lost_work_and_targets_where_there_are_any():
    reached = {"accuracy": 0.9, "round": 3, "simulated_s": 61.25, "bytes": 2_500_000, "train_flops": 4_000_000_000,
               "energy_j": 1234.5}  # fmt: skip
    never = {"accuracy": 0.99, "round": None}
    more = {
        "energy_j": 7.2e6, "costs": {"device_kwh": 2.0, "device_price": 0.6, "device_co2_g": 800.0},
        "fates": {"counted": 15, "late": 4, "dropped": 1}, "targets": [reached, never],
        "fedavg": {"client_rounds": 15},
    }  # fmt: skip
    plain, told = (summary_lines(summary, "", "") for summary in (SUMMARY, SUMMARY | more))
    assert [line for line in told if line not in plain] == [
        "energy of the devices   7,200,000 J, 0.6 in money, 800 g of CO2",
        "work that did not count 5 of 20 client rounds: 4 late, 1 dropped",
        "accuracy 0.9            round 3, 61.2 simulated s, 2.5 MB, 4.0 GFLOP, 1,234 J",
        "accuracy 0.99           not reached",
    ]


def test_the_forecast_has_a_row_per_tier_and_the_totals(capsys, tiny_scenario):
    predicted = {**forecast(tiny_scenario), "model": "cnn", "simulated_s": 75.0}
    console.print_forecast(predicted)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "ca-hfp on digits with cnn" in captured.out
    for row in predicted["tiers"]:
        line = next(line for line in captured.out.splitlines() if row["tier"] in line)
        assert f"{row['parameters']:,}" in line
        assert f"{row['pruning_ratio']:.1%}" in line
    assert "\u2026" not in captured.out, "nothing is cut off"
    assert "2 rounds of 3 from 6 clients: 1 min 15 s simulated" in captured.out
    assert "channel groups: 3 with 28 channels" in captured.out


def test_a_tier_nobody_is_drawn_from_has_no_seconds(tiny_scenario):
    predicted = {**forecast(tiny_scenario), "model": "cnn"}
    absent = [index for index, row in enumerate(predicted["tiers"]) if row["total_s"] is None]
    cells = list(console.forecast_table(predicted).columns[-1].cells)
    assert absent
    assert [index for index, cell in enumerate(cells) if cell == "-"] == absent


def test_the_forecast_names_the_layers_that_are_not_pruned(capsys, tiny_scenario):
    unprunable = {"stem[0]": "kept whole: model.keep_whole pattern '[s]tem*'"}
    console.print_forecast({**forecast(tiny_scenario), "model": "cnn", "unprunable": unprunable})
    assert "not pruned: stem[0] (kept whole: model.keep_whole pattern '[s]tem*')" in capsys.readouterr().out
