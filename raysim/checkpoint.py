"""Server state to disk and back, atomically: safetensors for tensors, JSON for the rest, never pickle."""

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from raysim import arrays, client_memory, files, work_storage
from raysim.client_memory import ClientMemory, Stored
from raysim.types import Params, Reached, ServerState, Totals

FORMAT = 3
CLIENTS = "clients"
"""Folder beside the checkpoints that holds what is remembered of single clients."""


class TornCheckpointError(RuntimeError):
    """A checkpoint is incomplete or its tensors do not have the recorded digest."""


def path_of(folder: Path, round: int) -> Path:
    """Return where the checkpoint of a round lies."""
    return folder / f"round_{round:06d}"


def save(state: ServerState, folder: Path, keep: int) -> Path:
    """Write a state under its round's name, then delete all but the newest `keep`.

    The checkpoint appears at once by a rename after everything has reached the disk.
    """
    target = path_of(folder, state.round)
    partial = folder / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(_contiguous(state.params), partial / "params.safetensors")
    save_file(_contiguous(state.memory), partial / "memory.safetensors")
    clock = _clock_tensors(state)
    save_file(_contiguous(clock), partial / "clock.safetensors")
    content = {
        "format": FORMAT,
        "round": state.round,
        "totals": asdict(state.totals),
        "clients": _references(state),
        "params_sha256": arrays.digest(state.params),
        "memory_sha256": arrays.digest(state.memory),
        "clock_sha256": arrays.digest(clock),
        "limited_by": work_storage.reasons_of(state.in_flight),
    }
    content["sha256"] = _digest(content)
    (partial / "state.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    for file in partial.iterdir():
        files.flush(file)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    files.flush(folder)
    for old in saved_in(folder)[:-keep]:
        shutil.rmtree(old)
    _forget_old_clients(folder)
    return target


def _clock_tensors(state: ServerState) -> Params:
    """Return what is remembered of every client, work that goes on, and the versions it started from."""
    history = {f"history/{name}": torch.from_numpy(column) for name, column in state.history.items()}
    works = {f"work/{key}": tensor for key, tensor in work_storage.tensors_of(state.in_flight).items()}
    versions = {
        f"version/{round}/{key}": tensor for round, params in state.versions.items() for key, tensor in params.items()
    }
    return history | works | versions


def _under(prefix: str, tensors: Params) -> Params:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def with_clients_on_disk(state: ServerState, folder: Path) -> ServerState:
    """Write what is remembered of single clients into the folder, so that a checkpoint only has to refer to it."""
    if not state.clients:
        return state
    memory = client_memory.updated(state.clients, {})
    return replace(state, clients=memory.stored(folder / CLIENTS, state.round))


def _references(state: ServerState) -> dict[str, dict[str, str]]:
    memory = client_memory.updated(state.clients, {})
    stored = {client: entry for client, entry in memory.entries.items() if isinstance(entry, Stored)}
    if len(stored) < len(memory):
        raise ValueError("what is remembered of clients has to be on disk before it is referred to")
    return {str(client): {"file": entry.path.name, "sha256": entry.sha256} for client, entry in stored.items()}


def _forget_old_clients(folder: Path) -> None:
    """Delete the clients' files that no checkpoint refers to."""
    if not (folder / CLIENTS).is_dir():
        return
    states = [json.loads((saved / "state.json").read_text(encoding="utf-8")) for saved in saved_in(folder)]
    needed = {entry["file"] for state in states for entry in state["clients"].values()}
    for file in (folder / CLIENTS).glob("*.safetensors"):
        if file.name not in needed:
            file.unlink()


def saved_in(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, oldest first."""
    return sorted(folder.glob("round_[0-9]*"))


def load(path: Path) -> ServerState:
    """Read a checkpoint.

    Raises:
        TornCheckpointError: If a file is missing or damaged.
    """
    try:
        content = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise TornCheckpointError(f"it has format {content['format']}; this version reads format {FORMAT}")
        params = load_file(path / "params.safetensors")
        memory = load_file(path / "memory.safetensors")
        recorded = content.pop("sha256")
        clock = load_file(path / "clock.safetensors")
        digests = tuple(content[f"{what}_sha256"] for what in ("params", "memory", "clock"))
        clients = {
            int(client): Stored(path.parent / CLIENTS / entry["file"], entry["sha256"])
            for client, entry in content["clients"].items()
        }
        works = work_storage.works_from(_under("work/", clock), content["limited_by"])
        state = ServerState(
            content["round"], params, memory, _totals(content["totals"]), ClientMemory(clients),
            history={name: column.numpy() for name, column in _under("history/", clock).items()},
            in_flight=works,
            versions={work.cohort.round: _under(f"version/{work.cohort.round}/", clock) for work in works},
        )  # fmt: skip
    except Exception as error:
        raise TornCheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if recorded != _digest(content) or digests != tuple(arrays.digest(each) for each in (params, memory, clock)):
        raise TornCheckpointError(f"{path} is damaged: its content does not have the digest recorded in state.json")
    return state


def _totals(content: dict[str, Any]) -> Totals:
    reached = tuple(Reached(**entry) for entry in content["reached"])
    return Totals(**{**content, "reached": reached})


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save_params(params: Params, path: Path) -> None:
    """Write parameters and buffers as one safetensors file."""
    files.write_atomically(path, lambda partial: save_file(_contiguous(params), partial))


def _contiguous(params: Params) -> Params:
    return {key: tensor.contiguous().clone() for key, tensor in params.items()}
