"""docs/devices.md: its files and settings are read, its commands are run, its tables are complete."""

import json
import re
import shlex

import pytest
import yaml

from raysim.config.population import PopulationSettings, ProfileSettings
from raysim.population import sources
from raysim.population.presets import PRESETS
from tests.commands import left_with
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```\w+ (\S+\.\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
SETTINGS = re.findall(r"^```yaml(?: \S+)?\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[0].splitlines()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder with the page's files, and this process in it."""
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_has_its_parts():
    assert list(FILES) == ["my_devices.csv", "my_population.yaml", "capacity.json", "availability.json"]
    assert len(SETTINGS) == 5
    assert len(COMMANDS) == 5


@pytest.mark.parametrize("text", SETTINGS)
def test_settings_give_every_client_a_device(folder, text):
    settings = PopulationSettings.model_validate(yaml.safe_load(text)["population"])
    owned = sources.of_settings(settings, 0)
    assert len(owned) == settings.clients
    assert (owned.column("flops_per_s") > 0).all()
    assert (owned.online is not None) == ("availability.json" in text)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(folder, capsys, command):
    assert left_with(*shlex.split(command)[1:]) == 0
    output = capsys.readouterr().out
    if "--json" in command:
        expected = ["board", "phone"] if "yaml" in command else ["slow", "fast"]
        assert [tier["tier"] for tier in json.loads(output)["tiers"]] == expected
    pictures = {"phones.png", "devices-my_devices.png"} & {path.name for path in folder.iterdir()}
    assert len(pictures) == (1 if "phones" in command or "csv" in command else 0)


def test_every_figure_is_told_with_its_default():
    section = PAGE.split("## Figures of a profile\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.+) \|$", section, re.MULTILINE)
    fields = ProfileSettings.model_fields
    assert [name for name, _ in rows] == list(fields)
    for name, default in rows[1:]:
        if fields[name].is_required():
            assert default == "needed"
        elif fields[name].default is None:
            assert default in ("any", "not counted", "on mains")
        else:
            assert float(default) == fields[name].default


def test_every_preset_is_told():
    told = set(re.findall(r"`([a-z0-9-]+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE))))
    assert set(PRESETS) - told == {"ca-hfp-rank1", "ca-hfp-rank2"}  # "rank0 to rank3"
