"""Checkpoints: the server state in one file, as safetensors with JSON in the header; never pickle."""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors

from raysim.clock import serialization
from raysim.config.metric import FIELD
from raysim.core import tensors as arrays
from raysim.core.errors import SettingError, reason_of
from raysim.core.json_text import json_in
from raysim.core.log import warning
from raysim.core.storage.local import AnyPath, storage_path
from raysim.core.storage.path import StoragePath
from raysim.core.tensors import Params
from raysim.simulation import client_state, records
from raysim.simulation.client_state import ClientMemory, Stored
from raysim.simulation.state import Chosen, DenseTotals, Reached, ServerState, Start, Totals, WidthScore

FORMAT = 6
HEADER = "raysim"
"""Key of the JSON in the safetensors header."""
EARLIER = ("accuracy", "best_accuracy", "validation_accuracy")
"""Names of fields in checkpoints of earlier versions."""
CLIENTS = "clients"
"""Folder beside the checkpoints that holds the memory of single clients."""


class TornCheckpointError(RuntimeError):
    """A checkpoint is incomplete or its content does not have the recorded digest."""


def path_of(folder: AnyPath, round: int) -> StoragePath:
    """Return the path of a round's checkpoint."""
    return storage_path(folder) / f"round_{round:06d}.safetensors"


def save(state: ServerState, folder: AnyPath, keep: int, run: str = "") -> StoragePath:
    """Write a state under its round's name, then delete all but the newest `keep` up to it.

    A checkpoint is one file, which appears at once when all of it has reached the disk. Checkpoints of later rounds
    are left over from before a resume and are deleted as well.
    """
    tensors = _tensors_of(state)
    content = {
        "format": FORMAT,
        "round": state.round,
        "run": run,
        "totals": asdict(state.totals),
        "clients": _references(state),
        "limited_by": serialization.reasons_of(state.in_flight),
        "fedavg": _fedavg_content(state.fedavg),
        "tensors_sha256": arrays.digest(tensors),
    }
    header = {HEADER: json.dumps({**content, "sha256": _digest(content)})}
    target = path_of(folder, state.round).write_bytes(safetensors.save(_contiguous(tensors), header))
    saved = saved_in(folder)
    kept = [file for file in saved if round_of(file) <= state.round][-keep:]
    for file in saved:
        if file not in kept:
            file.remove()
    _remove_old_memories(storage_path(folder), state.clients.keys())
    return target


def _tensors_of(state: ServerState) -> Params:
    """Return all tensors of a state by kind: `params/<key>`, `memory/<key>` and so on."""
    history = {name: torch.from_numpy(column) for name, column in state.history.items()}
    versions = {
        f"{round}/{key}": tensor for round, params in state.versions.items() for key, tensor in params.items()
    }
    kinds = {
        "params": state.params,
        "memory": state.memory,
        "history": history,
        "work": serialization.tensors_of(state.in_flight),
        "version": versions,
        "fedavg": {} if state.fedavg is None else _tensors_of(state.fedavg),
    }
    return {f"{kind}/{key}": tensor for kind, tensors in kinds.items() for key, tensor in tensors.items()}


def _fedavg_content(state: ServerState | None) -> dict[str, Any] | None:
    if state is None:
        return None
    limited_by = serialization.reasons_of(state.in_flight)
    return {"round": state.round, "totals": asdict(state.totals), "limited_by": limited_by}


def _under(prefix: str, tensors: Params) -> Params:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def with_clients_on_disk(state: ServerState, folder: AnyPath) -> ServerState:
    """Write the memory of single clients into the folder; a checkpoint refers to these files."""
    if not state.clients:
        return state
    memory = client_state.updated(state.clients, {})
    return replace(state, clients=memory.stored(storage_path(folder) / CLIENTS, state.round))


def _references(state: ServerState) -> dict[str, dict[str, str]]:
    memory = client_state.updated(state.clients, {})
    stored = {client: entry for client, entry in memory.entries.items() if isinstance(entry, Stored)}
    if len(stored) < len(memory):
        raise ValueError("the memory of clients must be on disk before a checkpoint refers to it")
    return {str(client): {"file": entry.path.name, "sha256": entry.sha256} for client, entry in stored.items()}


def _remove_old_memories(folder: StoragePath, clients: Collection[int]) -> None:
    """Delete the clients' files that no checkpoint refers to.

    A checkpoint refers to each client's newest file up to its round; the newest one only to those of `clients`.
    """
    *before, last = (round_of(saved) for saved in saved_in(folder))
    versions: dict[int, dict[int, StoragePath]] = {}
    for file in (folder / CLIENTS).children():
        version = client_state.version_of(file)
        if version is not None:
            versions.setdefault(version[0], {})[version[1]] = file
    for client, files_of_one in versions.items():
        rounds = [*before, last] if client in clients else before
        needed = {max((written for written in files_of_one if written <= round), default=-1) for round in rounds}
        for written, file in files_of_one.items():
            if written not in needed:
                file.remove()


def saved_in(folder: AnyPath) -> list[StoragePath]:
    """Return the complete checkpoints in a folder, oldest first."""
    named = [file for file in storage_path(folder).children() if re.fullmatch(r"round_\d+\.safetensors", file.name)]
    return sorted(named, key=round_of)


def round_of(checkpoint: StoragePath) -> int:
    """Return the round after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("round_").removesuffix(".safetensors"))


def newest(folder: AnyPath, report: Callable[[str], None]) -> ServerState | None:
    """Return the newest intact state. None: there is none."""
    return next(intact(folder, report), None)


def intact(folder: AnyPath, report: Callable[[str], None], run: str = "") -> Iterator[ServerState]:
    """Yield the intact states, newest first; the memory of single clients is verified as well.

    Args:
        folder: Folder of the checkpoints.
        report: Called with a sentence for each checkpoint that is skipped.
        run: The key of the run; those of another run are skipped. Empty: not known.

    Raises:
        OSError: If an existing file cannot be read: it may be intact.
    """
    for saved in reversed(saved_in(folder)):
        try:
            state = load(saved, run)
            for client in state.clients:
                _ = state.clients[client]
        except (TornCheckpointError, client_state.DamagedMemoryError) as error:
            report(f"skipping the checkpoint of round {round_of(saved)}: {error}")
        else:
            yield state


def load(given: AnyPath, run: str = "") -> ServerState:
    """Read a checkpoint.

    Args:
        given: Its path.
        run: The key of the run that it must be of; empty: any.

    Raises:
        TornCheckpointError: If the file is missing, damaged, or of another run.
        SettingError: If it is intact and has the format of another version of raysim.
        OSError: If it exists and cannot be read.
    """
    source = storage_path(given)
    try:
        with source.fetched() as path, safe_open(path, framework="pt") as file:
            content = json_in((file.metadata() or {})[HEADER])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
        recorded, tensors_recorded = content.pop("sha256"), content["tensors_sha256"]
        format = content["format"]
    except (FileNotFoundError, SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise TornCheckpointError(f"{source} cannot be read: {type(error).__name__}: {error}") from error
    if recorded != _digest(content) or tensors_recorded != arrays.digest(tensors):
        raise TornCheckpointError(f"{source} is damaged: its content does not have the digest recorded in its header")
    if format != FORMAT:
        raise SettingError(
            f"{str(source)!r} has checkpoint format {format}, this version of raysim reads {FORMAT}; allowed: the "
            "version that wrote it, named in run.json"
        )
    if run and content.get("run") not in ("", None, run):
        raise TornCheckpointError(f"{source} is of another run")
    return _state_of(content, tensors, source.parent / CLIENTS)


def _state_of(content: Mapping[str, Any], tensors: Params, clients: StoragePath) -> ServerState:
    works = serialization.works_from(_under("work/", tensors), content["limited_by"])
    references = content["clients"].items()
    return ServerState(
        content["round"],
        _under("params/", tensors),
        _under("memory/", tensors),
        _totals(content["totals"]),
        ClientMemory({int(client): Stored(clients / entry["file"], entry["sha256"]) for client, entry in references}),
        history={name: column.numpy() for name, column in _under("history/", tensors).items()},
        in_flight=works,
        versions={work.cohort.round: _under(f"version/{work.cohort.round}/", tensors) for work in works},
        fedavg=_fedavg_from(content["fedavg"], _under("fedavg/", tensors)),
    )


def _fedavg_from(content: Mapping[str, Any] | None, tensors: Params) -> ServerState | None:
    if content is None:
        return None
    works = serialization.works_from(_under("work/", tensors), content["limited_by"])
    return ServerState(
        content["round"],
        {},
        totals=_totals(content["totals"]),
        history={name: column.numpy() for name, column in _under("history/", tensors).items()},
        in_flight=works,
        versions={work.cohort.round: {} for work in works},
    )


def _totals(content: dict[str, Any]) -> Totals:
    content = _renamed(content)
    reached, chosen = tuple(Reached(**entry) for entry in content["reached"]), content.get("chosen")
    fedavg = None if content["fedavg"] is None else DenseTotals(**content["fedavg"])
    best = None if chosen is None else Chosen(**chosen)
    widths = tuple(WidthScore(**entry) for entry in content.get("widths", ()))
    known = {"reached": reached, "chosen": best, "fedavg": fedavg, "widths": widths}
    return Totals(**{**content, **known})


def _renamed(content: Any) -> Any:
    """Return entries by the names of their fields; of earlier versions they are named after the accuracy."""
    if isinstance(content, list):
        return [_renamed(each) for each in content]
    if not isinstance(content, dict):
        return content
    return {
        key.replace("accuracy", FIELD) if key in EARLIER else key: each if key == "further" else _renamed(each)
        for key, each in content.items()
    }


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save_params(params: Params, given: AnyPath) -> StoragePath:
    """Write parameters and buffers as one safetensors file."""
    return storage_path(given).write_bytes(safetensors.save(_contiguous(params)))


def _contiguous(params: Params) -> Params:
    return {key: tensor.contiguous().clone() for key, tensor in params.items()}


def resume_point(folder: StoragePath, run: str = "") -> Start:
    """Return where a run resumes: after the newest round whose checkpoint and record are both intact.

    A warning names each checkpoint that is skipped.

    Args:
        folder: The run's folder.
        run: The key of the run; empty: not known.

    Raises:
        OSError: If an existing file cannot be read: it may be intact.
    """
    for state in intact(folder / "checkpoints", warning, run):
        try:
            return Start(state.round, records.logged(folder / "rounds", state.round).wall_s)
        except (FileNotFoundError, records.TornRecordError) as error:
            warning(f"skipping the checkpoint of round {state.round}, whose record is lost: {reason_of(error)}")
    return Start()
