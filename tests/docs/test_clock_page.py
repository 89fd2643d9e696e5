"""docs/clock.md: its file runs with its commands, and the results are those on the page."""

import json
import re
import shlex

import pytest

from raysim.clock import outcomes
from raysim.config.clock import ClockSettings
from tests.commands import left_with
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "clock.md").read_text(encoding="utf-8")
FILE = re.search(r"```yaml my_clock.yaml\n(.*?)```", PAGE, re.DOTALL)[1]
COMMANDS = re.search(r"```sh\n(.*?)```", PAGE, re.DOTALL)[1].splitlines()


def test_every_mode_and_every_fate_is_explained():
    for mode in ClockSettings.model_fields["mode"].annotation.__args__:
        assert f"| `{mode}` |" in PAGE
    rows = "\n".join(line for line in PAGE.splitlines() if line.startswith("| `"))
    assert all(f"`{outcome}`" in rows for outcome in outcomes.ALL)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_run_and_tell_time_energy_and_targets(command, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_clock.yaml").write_text(FILE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert left_with(*shlex.split(command)[1:], "--json") == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["simulated_s"] > 0 < summary["energy_j"]
    assert summary["costs"]["device_co2_g"] == pytest.approx(380 * summary["energy_j"] / 3.6e6)
    low, high = summary["targets"]
    assert 1 <= low["round"] <= summary["rounds"]
    assert high["round"] is None
    if "async" in command:
        assert summary["fates"]["unfinished"] == 11
    else:
        assert set(summary["fates"]) == {"counted", "late"}
