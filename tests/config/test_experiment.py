import dataclasses
import json

import jsonschema
import pytest
import yaml
from pydantic import BaseModel, ValidationError

from raysim.client.training import LocalTraining
from raysim.config.experiment import ExperimentSettings
from raysim.config.method import MethodSettings
from raysim.config.population import TierSettings
from raysim.config.settings import Settings
from raysim.config.training import TrainingSettings
from raysim.methods.options import MethodOptions
from tests.conftest import CONFIGS, tiny_settings

SCHEMA = json.loads((CONFIGS / "schema.json").read_text(encoding="utf-8"))
EXPERIMENTS = sorted(path for path in CONFIGS.glob("*.yaml") if not path.name.startswith(("compare_", "sweep_")))


def fields_of(kind: type[BaseModel]) -> list[str]:
    return list(kind.model_fields)


@pytest.mark.parametrize("kind", Settings.__subclasses__(), ids=lambda kind: kind.__name__)
def test_every_field_has_a_description(kind):
    bare = [name for name, field in kind.model_fields.items() if not (field.description or "").endswith(".")]
    assert bare == []


def test_the_committed_schema_is_current():
    assert ExperimentSettings.model_json_schema() == SCHEMA


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_the_schema_accepts_the_committed_experiments(path):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), SCHEMA)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_the_committed_experiments_are_valid_settings(path):
    ExperimentSettings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"round": 3}, "Additional properties"),
        ({"rounds": 0}, "minimum"),
        ({"seed": "one"}, "not of type 'integer'"),
        ({"training": {"optimizer": "sgdd"}}, "is not one of"),
        ({"data": {"partition": {"alpha": 0}}}, "less than or equal to the minimum of 0"),
    ],
)
def test_the_schema_refuses_what_the_settings_refuse(change, message):
    content = yaml.safe_load((CONFIGS / "digits.yaml").read_text(encoding="utf-8")) | change
    with pytest.raises(jsonschema.ValidationError, match=message):
        jsonschema.validate(content, SCHEMA)
    with pytest.raises(ValidationError):
        ExperimentSettings.model_validate(content)


def test_settings_are_frozen_at_every_level():
    settings = tiny_settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        settings.population.tiers[0].keep_ratio = 0.5


@pytest.mark.parametrize("value", ["1", 1.0, True])
def test_nothing_is_quietly_converted_to_a_number(value):
    with pytest.raises(ValidationError, match="valid integer"):
        tiny_settings().model_validate({**tiny_settings().model_dump(), "rounds": value})


def test_the_settings_name_all_options_of_methods_and_local_training():
    shared = [field.name for field in dataclasses.fields(MethodOptions) if field.name != "own"]
    assert fields_of(MethodSettings)[1:] == [*shared, "options"]
    of_the_loss = ["label_smoothing", "class_weights"]
    local = [field.name for field in dataclasses.fields(LocalTraining)]
    assert fields_of(TrainingSettings) == [*local, *of_the_loss, "pack"]


def changed(**change: object) -> dict[str, object]:
    return {**tiny_settings().model_dump(), **change}


def tier(name: str, share: float) -> dict[str, object]:
    speeds = dict.fromkeys(("flops_per_s", "down_bytes_per_s", "up_bytes_per_s"), 1e6)
    return {"name": name, "share": share, "keep_ratio": 0.5, **speeds}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"selection": {"clients_per_round": 7}}, "clients_per_round=7 is more than population.clients=6"),
        ({"population": {"clients": 6, "tiers": [tier("a", 0.5), tier("b", 0.4)]}}, "add up to 0.9"),
        ({"population": {"clients": 6, "tiers": [tier("a", 0.5), tier("a", 0.5)]}}, "'a' is given twice"),
        ({"executor": {"kind": "in-process", "num_actors": 2}}, "executor.num_actors=2 has no effect"),
        ({"executor": {"kind": "in-process", "address": "auto"}}, "executor.address='auto' has no effect"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        ExperimentSettings.model_validate(changed(**change))


def test_shares_may_miss_one_by_a_rounding_error():
    tiers = [tier(name, 1 / 3) for name in "abc"]
    population = {"clients": 6, "tiers": [*tiers[:2], {**tiers[2], "share": 0.333333}]}
    assert len(ExperimentSettings.model_validate(changed(population=population)).population.tiers) == 3


def test_at_most_twelve_tiers():
    def with_tiers(count: int) -> ExperimentSettings:
        tiers = [tier(f"t{index}", 1 / count) for index in range(count)]
        return ExperimentSettings.model_validate(changed(population={"clients": 20, "tiers": tiers}))

    assert len(with_tiers(12).population.tiers) == 12
    with pytest.raises(ValidationError, match="at most 12"):
        with_tiers(13)


@pytest.mark.parametrize("name", ["slow phone", "a/b", "", "a.b"])
def test_tier_names_that_cannot_name_a_metric_are_refused(name):
    with pytest.raises(ValidationError, match="pattern"):
        TierSettings.model_validate(tier(name, 1.0))
