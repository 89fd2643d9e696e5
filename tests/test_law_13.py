"""Law 13: every setting of devices, budgets, selection, the clock and tracking has an effect or is refused.

A table of setting -> smallest run that changes; a setting that is missing in it fails.
"""

import functools
import json
import tempfile
import time
from dataclasses import astuple
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mlflow.tracking import MlflowClient

from raysim.config.budget import BudgetSettings
from raysim.config.clock import ClockSettings
from raysim.config.compression import CompressionSettings
from raysim.config.costs import CostSettings
from raysim.config.experiment import ExperimentSettings
from raysim.config.model import AdapterSettings
from raysim.config.population import DeviceSettings, PopulationSettings, ProfileSettings, TierSettings
from raysim.config.selection import SelectionSettings
from raysim.config.stop import StopSettings
from raysim.config.tracking import TrackingSettings
from raysim.config.training import ScheduleSettings, TrainingSettings
from raysim.core import tensors
from raysim.core.errors import SettingError
from raysim.executors import in_process
from raysim.experiment import run as experiment
from raysim.experiment.cost import Prices, costs_of
from raysim.population import sources
from raysim.simulation.build import build_scenario
from raysim.simulation.forecast import forecast
from raysim.simulation.state import summary_of, targets_of
from raysim.tracking import system_metrics
from tests.clocked import MODES, QUICK, played
from tests.conftest import tiny_settings

SECTIONS = {
    "population": PopulationSettings,
    "population.tiers": TierSettings,
    "population.devices": DeviceSettings,
    "budget": BudgetSettings,
    "selection": SelectionSettings,
    "clock": ClockSettings,
    "costs": CostSettings,
    "stop": StopSettings,
    "tracking": TrackingSettings,
    "compression": CompressionSettings,
    "model.adapter": AdapterSettings,
    "training": TrainingSettings,
    "training.schedule": ScheduleSettings,
}
MORE = (
    "evaluation.targets",
    "evaluation.widths",
    "data.validation_share",
    "task.metrics",
    "task.client_metrics",
    "task.name",
    "task.loss",
    "task.primary",
    "task.direction",
    "model.train_only",
    "model.adapter",
    "model.keep_whole",
)
"""Settings of other sections that are in the table."""
ONE_VALUE = {"model.adapter.kind"}
"""Settings that allow one value so far: another one is refused."""


def predicted(settings: ExperimentSettings) -> Any:
    return forecast(build_scenario(settings))


def trained(settings: ExperimentSettings) -> Any:
    """What a run comes to, where that is not known without training."""
    scenario = build_scenario(settings)
    state, _ = played(scenario)
    totals = state.totals
    reached = targets_of(totals, scenario.targets, scenario.primary), totals.best_primary, totals.further
    widths = [astuple(each) for each in totals.widths]
    return state.round, tensors.digest(state.params), summary_of(totals), reached, widths


def refused(settings: ExperimentSettings) -> str:
    """Why a run is refused; empty if it is not."""
    try:
        build_scenario(settings)
    except SettingError as error:
        return str(error)
    return ""


def recorded_of_clients(settings: ExperimentSettings) -> Any:
    """The columns of the table of clients."""
    _, reports = played(build_scenario(settings), rounds=1)
    return list(reports[0].clients)


def priced(settings: ExperimentSettings) -> Any:
    return costs_of(Prices(**settings.costs.model_dump()), energy_j=7.2e6, wall_s=1800)


def tracked(settings: ExperimentSettings) -> Any:
    """What MLflow has of a run: where, registered models, runs of clients, and whether its machine was watched."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = experiment.prepare(settings, Path(folder) / "out")
        summary = experiment.run(prepared, in_process.InProcessRunner(), time.monotonic())
    client = MlflowClient(summary["tracking_uri"])
    names = [version.name for version in client.search_model_versions(f"run_id = '{summary['run_id']}'")]
    is_watched = any(key.startswith("system/") for key in client.get_run(summary["run_id"]).data.metrics)
    children = client.search_runs([summary["experiment_id"]], f"tags.`mlflow.parentRunId` = '{summary['run_id']}'")
    return Path(summary["tracking_uri"]).name, names, len(children), is_watched


def left(settings: ExperimentSettings) -> Any:
    """What lies in the folder of a run."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = experiment.prepare(settings, Path(folder) / "out")
        experiment.run(prepared, in_process.InProcessRunner(), time.monotonic())
        return sorted(path.name for path in (Path(folder) / "out").iterdir())


class Change(NamedTuple):
    """A run, and what is set in it."""

    base: tuple[str, ...]
    change: tuple[str, ...]
    observed: Any = predicted


def tier(*settings: str) -> tuple[str, ...]:
    return tuple(f"population.tiers.{place}.{setting}" for place in range(4) for setting in settings)


ALL = ("selection.clients_per_round=6",)
SOLVED = (*ALL, "budget.rule=solved")
ON_BATTERIES = (*QUICK, *tier("battery_j=3.0", "train_watts=2.0"))
NOBODY = tier("availability=1e-9")
DEADLINE, OVER, ASYNC = ((*QUICK, *MODES[mode]) for mode in ("deadline", "over-selection", "async"))


SHORT = ("rounds=2", "data.max_train_examples=150", "evaluation.max_examples=50", "tracking.uri=sqlite:///one.db")


def devices(setting: str) -> tuple[str, ...]:
    return (*ALL, "population.tiers=null", f"population.devices={{{setting}}}")


BRIEF = (*QUICK, "rounds=2", "evaluation.client_share=0.0", "training.epochs=1", "training.schedule={}")
STEPS = (*BRIEF, "training.schedule={name: step, every: 1}")
LORA = ("method.name=magnitude", "model.adapter={rank: 4, alpha: 16.0, targets: ['2', '6']}")
CHANNELS_LAST = "training.memory_format=channels_last"
ONE_BY_ONE = (*BRIEF, "model.name=mlp", "model.options={hidden: [8]}", "method.name=fedavg", "training.clip_norm=0.1",
              "data.partition={name: iid}", "training.pack=1")  # fmt: skip


CHANGES: dict[str, Change] = {
    "population.clients": Change((), ("population.clients=7",)),
    "population.tiers": Change(ALL, ("population.tiers.0.share=0.3", "population.tiers.1.share=0.2")),
    "population.devices": Change(ALL, devices("preset: uniform")[1:]),
    "population.tiers.name": Change((), ("population.tiers.0.name=other",)),
    "population.tiers.share": Change(ALL, ("population.tiers.0.share=0.3", "population.tiers.1.share=0.2")),
    "population.tiers.keep_ratio": Change(ALL, ("population.tiers.0.keep_ratio=0.5",)),
    "population.tiers.flops_per_s": Change(ALL, ("population.tiers.0.flops_per_s=2e+8",)),
    "population.tiers.down_bytes_per_s": Change(ALL, ("population.tiers.0.down_bytes_per_s=1e+4",)),
    "population.tiers.up_bytes_per_s": Change(ALL, ("population.tiers.0.up_bytes_per_s=1e+4",)),
    "population.tiers.latency_s": Change(ALL, ("population.tiers.0.latency_s=0.2",)),
    "population.tiers.step_overhead_s": Change(ALL, ("population.tiers.0.step_overhead_s=0.2",)),
    "population.tiers.memory_bytes_per_s": Change(ALL, ("population.tiers.0.memory_bytes_per_s=1e+6",)),
    "population.tiers.compute_variation": Change(ALL, ("population.tiers.0.compute_variation=0.5",)),
    "population.tiers.link_variation": Change(ALL, ("population.tiers.0.link_variation=0.1",)),
    "population.tiers.link_drift": Change(ALL, ("population.tiers.0.link_drift=0.1",)),
    "population.tiers.memory_bytes": Change((*SOLVED, "budget.deadline_s=1e+4"), tier("memory_bytes=5e+4")),
    "population.tiers.data_cap_bytes": Change((*SOLVED, "budget.deadline_s=1e+4"), tier("data_cap_bytes=9e+3")),
    "population.tiers.train_watts": Change(ALL, ("population.tiers.0.train_watts=1.0",)),
    "population.tiers.idle_watts": Change(ALL, ("population.tiers.3.idle_watts=1.0",)),
    "population.tiers.radio_j_per_byte": Change(ALL, ("population.tiers.0.radio_j_per_byte=1e-3",)),
    "population.tiers.battery_j": Change((*QUICK, *tier("train_watts=2.0")), tier("battery_j=3.0")),
    "population.tiers.charge_watts": Change(ON_BATTERIES, tier("charge_watts=1.0")),
    "population.tiers.availability": Change((), tier("availability=0.3")),
    "population.tiers.availability_swing": Change(tier("availability=0.5"), tier("availability_swing=0.5")),
    "population.tiers.failure_rate": Change((), tier("failure_rate=0.9")),
    "population.tiers.compute_spread": Change(ALL, ("population.tiers.0.compute_spread=0.5",)),
    "population.tiers.link_spread": Change(ALL, ("population.tiers.0.link_spread=0.5",)),
    "population.tiers.memory_spread": Change((*SOLVED, *tier("memory_bytes=5e+4")), tier("memory_spread=0.5")),
    "population.devices.preset": Change(devices("preset: uniform"), devices("preset: heterofl-a-e")),
    "population.devices.profiles": Change(devices("preset: uniform"), devices("profiles: PROFILES")),
    "population.devices.path": Change(devices("path: slow.csv"), devices("path: fast.csv")),
    "population.devices.fedscale": Change(devices("fedscale: slow.json"), devices("fedscale: fast.json")),
    "population.devices.fedscale_flops": Change(
        devices("fedscale: slow.json"), devices("fedscale: slow.json, fedscale_flops: 1e+9")
    ),
    "population.devices.availability": Change(
        devices("preset: uniform"), devices("preset: uniform, availability: online.json")
    ),
    "budget.rule": Change((*ALL, *tier("memory_bytes=5e+4")), ("budget.rule=solved",)),
    "budget.deadline_s": Change(
        (*SOLVED, *tier("memory_bytes=1e+9", "flops_per_s=1e+7")), ("budget.deadline_s=1.0",)
    ),
    "budget.steps": Change((*SOLVED, *tier("memory_bytes=5e+4")), ("budget.steps=5",)),
    "selection.clients_per_round": Change((), ("selection.clients_per_round=4",)),
    "selection.rule": Change((), ("selection.rule=round-robin",)),
    "selection.options": Change(
        (*QUICK, "selection.rule=power-of-choice"), ("selection.options={candidates: 3}",), trained
    ),
    "clock.mode": Change(QUICK, ("clock.mode=over-selection",)),
    "clock.deadline_s": Change(DEADLINE, ("clock.deadline_s=0.9",)),
    "clock.accept_partial": Change(DEADLINE, ("clock.accept_partial=true",)),
    "clock.over_selection": Change(OVER, ("clock.over_selection=1.9",)),
    "clock.buffer_size": Change(ASYNC, ("clock.buffer_size=3",)),
    "clock.concurrency": Change(ASYNC, ("clock.concurrency=4",)),
    "clock.staleness_exponent": Change(ASYNC, ("clock.staleness_exponent=2.0",), trained),
    "clock.server_s": Change((), ("clock.server_s=1.0",)),
    "clock.empty_round_s": Change(NOBODY, ("clock.empty_round_s=30.0",)),
    "costs.price_per_kwh": Change((), ("costs.price_per_kwh=0.3",), priced),
    "costs.carbon_g_per_kwh": Change((), ("costs.carbon_g_per_kwh=380.0",), priced),
    "costs.cluster_watts": Change((), ("costs.cluster_watts=100.0",), priced),
    "costs.cluster_price_per_hour": Change((), ("costs.cluster_price_per_hour=2.0",), priced),
    "stop.accuracy": Change(QUICK, ("stop.accuracy=0.01",), trained),
    "stop.primary": Change(QUICK, ("stop.primary=0.01",), trained),
    "stop.simulated_s": Change((), ("stop.simulated_s=0.01",)),
    "stop.bytes": Change((), ("stop.bytes=10.0",)),
    "stop.energy_j": Change(tier("train_watts=1.0"), ("stop.energy_j=1e-6",)),
    "data.validation_share": Change((), ("data.validation_share=0.2",)),
    "task.name": Change(QUICK, ("task.name=regression",), refused),
    "task.loss": Change(QUICK, ("task.loss=tests.task.own_parts:focal",), trained),
    "task.primary": Change(QUICK, ("task.primary=macro_f1",), trained),
    "task.direction": Change(
        (*QUICK, "task.primary=tests.task.own_parts:brier", "task.direction=up"), ("task.direction=down",), trained
    ),
    "task.metrics": Change(QUICK, ("task.metrics=[macro_f1]",), trained),
    "task.client_metrics": Change(
        (*QUICK, "task.metrics=[macro_f1]"), ("task.client_metrics=true",), recorded_of_clients
    ),
    "evaluation.widths": Change(QUICK, ("evaluation.widths=[0.75]",), trained),
    "evaluation.targets": Change(QUICK, ("evaluation.targets=[0.01]",), trained),
    "compression.name": Change((), ("compression.name=8-bit",)),
    "model.train_only": Change((), ("model.train_only=['8']",)),
    "model.adapter": Change((), ("model.adapter={rank: 4}",)),
    "model.keep_whole": Change(LORA, ("model.keep_whole=['6.*']",)),
    "model.adapter.rank": Change(LORA, ("model.adapter.rank=6",)),
    "model.adapter.alpha": Change((*BRIEF, *LORA), ("model.adapter.alpha=64.0",), trained),
    "model.adapter.dropout": Change((*BRIEF, *LORA), ("model.adapter.dropout=0.5",), trained),
    "model.adapter.targets": Change(LORA, ("model.adapter.targets=['2']",)),
    "model.adapter.train_also": Change(LORA, ("model.adapter.train_also=['8']",)),
    "compression.share": Change(("compression.name=top-k",), ("compression.share=0.5",)),
    "training.optimizer": Change(BRIEF, ("training.optimizer=adam",), trained),
    "training.learning_rate": Change(BRIEF, ("training.learning_rate=0.1",), trained),
    "training.momentum": Change(BRIEF, ("training.momentum=0.5",), trained),
    "training.nesterov": Change(BRIEF, ("training.nesterov=true",), trained),
    "training.weight_decay": Change(BRIEF, ("training.weight_decay=0.1",), trained),
    "training.lr_decay": Change(BRIEF, ("training.lr_decay=0.5",), trained),
    "training.clip_norm": Change(BRIEF, ("training.clip_norm=0.1",), trained),
    "training.epochs": Change((), ("training.epochs=2",)),
    "training.batch_size": Change(BRIEF, ("training.batch_size=4",), trained),
    "training.precision": Change(BRIEF, ("training.precision=bf16",), trained),
    "training.memory_format": Change((*BRIEF, "model.options={channels: [32, 64]}"), (CHANNELS_LAST,), trained),
    "training.label_smoothing": Change(BRIEF, ("training.label_smoothing=0.1",), trained),
    "training.class_weights": Change(BRIEF, ("training.class_weights=[1, 1, 1, 1, 1, 1, 1, 1, 1, 2]",), trained),
    "training.pack": Change(ONE_BY_ONE, ("training.pack=3",), trained),
    "training.schedule": Change(BRIEF, ("training.schedule={name: exponential}",), trained),
    "training.schedule.name": Change(BRIEF, ("training.schedule.name=cosine",), trained),
    "training.schedule.warmup": Change(BRIEF, ("training.schedule.warmup=1",), trained),
    "training.schedule.factor": Change(STEPS, ("training.schedule.factor=0.5",), trained),
    "training.schedule.every": Change(STEPS, ("training.schedule.every=2",), trained),
    "training.schedule.milestones": Change(STEPS, ("training.schedule={name: step, milestones: [2]}",), trained),
    "training.schedule.final_share": Change(
        (*BRIEF, "training.schedule={name: cosine}"), ("training.schedule.final_share=0.5",), trained
    ),
    "tracking.uri": Change(SHORT, ("tracking.uri=sqlite:///two.db",), tracked),
    "tracking.register_model": Change(SHORT, ("tracking.register_model=mine",), tracked),
    "tracking.client_runs": Change(SHORT, ("tracking.client_runs=true",), tracked),
    "tracking.system_metrics": Change(SHORT, ("tracking.system_metrics=false",), tracked),
    "tracking.also": Change((*SHORT, "tracking.uri=none"), ("tracking.also=[tensorboard]",), left),
}

PROFILE = "{name: a, flops_per_s: 1e+9, down_bytes_per_s: 1e+6, up_bytes_per_s: 1e+6}"
TABLE = "flops_per_s,down_bytes_per_s,up_bytes_per_s\n{},1e6,1e6\n"
CAPACITY = '{{"1": {{"computation": {}, "communication": 8000.0}}}}'
ONLINE = '{"1": {"active": [3600], "inactive": [7200], "finish_time": 86400}}'


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory) -> Any:
    """A folder with the files that settings name, and this process in it."""
    with pytest.MonkeyPatch.context() as patch:
        folder: Path = tmp_path_factory.mktemp("law-13")
        for name, speed in (("slow", 1e9), ("fast", 2e9)):
            (folder / f"{name}.csv").write_text(TABLE.format(speed), encoding="utf-8")
            (folder / f"{name}.json").write_text(CAPACITY.format(speed / 1e8), encoding="utf-8")
        (folder / "online.json").write_text(ONLINE, encoding="utf-8")
        patch.setattr(system_metrics, "LAST_SAMPLE_S", 30)
        patch.chdir(folder)
        yield folder


@functools.cache
def observation(observed: Any, *overrides: str) -> str:
    """As text, so that a number that is none, which equals nothing, raises."""
    seen = observed(tiny_settings(*(override.replace("PROFILES", f"[{PROFILE}]") for override in overrides)))
    return json.dumps(seen, allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize("setting", CHANGES)
def test_every_setting_has_an_effect(setting):
    base, change, observed = CHANGES[setting]
    section, _, name = setting.rpartition(".")
    assert any(override.startswith(section) and name in override for override in change)
    assert observation(observed, *base) != observation(observed, *base, *change)


@pytest.mark.slow
@pytest.mark.parametrize("observed", [predicted, trained, priced])
def test_what_is_observed_depends_on_settings_alone(observed):
    assert observation.__wrapped__(observed, *QUICK) == observation.__wrapped__(observed, *QUICK)


def test_every_setting_is_in_the_table():
    fields = {f"{section}.{name}" for section, kind in SECTIONS.items() for name in kind.model_fields}
    assert set(CHANGES) == (fields - ONE_VALUE) | set(MORE)


def test_a_profile_of_a_list_has_all_that_a_tier_has():
    shares = {name: 0.01 * place for place, name in enumerate(ProfileSettings.model_fields, 1) if name != "name"}
    listed = sources.profile_of(ProfileSettings(name="a", **shares))
    assert {name: getattr(listed, name) for name in shares if name != "keep_ratio"} == {
        name: share for name, share in shares.items() if name != "keep_ratio"
    }
    assert sources.given(DeviceSettings(profiles=[ProfileSettings(name="a", **shares)])).keep_ratio == [0.02]


REFUSED = {
    ("model.adapter={kind: other}",): "model.adapter.kind='other' is not allowed; allowed: 'lora'",
    (*LORA, "model.train_only=['8']"): "train_only is not allowed with adapter; allowed: adapter.train_also",
    ("population.tiers.0.charge_watts=5.0",): "population.tiers.0: charge_watts=5 has no effect without battery_j",
    ("population.tiers.0.memory_spread=0.5",): "population.tiers.0: memory_spread=0.5 has no effect without memory_b",
    ("population.tiers=null", "population.devices={profiles: [{charge_watts: 2.0, " + PROFILE[1:] + "]}"): (
        "population.devices.profiles.0: charge_watts=2 has no effect without battery_j"
    ),
    ("population.tiers=null", "population.devices={preset: uniform, fedscale_flops: 1e+9}"): (
        "fedscale_flops=1e+09 has no effect without fedscale"
    ),
    ("selection.rule=oort", "selection.options={preferred_s: 3.0, preferred_quantile: 0.5}"): (
        "selection.options.preferred_quantile=0.5 has no effect with preferred_s=3; it belongs to preferred_s=0"
    ),
    ("tracking.register_model=a/b",): "tracking.register_model='a/b' is not allowed",
    ("tracking.uri=none", "tracking.register_model=a"): "tracking: register_model='a' has no effect with uri='none'",
    ("tracking.uri=none", "tracking.client_runs=true"): "tracking: client_runs=True has no effect with uri='none'",
    ("tracking.also=[tensorboard, tensorboard]",): "tracking: also: 'tensorboard' is given twice; allowed: each once",
    ("executor.client_timeout_s=5.0",): "executor.client_timeout_s=5.0 has no effect with executor.kind='in-process'",
    ("executor.num_actors=clients",): "executor.num_actors='clients' has no effect with executor.kind='in-process'",
    ("budget.deadline_s=1.0",): "deadline_s=1.0 has no effect with rule='tier'",
    ("budget.steps=8",): "steps=8 has no effect with rule='tier'",
    ("budget.rule=solved",): "budget.rule='solved' has no effect without budget.deadline_s",
    ("compression.share=0.5",): "share=0.5 has no effect with name=None; it belongs to 'top-k'",
    ("compression.name=8-bit", "compression.share=0.5"): "share=0.5 has no effect with name='8-bit'; it belongs to",
    ("clock.deadline_s=1.0",): "deadline_s=1.0 has no effect with mode='sync'",
    ("clock.accept_partial=true",): "accept_partial=True has no effect with mode='sync'",
    ("clock.over_selection=1.5",): "over_selection=1.5 has no effect with mode='sync'",
    ("clock.buffer_size=2",): "buffer_size=2 has no effect with mode='sync'",
    ("clock.concurrency=2",): "concurrency=2 has no effect with mode='sync'",
    ("clock.staleness_exponent=1.0",): "staleness_exponent=1.0 has no effect with mode='sync'",
    ("clock.mode=deadline", "clock.deadline_s=9.0", "clock.empty_round_s=5.0"): "empty_round_s=5 has no effect with",
}
"""Settings without effect, and how they are refused."""


@pytest.mark.parametrize("settings", REFUSED, ids=" ".join)
def test_a_setting_without_effect_is_refused(settings):
    with pytest.raises(SettingError) as refused:
        build_scenario(tiny_settings(*settings))
    assert REFUSED[settings] in str(refused.value)


@pytest.mark.parametrize(("method", "aside"), [("fedavg", True), ("heterofl", False)])
def test_budgets_that_are_left_aside_are_said(capsys, method, aside):
    build_scenario(tiny_settings(f"method.name={method}", "budget.rule=solved", "budget.deadline_s=100.0"))
    told = "budgets are ignored: method.name='fedavg' trains the full model\n"
    assert capsys.readouterr().err == (told if aside else "")
