"""The cluster file is one that this version of Ray accepts, and it installs what a run needs."""

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.conftest import ROOT

PATH = ROOT / "cluster.yaml"


@pytest.fixture(scope="module")
def cluster() -> dict:
    return yaml.safe_load(PATH.read_text(encoding="utf-8"))


def test_ray_accepts_it(cluster):
    prepared = prepare_config(cluster)
    validate_config(prepared)
    (node_type,) = prepared["available_node_types"].values()
    workers = len(cluster["provider"]["worker_ips"])
    assert 0 <= node_type["min_workers"] <= node_type["max_workers"] == workers


def test_addresses_are_examples(cluster):
    addresses = [cluster["provider"]["head_ip"], *cluster["provider"]["worker_ips"]]
    assert all(address.startswith("192.0.2.") for address in addresses)
    assert len(set(addresses)) == len(addresses)


def test_nodes_get_the_pinned_versions_and_no_leftovers(cluster):
    assert any("--constraint constraints.txt" in command for command in cluster["setup_commands"])
    assert {".venv", "runs", ".git"} <= {pattern.strip("/") for pattern in cluster["rsync_exclude"]}
    synced = next(there for there, here in cluster["file_mounts"].items() if here == ".")
    assert any(f"cd {synced}" in command for command in cluster["setup_commands"])


def test_nothing_starts_without_the_token(cluster):
    token = "~/.ray/auth_token"
    assert cluster["file_mounts"][token] == token
    assert any(f"chmod 600 {token}" in command for command in cluster["setup_commands"])
    for kind in ("head", "worker"):
        start = cluster[f"{kind}_start_ray_commands"][-1]
        assert "export RAY_AUTH_MODE=token" in start
        assert start.index("RAY_AUTH_MODE") < start.index("ray start")
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]
