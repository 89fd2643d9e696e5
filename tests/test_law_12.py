"""Law 12 for the output of a run: on Ray and in this process it is the same to the byte."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from raysim.core import tensors
from raysim.executors.in_process import InProcessRunner
from raysim.experiment import run as experiment
from raysim.methods.table import METHODS
from raysim.simulation import checkpoint
from raysim.simulation.build import build_scenario
from raysim.simulation.scenario import Runner
from raysim.simulation.state import FinalState, Storage
from tests.conftest import settings_of
from tests.stores import store_in

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FEW = (
    "selection.clients_per_round=2", "data.max_train_examples=150", "evaluation.max_examples=50",
    "evaluation.client_share=0.0", *(f"population.tiers.{tier}.keep_ratio=0.3" for tier in range(4)),
)  # fmt: skip
"""Two clients with narrow submodels: in the first round most channels are trained by nobody."""
NO_WARM_UP = ("method.warmup_rounds=0",)
WITH_BATCH_NORM = ("model.name=resnet32", "model.options={}", "rounds=1", "data.max_train_examples=60")

TEXT = (
    "data={name: python-source, options: {users: 8, length: 12}, partition: {name: natural}}",
    "data.max_train_examples=150",
    "task.name=next-token",
)
TRANSFORMER = "name: transformer, options: {width: 16, heads: 2, hidden: 16}"

SILENT = {
    f"{name}, silent": (name, *NO_WARM_UP, "method.silent_dormant=true")
    for name, method in METHODS.items()
    if "silent_dormant" in method.reads
}
"""Cases in which the served model differs from the trained parameters."""
CASES = {
    **{name: (name, *(NO_WARM_UP if "warmup_rounds" in method.reads else ())) for name, method in METHODS.items()},
    **SILENT,
    "silent and sticky": (*SILENT["ca-hfp, silent"], "method.hysteresis=0.5"),
    "silent under Adam": (*SILENT["ca-hfp, silent"], "server.optimizer=adam", "server.learning_rate=0.01"),
    "silent and asynchronous": (
        *SILENT["ca-hfp, silent"], "clock.mode=async", "clock.buffer_size=2", "clock.concurrency=3",
    ),
    "static statistics": ("magnitude", *WITH_BATCH_NORM, "method.normalization=static"),
    "static statistics of HeteroFL": ("heterofl", *WITH_BATCH_NORM),
    "silent, static statistics": (
        *SILENT["ca-hfp, silent"], *WITH_BATCH_NORM, "method.normalization=static",
    ),
    "batch statistics": ("magnitude", *WITH_BATCH_NORM),
    "group norm": ("magnitude", *WITH_BATCH_NORM, "method.normalization=group"),
    **{f"fill {fill}": ("magnitude", f"method.fill={fill}") for fill in ("zero", "holders", "damped")},
    "whole channels of AutoFLIP": ("autoflip", "method.options.mode=structured"),
    "single weights of AutoFLIP": ("autoflip", "method.options.mode=unstructured"),
    "an LSTM": ("magnitude", *TEXT, "model={name: char-lstm, options: {hidden: 8, embedding: 4}}"),
    "a transformer": ("ca-hfp", *NO_WARM_UP, *TEXT, f"model={{{TRANSFORMER}}}"),
    "adapters": (
        "flexlora", *TEXT, f"model={{{TRANSFORMER}, adapter: {{rank: 4, targets: ['*.query', '*.expand']}}}}",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def on_ray(local_ray: None) -> Iterator[Any]:
    from raysim.executors.ray.runner import RayRunner

    with RayRunner(2, None) as runner:
        yield runner


def final_of(runner: Runner, folder: Path, overrides: tuple[str, ...]) -> FinalState:
    method, *more = overrides
    scenario = build_scenario(settings_of(method, *FEW, *more))
    for _ in runner.run(scenario, Storage(folder, every=10, keep=1)):
        pass
    return runner.final_state()


def saved(final: FinalState, file: Path) -> bytes:
    return checkpoint.save_params(final.served_params, file).read()


@pytest.mark.parametrize("case", CASES)
def test_law_12_the_model_file_is_the_same_to_the_byte(case: str, on_ray, tmp_path: Path) -> None:
    here = final_of(InProcessRunner(), tmp_path / "here", CASES[case])
    there = final_of(on_ray, tmp_path / "there", CASES[case])
    assert saved(here, tmp_path / "here.safetensors") == saved(there, tmp_path / "there.safetensors")
    assert tensors.digest(here.params) == tensors.digest(there.params)
    assert (here.round, here.totals) == (there.round, there.totals)
    is_masked = CASES[case][0] == "autoflip" and "method.options.mode=structured" not in CASES[case]
    serves_another = is_masked or "method.silent_dormant=true" in CASES[case] or CASES[case][0] == "ca-hfp+"
    assert (tensors.digest(here.params) != tensors.digest(here.served_params)) == serves_another


def run_tracked(runner: Runner, folder: Path, overrides: tuple[str, ...], uri: str) -> tuple[bytes, torch.Tensor]:
    """Run an experiment as its user does; return its model file and its logged model's outputs of test rows.

    The file and the logged model are the served model: they have the same outputs, and the trained one has others.
    """
    method, *more = overrides
    settings = settings_of(method, *FEW, "rounds=1", *more, f"tracking.uri={uri}", "tracking.system_metrics=false")
    prepared = experiment.prepare(settings, folder)
    summary = experiment.run(prepared, runner, time.monotonic())
    client = MlflowClient(uri)
    (output,) = client.get_run(summary["run_id"]).outputs.model_outputs
    mlflow.set_tracking_uri(uri)
    model = mlflow.pytorch.load_model(client.get_logged_model(output.model_id).model_uri)
    inputs, _ = prepared.scenario.workload.data.test_rows(np.arange(100))
    network = prepared.scenario.workload.model.eval()
    with torch.no_grad():
        logged = model(inputs)
        network.load_state_dict(runner.final_state().params)
        assert not torch.equal(network(inputs), logged)
        network.load_state_dict(load_file(folder / "model.safetensors"))
        assert torch.equal(network(inputs), logged)
    return (folder / "model.safetensors").read_bytes(), logged


@pytest.mark.parametrize("case", SILENT)
def test_law_12_the_logged_model_is_the_served_one(case: str, on_ray, tmp_path: Path) -> None:
    """Where the served model is another than the trained one."""
    uri = store_in(tmp_path)
    file_here, outputs_here = run_tracked(InProcessRunner(), tmp_path / "here", SILENT[case], uri)
    file_there, outputs_there = run_tracked(on_ray, tmp_path / "there", SILENT[case], uri)
    assert file_here == file_there
    assert torch.equal(outputs_here, outputs_there)
