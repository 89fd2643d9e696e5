"""Machines that a test can reach by ssh: each a set of Linux namespaces with an sshd, joined by a bridge.

Run inside namespaces of its own (`in_namespaces`), so that whatever happens, nothing is left: the first process of a
process space takes all others with it, and with the last process go the network and the mounts.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

BRIDGE, NETWORK = "rs0", "10.77.0"
TOOLS = ("unshare", "nsenter", "ip", "mount", "sshd", "ssh", "ssh-keygen", "rsync")


def missing() -> str:
    """Why no such machines can be had here; empty where they can."""
    if os.geteuid() != 0:
        return "not root: namespaces with a network and mounts of their own need it"
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    for tool in TOOLS:
        if shutil.which(tool, path=path) is None:
            return f"there is no {tool} here (Debian: openssh-server, rsync, iproute2)"
    tried = subprocess.run(
        [*NAMESPACES, "ip", "link", "add", BRIDGE, "type", "bridge"], capture_output=True, text=True
    )
    return f"namespaces are not allowed here: {tried.stderr.strip()}" if tried.returncode else ""


NAMESPACES = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]


def in_namespaces(*command: str) -> list[str]:
    """A command that runs another in namespaces of its own, and ends all it started."""
    return [*NAMESPACES, *command]


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class Machine:
    """A machine: its name, address, home and the process whose namespaces it is."""

    name: str
    address: str
    home: Path
    process: int

    def processes(self) -> str:
        """The command lines of all its processes, however long: `ps` cuts them at 80 columns without `-ww`."""
        entered = ["nsenter", "--target", str(self.process), "--pid", "--mount", "--net"]
        return run(*entered, "ps", "-ww", "-eo", "args")


def keep_to_itself(folder: Path) -> None:
    """Let nothing that is written from here on leave these namespaces: Ray has fixed places under /tmp."""
    run("mount", "--make-rprivate", "/")
    over = folder / "over"
    over.mkdir()
    run("mount", "-t", "tmpfs", "tmpfs", str(over))
    for name in ("upper", "work"):
        (over / name).mkdir()
    layers = f"lowerdir=/tmp,upperdir={over}/upper,workdir={over}/work"
    run("mount", "-t", "overlay", "overlay", "-o", layers, "/tmp")
    Path("/tmp/ray").mkdir(exist_ok=True)
    for path in ("/tmp/ray", "/dev/shm"):
        run("mount", "-t", "tmpfs", "tmpfs", path)


def lay_bridge() -> None:
    """Make the network in which this process and the machines are."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "addr", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")


def start(name: str, number: int, folder: Path, public_key: str, venv: Path) -> Machine:
    """Start a machine: a home of its own, the shared environment laid under what it writes, and sshd."""
    home = folder / name
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "authorized_keys").write_text(public_key)
    (home / ".config" / "pip").mkdir(parents=True)
    (home / ".config" / "pip" / "pip.conf").write_text("[global]\nno-index = true\nno-build-isolation = false\n")
    passwd = Path("/etc/passwd").read_text().splitlines()
    mine = [line for line in passwd if not line.startswith(("root:", "sshd:"))]
    mine += [f"root:x:0:0:root:{home}:/bin/bash", "sshd:x:65533:65534::/run/sshd:/bin/false"]
    (home / "passwd").write_text("\n".join(mine) + "\n")
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / "host_key"))
    (home / "sshd_config").write_text(
        f"Port 22\nListenAddress {NETWORK}.{number}\nHostKey {home}/host_key\n"
        f"AuthorizedKeysFile {home}/.ssh/authorized_keys\nPermitRootLogin yes\n"
        f"StrictModes no\nUsePAM no\nPidFile none\nMaxSessions 100\nMaxStartups 100\n"
    )
    (home / ".bashrc").touch()
    sshd = shutil.which("sshd", path="/usr/sbin:/sbin:/usr/bin")
    ready, go = home / "ready", home / "go"
    script = f"""set -e
hostname {name}
mount --make-rprivate /
mount --bind {home}/passwd /etc/passwd
mkdir -p /tmp/ray /run/sshd
for path in /tmp/ray /run /dev/shm; do mount -t tmpfs tmpfs $path; done
mkdir /run/sshd /run/upper /run/work
mount -t overlay overlay -o lowerdir={venv},upperdir=/run/upper,workdir=/run/work {venv}
mkdir -p {home}/raysim/.venv
mount --bind {venv} {home}/raysim/.venv
touch {ready}
until test -e {go}; do sleep 0.1; done
ip link set lo up
ip addr add {NETWORK}.{number}/24 dev inside
ip link set inside up
ip route add default via {NETWORK}.1  # by its default route Ray tells its address
exec env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin {sshd} -D -e -f {home}/sshd_config
"""
    log = (home / "sshd.log").open("w")
    outer = subprocess.Popen(in_namespaces("bash", "-c", script), stdout=log, stderr=log)
    wait(ready, outer, home / "sshd.log")
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
    run("ip", "link", "add", f"to-{name}"[:15], "type", "veth", "peer", "name", "inside", "netns", children[0])
    run("ip", "link", "set", f"to-{name}"[:15], "master", BRIDGE, "up")
    go.touch()
    return Machine(name, f"{NETWORK}.{number}", home, int(children[0]))


def wait(file: Path, process: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + 60
    while not file.exists():
        if process.poll() is not None or time.monotonic() > until:
            sys.exit(f"a machine did not start: {log.read_text()}")
        time.sleep(0.05)
