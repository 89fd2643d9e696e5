"""State of single clients: files per version, references, damaged files, and resuming from them."""

import json
from pathlib import Path

import pytest
import torch

from raysim.core import tensors as arrays
from raysim.core.storage.local import storage_path
from raysim.core.tensors import Params
from raysim.executors.in_process import InProcessExecutor
from raysim.simulation import checkpoint, client_state
from raysim.simulation.build import build_scenario
from raysim.simulation.checkpoint import CLIENTS, with_clients_on_disk
from raysim.simulation.client_state import ClientMemory, DamagedMemoryError, Stored, updated
from raysim.simulation.loop import run_rounds
from raysim.simulation.round import run_round
from raysim.simulation.state import ServerState, Storage
from raysim.simulation.transition import initial_state
from tests.conftest import settings_of


def tensors(value: float) -> Params:
    return {"variate/0.weight": torch.full((2, 3), value).t(), "variate/0.bias": torch.tensor([value])}


def saved(state: ServerState, folder: Path, keep: int = 2) -> ServerState:
    state = with_clients_on_disk(state, folder)
    checkpoint.save(state, folder, keep)
    return state


def files_in(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / CLIENTS).iterdir())


def test_strangers_among_the_files_of_clients_stay(tmp_path: Path) -> None:
    params, strangers = (
        {"a": torch.zeros(2)},
        ["notes.txt", "3_.safetensors", "x_1.safetensors", "0000003_000001.txt"],
    )
    (tmp_path / CLIENTS).mkdir()
    for name in strangers:
        (tmp_path / CLIENTS / name).touch()
    (tmp_path / CLIENTS / "folder").mkdir()
    saved(ServerState(1, params, clients={3: tensors(1)}), tmp_path, keep=1)
    saved(ServerState(2, params, clients={3: tensors(2)}), tmp_path, keep=1)
    assert files_in(tmp_path) == sorted([*strangers, "folder", "0000003_000002.safetensors"])


def test_entries_are_taken_over_without_being_read() -> None:
    missing = Stored(storage_path("nowhere.safetensors"), "0")
    memory = updated(ClientMemory({1: missing, 2: tensors(2)}), {2: tensors(3), 5: tensors(5)})
    assert list(memory) == [1, 2, 5]
    assert len(memory) == 3
    assert memory[2]["variate/0.bias"] == 3
    assert memory.get(7, {}) == {}
    with pytest.raises(DamagedMemoryError, match=r"nowhere\.safetensors cannot be read: No such file"):
        memory[1]


def test_a_client_has_one_file_per_version_and_old_ones_go_with_their_checkpoints(tmp_path: Path) -> None:
    params = {"a": torch.zeros(2)}
    state = saved(ServerState(1, params, clients={3: tensors(1), 8: tensors(2)}), tmp_path)
    assert files_in(tmp_path) == ["0000003_000001.safetensors", "0000008_000001.safetensors"]
    assert all(isinstance(entry, Stored) for entry in state.clients.entries.values())
    state = saved(ServerState(2, params, clients=updated(state.clients, {8: tensors(4)})), tmp_path)
    assert files_in(tmp_path) == [
        "0000003_000001.safetensors",
        "0000008_000001.safetensors",
        "0000008_000002.safetensors",
    ]
    referred = checkpoint.load(checkpoint.path_of(tmp_path, 2)).clients.entries
    assert {client: entry.path.name for client, entry in referred.items()} == {
        3: "0000003_000001.safetensors",
        8: "0000008_000002.safetensors",
    }
    earlier = checkpoint.load(checkpoint.path_of(tmp_path, 1))
    assert earlier.clients[8]["variate/0.bias"] == 2, "round 1 still finds its own version"
    saved(ServerState(3, params, clients=state.clients), tmp_path, keep=2)
    assert files_in(tmp_path) == ["0000003_000001.safetensors", "0000008_000002.safetensors"]
    later = checkpoint.load(checkpoint.path_of(tmp_path, 3))
    assert torch.equal(later.clients[3]["variate/0.weight"], tensors(1)["variate/0.weight"])
    saved(ServerState(4, params), tmp_path, keep=1)
    assert files_in(tmp_path) == []


def test_what_is_not_on_disk_cannot_be_referred_to(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be on disk"):
        checkpoint.save(ServerState(1, {"a": torch.zeros(2)}, clients={0: tensors(1)}), tmp_path, keep=1)


@pytest.mark.parametrize("harm", ["flipped bit", "cut", "missing"])
def test_a_damaged_file_is_noticed_when_it_is_asked_for(tmp_path: Path, harm: str) -> None:
    saved(ServerState(1, {"a": torch.zeros(2)}, clients={0: tensors(1), 1: tensors(2)}), tmp_path)
    file = tmp_path / CLIENTS / "0000001_000001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes(content if harm == "flipped bit" else content[:-3])
    loaded = checkpoint.load(checkpoint.path_of(tmp_path, 1))
    assert loaded.clients[0]["variate/0.bias"] == 1
    with pytest.raises(DamagedMemoryError, match="cannot be read" if harm == "missing" else "is damaged"):
        loaded.clients[1]


def test_a_file_that_is_there_and_cannot_be_read_is_not_taken_for_damaged(tmp_path: Path) -> None:
    saved(ServerState(1, {"a": torch.zeros(2)}, clients={0: tensors(1)}), tmp_path)
    file = tmp_path / CLIENTS / "0000000_000001.safetensors"
    file.unlink()
    file.mkdir()
    with pytest.raises(IsADirectoryError):
        checkpoint.newest(tmp_path, print)


def test_clients_files_are_safetensors_and_no_pickle(tmp_path: Path) -> None:
    saved(ServerState(1, {"a": torch.zeros(2)}, clients={0: tensors(1)}), tmp_path)
    content = (tmp_path / CLIENTS / "0000000_000001.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert set(header) == {"variate/0.weight", "variate/0.bias"}
    assert not list(tmp_path.rglob("*.pt")) + list(tmp_path.rglob("*.pkl"))


def test_a_changed_reference_is_noticed(tmp_path: Path) -> None:
    saved(ServerState(1, {"a": torch.zeros(2)}, clients={0: tensors(1)}), tmp_path)
    path = checkpoint.path_of(tmp_path, 1)
    path.write_bytes(path.read().replace(b"0000000_000001", b"0000000_000009"))
    with pytest.raises(checkpoint.TornCheckpointError, match="does not have the digest"):
        checkpoint.load(path)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["scaffold", "autoflip"])
def test_going_on_from_the_checkpoint_of_round_2_is_the_uninterrupted_run(tmp_path: Path, method: str) -> None:
    """Law 11 for memory of single clients; the run in between keeps three checkpoints."""
    scenario = build_scenario(settings_of(method, "rounds=4"))
    executor = InProcessExecutor(scenario.workload)
    *_, (whole, _) = run_rounds(scenario, initial_state(scenario), executor, Storage(tmp_path, every=1, keep=3))
    state = checkpoint.load(checkpoint.path_of(tmp_path / "checkpoints", 2))
    assert state.round == 2
    assert isinstance(state.clients, ClientMemory)
    assert len(state.clients) > 0
    for _round in (3, 4):
        state, _ = run_round(scenario, state, executor)
    assert arrays.digest(state.params) == arrays.digest(whole.params)
    assert arrays.digest(state.memory) == arrays.digest(whole.memory)
    assert state.totals == whole.totals
    assert {id: arrays.digest(state.clients[id]) for id in state.clients} == {
        id: arrays.digest(whole.clients[id]) for id in whole.clients
    }


@pytest.mark.slow
def test_in_memory_and_on_disk_give_the_same_rounds(tmp_path: Path) -> None:
    scenario = build_scenario(settings_of("scaffold"))
    executor, digests = InProcessExecutor(scenario.workload), []
    for on_disk in (False, True):
        state = initial_state(scenario)
        for _round in range(2):
            state, _ = run_round(scenario, state, executor)
            state = with_clients_on_disk(state, tmp_path) if on_disk else state
        digests.append(arrays.digest(state.params))
    assert digests[0] == digests[1]
    assert client_state.updated({}, {}).entries == {}
