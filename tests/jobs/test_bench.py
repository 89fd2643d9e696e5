"""The benchmarks prove that their sides are equal, run small, and print one JSON line with the machine's details."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.long
def test_bench_training_prints_one_line():
    command = [sys.executable, str(ROOT / "jobs" / "bench_training.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert result["ratio_to_floor"] > 0
    assert 0 < result["seconds_ratio_keep_0.25"] < result["seconds_ratio_keep_0.5"] < 1
    assert result["repeats"] == {"digits": 5, "vgg16": 3}
    assert set(result["machine"]) >= {"cpus", "capability"}
    assert set(result["versions"]) >= {"python", "torch", "raysim"}
    assert "commit" in result


@pytest.mark.long
@pytest.mark.parametrize("what", ["fused-sgd", "channels-last"])
def test_bench_training_compares_with_and_without(what):
    command = [sys.executable, str(ROOT / "jobs" / "bench_training.py"), "--compare", what, "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["compare"], result["repeats"]) == (what, 5)
    assert 0 < result["difference"] < 1e-4  # the same work, by other sums
    assert min(result["times_as_fast"], result["with_s"], result["without_s"]) > 0


@pytest.mark.long
def test_bench_submodel_prints_one_line():
    command = [sys.executable, str(ROOT / "jobs" / "bench_submodel.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert set(result["models"]) == {"vgg16", "resnet18", "mobilenet_v3_large"}
    for measured in result["models"].values():
        assert measured["extract_ratio_to_copy"] > 0
        assert measured["reconstruct_ratio_to_copy"] > 0
        assert measured["kept_parameters"] < measured["parameters"] / 2
    assert result["repeats"] == 5
    assert {"machine", "versions", "commit"} <= set(result)


@pytest.mark.long
def test_bench_tracking_proves_its_sides_equal_and_prints_one_line():
    few = ("population.clients=400", "selection.clients_per_round=200", "rounds=3")
    command = [sys.executable, str(ROOT / "jobs" / "bench_tracking.py"), "--repeats", "3", "--json"]
    settings = [part for setting in few for part in ("--set", setting)]
    done = subprocess.run([*command, *settings], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert (result["clients_per_round"], result["rounds"]) == (200, 3)
    assert min(result[name] for name in ("logging_cpu_percent", "metrics_percent", "round_s", "logged_round_s")) > 0
    assert {"machine", "versions", "commit", "cost_percent", "metric_names"} <= set(result)


@pytest.mark.long
def test_bench_freed_memory_proves_its_sides_equal_and_prints_one_line():
    command = [sys.executable, str(ROOT / "jobs" / "bench_freed_memory.py"), "--repeats", "3", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    for model in ("resnet32", "vgg16"):
        assert result[f"{model}_gain"] > 0
        assert result[f"{model}_page_faults"] > 2 * result[f"{model}_page_faults_kept"]
    assert {"machine", "versions", "commit", "repeats"} <= set(result)


@pytest.mark.slow
def test_too_few_repeats_are_refused():
    command = [sys.executable, str(ROOT / "jobs" / "bench_training.py"), "--repeats", "4"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--repeats=4" in done.stderr


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("workload", ["W1", "W2"])
def test_bench_engine_proves_its_sides_equal_and_prints_one_line(workload):
    command = [sys.executable, str(ROOT / "jobs" / "bench_engine.py"), "--workload", workload, "--quick", "--json"]
    done = subprocess.run([*command, "--repeats", "3"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert result["ratio_to_floor"] > 0
    assert 0 < result["difference"] < 1e-3
    names = {"W1": ("scaling", "samples_per_s"), "W2": ("clients_per_s", "clients_per_s_with_everything")}
    assert all(result[name] > 0 for name in names[workload])
    assert "commit" in result


@pytest.mark.long
def test_bench_long_runs_proves_its_records_complete_and_prints_one_line():
    sizes = ["--rounds=70", "--clients=5"]
    command = [sys.executable, str(ROOT / "jobs" / "bench_long_runs.py"), "--json", *sizes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert result["rows"] == 70 * 5
    assert result["files_at_end"] < 60  # three a round would be 210
    grows = ("clients_parquet_bytes_per_row", "mlflow_kb_per_round", "round_s_last_tenth", "report_mb")
    assert all(result[name] > 0 for name in grows)
    assert {"machine", "versions", "commit", "driver_kb_per_round", "report_open_s"} <= set(result)


@pytest.mark.ray
@pytest.mark.long
def test_the_parts_of_a_round_are_measured_and_drawn(tmp_path):
    command = [sys.executable, str(ROOT / "jobs" / "round_stack.py"), str(ROOT / "jobs" / "configs" / "digits.yaml")]
    few = ["--json", "--rounds", "2", "--actors", "1", "--figure", str(tmp_path / "stack.svg")]
    done = subprocess.run([*command, *few], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    parts = found["parts_s"]
    assert all(parts[part] > 0 for part in ("cut", "train", "difference", "put back", "wait", "driver"))
    assert parts["train"] == max(parts[part] for part in ("cut", "train", "difference", "put back"))
    assert "train" in (tmp_path / "stack.svg").read_text()
