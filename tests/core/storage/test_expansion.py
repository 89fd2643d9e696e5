from pathlib import Path

import pytest

from raysim.config import loader
from raysim.core.errors import SettingError
from raysim.core.storage.expansion import expanded, expanded_text, expanded_uri
from raysim.tracking.mlflow_writer import resolve_uri
from tests.conftest import CONFIGS

DIGITS = CONFIGS / "digits.yaml"
PATHS = ("data.root", "model.weights", "data.partition.path", "tracking.uri")
DEVICES = ("path", "fedscale", "availability")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA_SETS", "/data/sets")
    monkeypatch.delenv("NOT_SET", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("~", "HOME"), ("~/a/~b", "HOME/a/~b"), ("a/~", "a/~"), ("$DATA_SETS/x", "/data/sets/x"),
        ("a/${DATA_SETS}y", "a//data/setsy"), ("$HOME/z", "HOME/z"), ("cost-5$", "cost-5$"), ("a b/c", "a b/c"),
    ],
)  # fmt: skip
def test_home_and_variables_are_replaced(home, given, found):
    assert expanded(given) == found.replace("HOME", str(home))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("sqlite:///~/m.db", "sqlite:///HOME/m.db"), ("sqlite:///$DATA_SETS/m.db", "sqlite:////data/sets/m.db"),
        ("sqlite+pysqlite:///~/m.db", "sqlite+pysqlite:///HOME/m.db"), ("http://host:5000/~me", "http://host:5000/~me"),
        ("file://~/a", "file://HOME/a"), ("none", "none"), ("s3://b/$DATA_SETS", "s3://b//data/sets"),
    ],
)  # fmt: skip
def test_home_and_variables_are_replaced_in_uris(home, given, found):
    assert expanded_uri(given) == found.replace("HOME", str(home))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("$NOT_SET/a", "environment variable NOT_SET is not set"), ("a/${NOT_SET}", "NOT_SET is not set"),
        ("~nobody_of_this_name/a", "is the home of no user"), ("a\0b", "holds NUL"), ("a\ud800", "no text in UTF-8"),
        ("a" * 256, "is too long"), ("é" * 200, "is too long"), ("a/" * 3000, "is too long"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("setting", PATHS)
def test_what_is_no_path_is_refused_by_name(setting, given, message):
    settings = loader.read_yaml(DIGITS)
    loader.set_value(settings, setting, given)
    with pytest.raises(SettingError, match=message) as refused:
        loader.with_overrides(settings, ())
    assert str(refused.value).startswith(f"{setting}: ")
    assert len(str(refused.value)) < 400


def test_a_path_that_exists_with_a_dollar_in_it_stays(tmp_path):
    (tmp_path / "$NOT_SET").mkdir()
    assert expanded(f"{tmp_path}/$NOT_SET") == f"{tmp_path}/$NOT_SET"


@pytest.mark.parametrize("setting", PATHS)
def test_the_recorded_settings_hold_what_was_meant(home, setting):
    settings = loader.load(DIGITS, (f"{setting}=~/x",))
    assert f" {home}/x\n" in loader.to_yaml(settings)


@pytest.mark.parametrize("name", DEVICES)
def test_files_of_devices_are_expanded(home, name):
    others = "" if name != "availability" else "preset: uniform, "
    settings = loader.load(DIGITS, (f"population={{clients: 60, devices: {{{others}{name}: ~/x.csv}}}}",))
    assert getattr(settings.population.devices, name) == f"{home}/x.csv"


def test_the_environment_s_store_is_expanded(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///~/m.db")
    assert resolve_uri(None) == f"sqlite:///{home}/m.db"
    with pytest.raises(SettingError, match=r"tracking\.uri: the environment variable NOT_SET is not set"):
        resolve_uri("sqlite:///$NOT_SET/m.db")


def test_arguments_are_expanded(home):
    from raysim.cli.arguments import PATH, URI

    assert PATH.convert("~/a", None, None) == Path(home / "a")
    assert URI.convert("~/a", None, None) == str(home / "a")
    with pytest.raises(SettingError, match="--output: the environment variable NOT_SET"):
        expanded_text("--output", "$NOT_SET")
