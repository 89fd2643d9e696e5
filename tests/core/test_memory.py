"""Sizes that memory cannot hold are refused before anything is allocated."""

import json
import os
import resource
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch

from raysim.core import memory
from raysim.core.errors import SettingError
from raysim.models import zoo
from raysim.simulation.build import build_scenario
from tests.conftest import ROOT, tiny_settings

HUGE = 2**31 - 1
NOISE = "{shape: [3, 100000, 100000], train_rows: 40, test_rows: 20}"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["data.transform.resize=100000"], "data.transform.resize=100000 needs"),
        (["data.transform.pad_to=1000000000"], "data.transform.pad_to=1000000000 needs"),
        ([f"population.clients={HUGE}", "data.partition={name: resample}"], f"population.clients={HUGE} needs"),
        (["data={name: noise, options: {train_rows: 1000000000000}}"], "data.options={"),
        ([f"data={{name: noise, options: {NOISE}}}"], "data.options={"),
        (["model={name: mlp, options: {hidden: [100000000]}}"], "model.options={'hidden': [100000000]} needs"),
        (["model={name: mlp, options: {hidden: [2147483647, 2147483647]}}"], "model.options={'hidden': ["),
        (["model={name: cnn, options: {hidden: 2147483647}}"], "model.options={'hidden': 2147483647} needs"),
        (["data.transform.augment=[{name: Pad, padding: 100000}]"], "data.transform.augment.0="),
        (
            ["data.transform.augment=[{name: RandomCrop, size: 8, padding: [0, 1000000]}]"],
            "data.transform.augment.0=",
        ),
    ],
)
def test_a_size_beyond_memory_is_refused_before_it_is_allocated(overrides, name):
    settings = tiny_settings(*overrides)
    tracemalloc.start()
    try:
        with pytest.raises(SettingError) as refused:
            build_scenario(settings)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(refused.value).startswith(name)
    assert "allowed" in str(refused.value)
    assert len(str(refused.value)) < 1000
    assert peak < 200e6


def test_a_limit_of_the_process_counts(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (10**9, 10**9))
    assert memory.total_bytes() == 10**9
    memory.check_fits("a", 1, 10**9)
    with pytest.raises(SettingError, match=r"a=1 needs 1.1 GB of memory; allowed: what fits into the 1 GB of this"):
        memory.check_fits("a", 1, 1_100_000_000)


def test_the_size_of_a_model_is_counted_without_its_weights_being_drawn_twice():
    options = {"hidden": [32]}
    counted, drawn = (
        zoo.build("mlp", given, zoo.DataForm((1, 8, 8), 10), 0) for given in (options, {"hidden": [32]})
    )
    for first, second in zip(counted.parameters(), drawn.parameters(), strict=True):
        assert np.array_equal(first.detach().numpy(), second.detach().numpy())


SHORT_OF_MEMORY = """
import json, resource, sys
import psutil
from raysim.core.errors import SettingError
from raysim.simulation.build import build_scenario
from tests.conftest import ROOT, tiny_settings
build_scenario(tiny_settings())  # what is imported stays
limit, said = psutil.Process().memory_info().data + 50_000_000, []
for overrides in json.loads(sys.argv[1]):
    settings = tiny_settings(*overrides)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    try:
        build_scenario(settings)
    except SettingError as error:
        said.append(str(error))
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(json.dumps(said))
"""
NEEDY = {
    "data.name='noise' needs more memory": ["data={name: noise, options: {train_rows: 100000}}"],
    "model.": ["model={name: mlp, options: {hidden: [6000, 6000]}}"],
    "model.name='cnn' with 1,000,000": ["population.clients=1000000", "data.partition={name: resample}"],
}
"""Runs that need more than 50 MB, by what the message begins with."""


@pytest.mark.slow
def test_memory_that_runs_out_before_training_is_one_message():
    command = [sys.executable, "-c", SHORT_OF_MEMORY, json.dumps(list(NEEDY.values()))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    assert len(said) == len(NEEDY)
    for message, beginning in zip(said, NEEDY, strict=True):
        assert message.startswith(beginning)
        assert "memory" in message


def test_a_shortage_is_told_from_other_errors():
    with pytest.raises(SettingError, match=r"^x needs more memory than there is \(Unable to alloc"), enough():
        np.empty(2**60, np.uint8)
    with pytest.raises(SettingError, match=r"^x needs more memory than there is \(.*can't allocate memory"), enough():
        torch.empty(2**50, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="invalid for input of size"), enough():
        torch.zeros(2, 3).view(5)
    with pytest.raises(FileNotFoundError), enough():
        os.stat("/no/such/file")


def enough():
    return memory.enough_for("x", "less")
