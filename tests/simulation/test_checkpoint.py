import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from raysim.core import tensors
from raysim.core.errors import SettingError
from raysim.simulation import checkpoint
from raysim.simulation.checkpoint import TornCheckpointError
from raysim.simulation.state import Chosen, Reached, ServerState, Totals, WidthScore

TOTALS = Totals(
    down_bytes=2**53 + 1,
    up_bytes=7,
    train_flops=10**18,
    client_rounds=3,
    pruning_ratio_sum=0.1 + 0.2,
    simulated_s=1 / 3,
    primary=0.5,
    best_primary=None,
)


def state(round: int = 4) -> ServerState:
    generator = torch.Generator().manual_seed(round)
    params = {
        "0.weight": torch.randn(4, 3, generator=generator).t(),  # not contiguous
        "1.running_var": torch.tensor([1e-45, float("inf"), -0.0, float("nan")]),
        "1.num_batches_tracked": torch.tensor(2**40),
    }
    memory = {
        "ranking": torch.randn(9, generator=generator, dtype=torch.float64),
        "seen": torch.tensor([True, False, True]),
        "empty": torch.empty(0, 5),
    }
    return ServerState(round, params, memory, TOTALS)


def names_of(*rounds: int) -> list[str]:
    return [f"round_{round:06d}.safetensors" for round in rounds]


def test_a_state_comes_back_with_the_same_bits(tmp_path):
    before = state()
    after = checkpoint.load(checkpoint.save(before, tmp_path, keep=2))
    assert after.round == 4
    assert after.totals == TOTALS
    for saved, loaded in ((before.params, after.params), (before.memory, after.memory)):
        assert tensors.digest(loaded) == tensors.digest(saved)
        assert {key: (tensor.dtype, tensor.shape) for key, tensor in loaded.items()} == {
            key: (tensor.dtype, tensor.shape) for key, tensor in saved.items()
        }
    assert torch.equal(after.memory["ranking"], before.memory["ranking"])
    assert after.params["1.running_var"].isnan().tolist() == [False, False, False, True]


def test_a_checkpoint_of_an_earlier_version_names_its_scores_after_the_accuracy(tmp_path, monkeypatch):
    chosen = Chosen(3, 0.25, 0.125)
    reached = (Reached(0.5, 2, 1.0, 2, 3, 4.0),)
    further = {"test": {"accuracy": 0.75}}
    totals = replace(TOTALS, reached=reached, chosen=chosen, widths=(WidthScore(0.5, 1, 0.5, 1.0),), further=further)
    before = replace(state(), totals=totals)
    fields = checkpoint.asdict

    def earlier(value):
        text = json.dumps(fields(value))
        for name in ("best_primary", "validation_primary", "primary"):
            text = text.replace(f'"{name}"', f'"{name.replace("primary", "accuracy")}"')
        return json.loads(text)

    monkeypatch.setattr(checkpoint, "asdict", earlier)
    path = checkpoint.save(before, tmp_path, keep=2)
    monkeypatch.undo()
    assert b"best_accuracy" in path.path.read_bytes()
    assert b"primary" not in path.path.read_bytes()
    assert checkpoint.load(path).totals == totals


def test_a_state_without_memory_comes_back(tmp_path):
    before = ServerState(1, state().params)
    after = checkpoint.load(checkpoint.save(before, tmp_path, keep=2))
    assert after.memory == {}
    assert after.totals == Totals()


def test_tensors_that_share_their_storage_come_back(tmp_path):
    whole = torch.arange(6.0)
    before = ServerState(1, {"a": whole[:3], "b": whole[:3], "c": whole[3:]})
    after = checkpoint.load(checkpoint.save(before, tmp_path, keep=2))
    assert tensors.digest(after.params) == tensors.digest(before.params)


def test_it_is_one_file_that_safetensors_reads(tmp_path):
    path = checkpoint.save(state(), tmp_path, keep=2)
    assert [file.name for file in tmp_path.iterdir()] == ["round_000004.safetensors"]
    content = path.read()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert json.loads(header.pop("__metadata__")["raysim"])["round"] == 4
    assert all("data_offsets" in tensor for tensor in header.values())
    assert torch.equal(load_file(path)["params/0.weight"], state().params["0.weight"])


def test_only_the_newest_are_kept(tmp_path):
    for round in (1, 2, 9, 10, 11):
        checkpoint.save(state(round), tmp_path, keep=3)
    assert [path.name for path in checkpoint.saved_in(tmp_path)] == names_of(9, 10, 11)
    assert checkpoint.load(checkpoint.saved_in(tmp_path)[-1]).round == 11
    checkpoint.save(state(12), tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == names_of(12)


def test_an_unfinished_checkpoint_is_not_taken_for_one(tmp_path):
    checkpoint.save(state(1), tmp_path, keep=2)
    (tmp_path / ".round_000002.safetensors.partial").write_bytes(b"half")
    assert [path.name for path in checkpoint.saved_in(tmp_path)] == names_of(1)
    path = checkpoint.save(state(2), tmp_path, keep=2)
    assert [each.name for each in checkpoint.saved_in(tmp_path)] == names_of(1, 2)
    assert checkpoint.load(path).round == 2


def test_a_round_can_be_saved_again(tmp_path):
    checkpoint.save(ServerState(4, {"a": torch.zeros(2)}), tmp_path, keep=2)
    path = checkpoint.save(state(4), tmp_path, keep=2)
    assert tensors.digest(checkpoint.load(path).params) == tensors.digest(state(4).params)


def test_those_that_were_passed_over_do_not_push_out_what_is_written_anew(tmp_path):
    for round in (1, 2, 3, 4):
        checkpoint.save(state(round), tmp_path, keep=4)
    for torn in (3, 4):
        checkpoint.path_of(tmp_path, torn).write_bytes(b"")
    assert checkpoint.newest(tmp_path, lambda _: None).round == 2
    checkpoint.path_of(tmp_path, 2).remove()
    checkpoint.save(state(2), tmp_path, keep=2)
    assert [path.name for path in checkpoint.saved_in(tmp_path)] == names_of(1, 2)
    assert checkpoint.newest(tmp_path, print).round == 2


def test_one_that_is_there_and_cannot_be_read_is_not_passed_over(tmp_path):
    """A folder of its name stands for a disk or store that answers with an error: the file may be whole."""
    checkpoint.save(state(1), tmp_path, keep=3)
    checkpoint.path_of(tmp_path, 2).make()
    with pytest.raises(OSError, match="No such device"):
        checkpoint.newest(tmp_path, print)


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert checkpoint.saved_in(tmp_path) == []
    assert checkpoint.saved_in(tmp_path / "none") == []


def test_a_cut_or_missing_file_is_noticed(tmp_path):
    path = checkpoint.save(state(), tmp_path, keep=2)
    content = path.read()
    for length in (0, 5, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(TornCheckpointError, match="cannot be read"):
            checkpoint.load(path)
    path.remove()
    with pytest.raises(TornCheckpointError, match="cannot be read"):
        checkpoint.load(path)


@pytest.mark.parametrize("place", ["header", "tensors"])
def test_a_flipped_bit_is_noticed(tmp_path, place):
    path = checkpoint.save(state(), tmp_path, keep=2)
    content = bytearray(path.read())
    where = content.index(b"simulated_s") + 18 if place == "header" else len(content) - 1
    content[where] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(TornCheckpointError, match="does not have the digest"):
        checkpoint.load(path)


def test_a_whole_checkpoint_of_another_format_is_not_passed_over(tmp_path, monkeypatch):
    with monkeypatch.context() as older:
        older.setattr(checkpoint, "FORMAT", 3)
        saved = checkpoint.save(state(), tmp_path, keep=2)
    with pytest.raises(SettingError, match=f"format 3, this version of raysim reads {checkpoint.FORMAT}"):
        checkpoint.newest(tmp_path, pytest.fail)
    assert saved.is_file()


@pytest.mark.parametrize("header", [{}, {"raysim": "{}"}, {"raysim": "[]"}, {"raysim": '{"round": 4, "format": 5}'}])
def test_a_state_without_its_fields_is_noticed(tmp_path, header):
    path = checkpoint.path_of(tmp_path, 4)
    save_file({"params/a": torch.zeros(2)}, path.path, header)
    with pytest.raises(TornCheckpointError):
        checkpoint.load(path)


def test_the_newest_that_can_be_read_is_found_and_the_others_are_told(tmp_path):
    for round in (1, 2, 3):
        checkpoint.save(state(round), tmp_path, keep=3)
    told: list[str] = []
    assert checkpoint.newest(tmp_path, told.append).round == 3
    assert told == []
    newest, second, oldest = (checkpoint.path_of(tmp_path, round) for round in (3, 2, 1))
    newest.write_bytes(newest.read()[:-1])
    assert checkpoint.newest(tmp_path, told.append).round == 2
    second.write_bytes(b"")
    assert checkpoint.newest(tmp_path, told.append).round == 1
    assert [line.split(":")[0] for line in told] == [
        f"skipping the checkpoint of round {round}" for round in (3, 3, 2)
    ]
    oldest.remove()
    assert checkpoint.newest(tmp_path, told.append) is None
    assert checkpoint.newest(tmp_path / "none", told.append) is None


def test_parameters_are_saved_by_their_keys(tmp_path):
    checkpoint.save_params(state().params, tmp_path / "model.safetensors")
    assert tensors.digest(load_file(tmp_path / "model.safetensors")) == tensors.digest(state().params)
