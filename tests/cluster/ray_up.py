"""`ray up` of cluster.yaml on a head and a worker, a job across both, `ray down`; prints the observations as JSON.

Usage: python -m tests.cluster.ray_up FOLDER, in namespaces of its own (see `hosts.in_namespaces`). FOLDER is empty.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import yaml

from tests.cluster import hosts

ROOT = Path(__file__).parents[2]
VENV = Path(sys.prefix)
RAY = str(VENV / "bin" / "ray")
SETTINGS = (
    "rounds=2", "population.clients=8", "selection.clients_per_round=8", "training.epochs=1",
    "model.options={channels: [4, 8], hidden: 16}",
)  # fmt: skip
DASHBOARD = "http://127.0.0.1:8265"


def main(folder: Path) -> None:
    hosts.keep_to_itself(folder)
    hosts.lay_bridge()
    key = folder / "key"
    hosts.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    public = key.with_suffix(".pub").read_text()
    machines = [hosts.start(name, number, folder, public, VENV) for name, number in (("head", 2), ("worker", 3))]
    cluster = write_cluster(folder, *machines, key)
    env = environment(folder / "launcher")
    token = make_token(env, folder / "launcher")
    say("ray up")
    told = call([RAY, "up", "--yes", "--no-config-cache", str(cluster)], env)
    say("waiting for the worker")
    wait_for_worker(cluster, env)
    seen: dict[str, object] = {"token_told": token in told}
    seen["while_up"] = [count_rays(each) for each in machines]
    seen["token_modes"] = [oct((each.home / ".ray" / "auth_token").stat().st_mode & 0o777) for each in machines]
    seen["same_token"] = [(each.home / ".ray" / "auth_token").read_text().strip() == token for each in machines]
    seen["status"] = call([RAY, "exec", str(cluster), "ray status"], env)
    say("a job")
    seen |= run_job(cluster, machines[0], env)
    seen["token_in_logs"] = [logs_with(token, each) for each in machines]
    say("ray down")
    call([RAY, "down", "--yes", str(cluster)], env)
    seen["head_after_down"] = count_rays(machines[0])
    seen["worker_ends_after_s"] = wait_for_end(machines[1])
    print(json.dumps(seen))


def count_rays(machine: hosts.Machine) -> int:
    return machine.processes().count("raylet/raylet ") + machine.processes().count("gcs/gcs_server ")


def wait_for_end(machine: hosts.Machine) -> float:
    """A worker stops by itself when its head has been away for a while."""
    started = time.monotonic()
    while count_rays(machine):
        if time.monotonic() - started > 180:
            sys.exit(f"Ray goes on after `ray down`: {machine.processes()}")
        time.sleep(1)
    return time.monotonic() - started


def say(text: str) -> None:
    print(f"{time.strftime('%X')} {text}", file=sys.stderr, flush=True)


def environment(home: Path) -> dict[str, str]:
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join([str(VENV / "bin"), kept["PATH"], "/usr/sbin", "/sbin"])
    return kept | {"HOME": str(home), "PATH": path, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}


def call(command: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"{command} left with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def write_cluster(folder: Path, head: hosts.Machine, worker: hosts.Machine, key: Path) -> Path:
    """The repository's cluster file with these addresses, this user and this key, and nothing else changed."""
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    cluster["provider"] |= {"head_ip": head.address, "worker_ips": [worker.address]}
    cluster["auth"] = {"ssh_user": "root", "ssh_private_key": str(key)}
    cluster |= {"min_workers": 1, "max_workers": 1}
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(cluster, sort_keys=False))
    return path


def make_token(env: dict[str, str], home: Path) -> str:
    call([RAY, "get-auth-token", "--generate"], env)
    return (home / ".ray" / "auth_token").read_text().strip()


def wait_for_worker(cluster: Path, env: dict[str, str]) -> None:
    code = (
        "import ray; ray.init('auto', log_to_driver=False); print('machines:', sum(n['Alive'] for n in ray.nodes()))"
    )
    command = f'RAY_AUTH_MODE=token ~/raysim/.venv/bin/python -c "{code}"'
    until = time.monotonic() + 300
    while "machines: 2" not in (told := call([RAY, "exec", str(cluster), command], env)):
        if time.monotonic() > until:
            monitor = call([RAY, "exec", str(cluster), "tail -n 100 /tmp/ray/session_latest/logs/monitor*"], env)
            sys.exit(f"no worker joined: {told}\n{monitor}")
        time.sleep(2)


def run_job(cluster: Path, head: hosts.Machine, env: dict[str, str]) -> dict[str, object]:
    forwarding = subprocess.Popen(
        [RAY, "dashboard", str(cluster)],
        env=env,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for_dashboard()
    arguments = [part for setting in (*SETTINGS, "executor.num_actors=4") for part in ("--set", setting)]
    store = ["--output", f"{head.home}/out", "--tracking-uri", f"sqlite:///{head.home}/mlflow.db", "--json"]
    command = [sys.executable, "-m", "raysim", "submit", "jobs/configs/digits.yaml", "--address", DASHBOARD]
    done = subprocess.run([*command, *arguments, *store], env=env, cwd=ROOT, capture_output=True, text=True)
    forwarding.terminate()
    forwarding.wait()
    if done.returncode:
        sys.exit(f"the job left with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    placed = [line for line in done.stderr.splitlines() if line.startswith("client actors: ")]
    return {"summary": json.loads(done.stdout), "placed": placed}


def wait_for_dashboard() -> None:
    until = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{DASHBOARD}/api/version", timeout=5)
        except urllib.error.HTTPError as error:
            if error.code == 401:
                return
        except OSError:
            pass
        if time.monotonic() > until:
            sys.exit("the dashboard cannot be reached through `ray dashboard`, or asks for no token")
        time.sleep(0.5)


def logs_with(token: str, machine: hosts.Machine) -> str:
    entered = ["nsenter", "--target", str(machine.process), "--mount", "--pid", "--net"]
    done = subprocess.run([*entered, "grep", "-rlsF", token, "/tmp/ray"], capture_output=True, text=True)
    return done.stdout


if __name__ == "__main__":
    os.environ["PATH"] += os.pathsep + "/usr/sbin" + os.pathsep + "/sbin"
    main(Path(sys.argv[1]))
