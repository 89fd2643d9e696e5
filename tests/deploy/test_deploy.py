"""Ray, KubeRay, Compose and Docker accept the files in deploy/ and the Dockerfile, and these require a token."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from compose_spec import PyCompose
from ray.autoscaler._private.util import prepare_config, validate_config
from sqlalchemy import create_engine

from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
FIELDS = json.loads((ROOT / "tests" / "resources" / "rayjob_fields.json").read_text())


def read(name: str) -> dict:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def test_ray_accepts_the_cluster_at_aws_and_its_token_is_spread() -> None:
    cluster = read("aws.yaml")
    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert prepared["available_node_types"]["clients"]["max_workers"] == cluster["max_workers"]
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for start in (cluster["head_start_ray_commands"][-1], cluster["worker_start_ray_commands"][-1]):
        assert "export RAY_AUTH_MODE=token" in start
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]
    assert "chmod 600 ~/.ray/auth_token" in cluster["setup_commands"]
    profiles = [kind["node_config"]["IamInstanceProfile"] for kind in cluster["available_node_types"].values()]
    assert profiles == [{"Name": "your-profile"}] * 2


def unknown_fields(value: object, known: object, place: str = "") -> list[str]:
    """Fields that KubeRay does not have, and values that are not among those allowed."""
    known = FIELDS[known] if isinstance(known, str) and known else known
    if isinstance(known, list):
        return [] if value in known else [f"{place}={value}"]
    if not isinstance(known, dict):
        return []
    assert isinstance(value, dict), place
    found = []
    for name, child in value.items():
        if f"{name}[]" in known:
            each = [unknown_fields(entry, known[f"{name}[]"], f"{place}.{name}") for entry in child]
            found += [one for many in each for one in many]
        elif name in known or "*" in known:
            found += unknown_fields(child, known.get(name, known.get("*")), f"{place}.{name}")
        else:
            found.append(f"{place}.{name}")
    return found


def test_the_rayjob_has_only_fields_that_kuberay_has() -> None:
    job = read("rayjob.yaml")
    assert unknown_fields(job, FIELDS["root"]) == []
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    workers = cluster["workerGroupSpecs"]
    for group in (cluster["headGroupSpec"], *workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    assert all(group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] for group in workers)


@pytest.mark.parametrize(("good", "bad"), [("entrypoint:", "entryPoint:"), ("K8sJobMode", "SomeMode")])
def test_a_wrong_field_of_a_rayjob_is_found(good, bad) -> None:
    text = (DEPLOY / "rayjob.yaml").read_text()
    assert len(unknown_fields(yaml.safe_load(text.replace(good, bad)), FIELDS["root"])) == 1


@pytest.mark.slow
def test_the_rayjobs_command_is_one_that_raysim_takes(tmp_path) -> None:
    """With its config replaced by this checkout's and a dry run, as far as it goes without a cluster."""
    words = read("rayjob.yaml")["spec"]["entrypoint"].split()
    assert words[:4] == ["python", "-m", "raysim", "run"]
    config = words[4].replace("/home/raysim/raysim", str(ROOT))
    assert Path(config).is_file()
    command = [sys.executable, "-m", "raysim", "run", config, *words[5:], "--dry-run", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_compose_takes_the_file_and_publishes_on_the_loopback_alone() -> None:
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    PyCompose.from_yaml(with_defaults(text))
    content = yaml.safe_load(with_defaults(text))
    published = [port for service in content["services"].values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:5000:5000"]
    server = content["services"]["mlflow"]
    assert "--allowed-hosts=localhost:5000,127.0.0.1:5000" in server["command"]
    engine = create_engine(server["environment"]["MLFLOW_BACKEND_STORE_URI"])  # loads the driver it names
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (driver,) = extras["server"]
    assert driver.startswith(f"{engine.driver}-binary")
    assert ".[server,s3]" in (ROOT / "Dockerfile").read_text()
    assert (DEPLOY / server["build"]["context"] / server["build"]["dockerfile"]).resolve() == ROOT / "Dockerfile"
    with pytest.raises(ValueError, match="imagge"):
        PyCompose.from_yaml(with_defaults(text).replace("image: postgres", "imagge: postgres"))


def with_defaults(text: str) -> str:
    """The file with its variables at their defaults, and a password."""
    return re.sub(r"\$\{\w+(:-|:\?)([^}]*)\}", lambda found: found[2] if found[1] == ":-" else "secret", text)


@pytest.mark.slow
def test_mlflow_takes_the_servers_options() -> None:
    command = yaml.safe_load(with_defaults((DEPLOY / "compose.yaml").read_text()))["services"]["mlflow"]["command"]
    asked = [str(Path(sys.executable).with_name("mlflow")), "server", "--help"]
    known = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    assert all(option.partition("=")[0] in known for option in command[2:])


def test_the_dockerfile_passes_its_linter_and_copies_what_is_there() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    sent = (ROOT / ".dockerignore").read_text().split()
    assert copied == ["pyproject.toml", "constraints.txt", "README.md", "LICENSE", "raysim", "jobs"]
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in sent
    assert lines[-1] == "USER 1000"
    assert lines[1].startswith("FROM python:3.11")
