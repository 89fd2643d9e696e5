from pathlib import Path

import pytest
import yaml

from raysim.config import loader
from raysim.config.loader import load, parse_value
from raysim.core.errors import SettingError
from tests.conftest import CONFIGS, tiny_settings

DIGITS = CONFIGS / "digits.yaml"
EXPERIMENTS = sorted(path for path in CONFIGS.glob("*.yaml") if not path.name.startswith(("compare_", "sweep_")))


def refusal(*overrides: str) -> str:
    with pytest.raises(SettingError) as refused:
        load(DIGITS, overrides)
    return str(refused.value)


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("1e-3", 0.001), ("1E5", 1e5), ("-0.5", -0.5), ("null", None), ("", None), ("true", True),
        ("[4, 8]", [4, 8]), ("{a: 1e-3}", {"a": 0.001}), ('"1e-3"', "1e-3"),
        ("ca-hfp", "ca-hfp"), ("classifier.*", "classifier.*"),
    ],
)  # fmt: skip
def test_values_are_yaml_and_numbers_such_as_1e_3(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_overrides_reach_every_level_and_the_last_one_wins():
    settings = load(
        DIGITS,
        (
            "seed=4",
            "seed=5",
            "training.learning_rate=1e-3",
            "population.tiers.0.keep_ratio=0.5",
            "training.clip_norm=null",
            "model.options.channels=[4, 8]",
            "evaluation.every=7",
            "method={name: random, fill: holders}",
            "tracking.uri=sqlite:///a=b.db",
        ),
    )
    assert settings.seed == 5
    assert settings.training.learning_rate == 0.001
    assert [tier.keep_ratio for tier in settings.population.tiers] == [0.5, 0.5, 0.75, 1.0]
    assert settings.training.clip_norm is None
    assert settings.model.options == {"channels": [4, 8]}
    assert settings.evaluation.every == 7
    assert (settings.method.name, settings.method.fill) == ("random", "holders")
    assert settings.tracking.uri == "sqlite:///a=b.db"


def test_overrides_leave_the_rest_of_the_file():
    before, after = load(DIGITS).model_dump(), load(DIGITS, ("training.epochs=9",)).model_dump()
    assert after.pop("training") == before.pop("training") | {"epochs": 9}
    assert after == before


def test_an_unknown_setting_names_the_nearest():
    message = refusal("traning.epochs=1")
    assert message.startswith("traning={'epochs': 1} is not a setting; did you mean training? Known here: training, ")
    assert "population" in message


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("training.learningrate=1", "training.learning_rate"),
        ("data.partition.alfa=1", "data.partition.alpha"),
        ("population.tiers.1.keep_ration=1", "population.tiers.1.keep_ratio"),
        ("method.warmup=1", "method.warmup_rounds"),
    ],
)
def test_an_unknown_nested_setting_names_the_nearest_of_its_section(override, meant):
    message = refusal(override)
    assert message.startswith(f"{override} is not a setting; did you mean {meant}? Known here: ")
    assert "executor" not in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rounds=many", "rounds='many' is not allowed; allowed: a valid integer"),
        ("rounds=2.5", "rounds=2.5 is not allowed; allowed: a valid integer"),
        ("seed=true", "seed=True is not allowed; allowed: a valid integer"),
        ("rounds=null", "rounds=None is not allowed; allowed: a valid integer"),
        ("experiment=5", "experiment=5 is not allowed; allowed: a valid string"),
        ("training=5", "training=5 is not allowed; allowed: "),
        ("population.tiers.0=5", "population.tiers.0=5 is not allowed; allowed: "),
    ],
)
def test_a_wrong_type_is_named(override, message):
    assert refusal(override).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rounds=0", "rounds=0 is not allowed; allowed: greater than or equal to 1"),
        ("population.tiers.2.keep_ratio=1.3", "population.tiers.2.keep_ratio=1.3 is not allowed; allowed: less than"),
        (
            "population.tiers.0.keep_ratio=0",
            "population.tiers.0.keep_ratio=0 is not allowed; allowed: greater than 0",
        ),
        ("training.learning_rate=.nan", "training.learning_rate=nan is not allowed; allowed: a finite number"),
        ("data.heldout_share=1", "data.heldout_share=1 is not allowed; allowed: less than 1"),
        (
            "training.optimizer=sgdd",
            "training.optimizer='sgdd' is not allowed; allowed: 'sgd', 'adam' or 'adamw'; nearest: 'sgd'",
        ),
        ("executor.kind=rey", "executor.kind='rey' is not allowed; allowed: 'ray' or 'in-process'; nearest: 'ray'"),
        ("experiment=a/b", "experiment='a/b' is not allowed; allowed: "),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_allowed(override, message):
    assert refusal(override).startswith(message)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "training.pack=foo",
            "training.pack='foo' is not allowed; allowed: 'auto' or a valid integer; nearest: 'auto' (",
        ),
        (
            "executor.num_actors=0",
            "executor.num_actors=0 is not allowed; allowed: greater than or equal to 1 or 'clients' (",
        ),
    ],
)
def test_a_setting_with_values_of_several_kinds_is_named_once_with_all_of_them(override, said):
    found = refusal(override)
    assert found.startswith(said)
    assert "\n" not in found


def test_every_wrong_setting_has_its_line():
    assert [line.partition(" ")[0] for line in refusal("rounds=0", "training.epochs=0", "sed=1").split("\n")] == [
        "rounds=0",
        "training.epochs=0",
        "sed=1",
    ]


def test_missing_settings_are_named(tmp_path):
    path = written(tmp_path / "bare.yaml", "population: {tiers: [{name: phone}]}\n")
    with pytest.raises(SettingError) as refused:
        load(path)
    lines = str(refused.value).split("\n")
    assert "rounds is missing; it must be given" in lines
    assert "population.clients is missing; it must be given" in lines
    assert "population.tiers.0.flops_per_s is missing; it must be given" in lines


def test_contradictions_are_explained():
    assert refusal("population.tiers.0.share=0.3") == (
        "population: the tiers' shares add up to 1.1, they must add up to 1"
    )
    assert refusal("selection.clients_per_round=61") == (
        "selection.clients_per_round=61 is more than population.clients=60; allowed: 1 to 60"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set 'seed' is not of the form name=value, as in seed=1"),
        ("=5", "--set '=5' is not of the form name=value, as in seed=1"),
        ("", "--set '' is not of the form name=value, as in seed=1"),
        ("seed=[1", "--set seed='[1' is not YAML: "),
        ("seed.more=1", "--set seed.more: 'seed' is a single value, it has no settings of its own"),
        (
            "population.tiers.4.share=1",
            "--set population.tiers.4.share: '4' is no index of a list of 4; allowed: 0 to 3",
        ),
        ("population.tiers.first.share=1", "--set population.tiers.first.share: 'first' is no index of a list of 4"),
        ("population.tiers.-1=1", "--set population.tiers.-1: '-1' is no index of a list of 4; allowed: 0 to 3"),
    ],
)
def test_a_malformed_override_is_refused(override, message):
    assert refusal(override).startswith(message)


def test_an_override_below_a_list_of_single_values_is_refused():
    assert "--set model.options.channels.0.x" in refusal(
        "model.options.channels=[4, 8]", "model.options.channels.0.x=1"
    )


def test_an_index_must_be_a_plain_number():
    assert "'²' is no index of a list of 4" in refusal("population.tiers.²=1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rounds: [1\n", "is not YAML: "),
        ("a: 1\n\tb: 2\n", "is not YAML: "),
        ("- rounds\n", "holds no settings; allowed: a YAML mapping"),
        ("", "holds no settings; allowed: a YAML mapping"),
    ],
)
def test_a_file_without_settings_is_refused_in_one_line(tmp_path, text, message):
    path = written(tmp_path / "bad.yaml", text)
    with pytest.raises(SettingError) as refused:
        load(path)
    assert str(refused.value).startswith(f"CONFIG={str(path)!r} {message}")
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(SettingError, match=r"none\.yaml' cannot be read: No such file or directory"):
        load(tmp_path / "none.yaml")
    with pytest.raises(SettingError, match="cannot be read: Is a directory"):
        load(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00rounds")
    with pytest.raises(SettingError, match="is not YAML"):
        load(tmp_path / "binary.yaml")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_written_settings_read_back_the_same(tmp_path, path):
    settings = load(path, ("model.options.channels=[4, 8]", "training.learning_rate=1e-7"))
    assert load(written(tmp_path / "again.yaml", loader.to_yaml(settings))) == settings


def test_written_settings_are_complete():
    content = yaml.safe_load(loader.to_yaml(tiny_settings()))
    shown = {"every": 1, "max_examples": None, "client_share": 1.0, "widths": None, "targets": []}
    assert content["evaluation"] == shown
    assert content["population"]["tiers"][0]["memory_bytes_per_s"] is None


def test_flat_settings_have_a_dotted_name_each():
    flat = loader.flatten(tiny_settings("method.fill=holders"))
    assert flat["seed"] == "0"
    assert flat["training.clip_norm"] == "2.0"
    assert flat["population.tiers.3.name"] == "fast-phone"
    assert flat["model.options.channels"] == "[4, 8]"
    assert flat["model.keep_whole"] == "None"
    assert flat["method.fill"] == "holders"
    assert not any(value.startswith("{") and value != "{}" for value in flat.values())


def test_numbers_with_an_exponent_are_numbers_at_any_depth(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("{a: 1e9, b: [2E-3, -1.5e+2], c: {d: .5e1}, e: 1e, f: run1e3}")
    assert loader.read_yaml(file) == {
        "a": 1e9,
        "b": [2e-3, -150.0],
        "c": {"d": 5.0},
        "e": "1e",
        "f": "run1e3",
    }
