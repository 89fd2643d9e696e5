from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from raysim.client.assignments import Assignments
from raysim.client.packing import MOST_CLIENTS, MOST_ENTRIES, obstacle, pack_size, packed
from raysim.client.trainer import ClientTrainer
from raysim.core import tensors
from raysim.core.errors import RunFailedError, SettingError
from raysim.server.updates import merge
from raysim.simulation.assignments import assign
from raysim.simulation.build import build_scenario
from raysim.simulation.planning import plan_round as plan
from raysim.simulation.transition import initial_state
from tests.conftest import tiny_settings
from tests.planned import plan_round

MLP = ("model.name=mlp", "model.options={hidden: [12]}", "method.name=fedavg", "training.batch_size=8")
LINEAR = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def group(*overrides: str):
    """Scenario, assignments and broadcast of a round of 12 clients, who own between 15 and 40 rows."""
    clients = ("population.clients=40", "selection.clients_per_round=12", "evaluation.client_share=0.5")
    scenario = build_scenario(tiny_settings(*MLP, *clients, *overrides))
    state = initial_state(scenario)
    return scenario, *assign(scenario, state, plan(scenario, state).ended[0].counted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("training.momentum=0.0", "training.epochs=2"),
        ("training.weight_decay=0.1", "training.clip_norm=0.3"),
        ("training.optimizer=adam", "training.learning_rate=0.01"),
        ("training.optimizer=adamw", "training.weight_decay=0.1", "training.learning_rate=0.01"),
        ("training.nesterov=true", "training.schedule={name: cosine, warmup: 1}"),
        ("training.class_weights=[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]",),
        ("training.class_weights=balanced", "training.label_smoothing=0.2"),
        ("method.name=magnitude",),
    ],
    ids=["momentum", "epochs", "decay and clipping", "adam", "adamw", "nesterov", "weighted", "smoothed", "cut"],
)
def test_clients_trained_together_end_where_they_would_by_themselves(overrides: tuple[str, ...]) -> None:
    scenario, assignments, broadcast = group(*overrides, "training.pack=8")
    assert (assignments.packs != Assignments.ALONE).sum() >= 5
    together = ClientTrainer(scenario.workload).train(assignments, broadcast)
    alone = ClientTrainer(scenario.workload).train(
        replace(assignments, packs=np.full(len(assignments), Assignments.ALONE)), broadcast
    )
    for key, total in alone.sums["update"].totals.items():
        assert total.any()
        torch.testing.assert_close(
            together.sums["update"].value(key), alone.sums["update"].value(key), rtol=1e-4, atol=1e-4
        )
    for name, column in alone.clients.items():
        np.testing.assert_allclose(together.clients[name], column, rtol=1e-4, atol=1e-6, err_msg=name)
    assert np.isfinite(together.clients["accuracy"]).sum() == round(len(assignments) / 2)


def test_who_trains_with_whom_does_not_depend_on_chunks() -> None:
    scenario, assignments, broadcast = group()
    assert scenario.pack_size == 3
    whole = ClientTrainer(scenario.workload).train(assignments, broadcast)
    for shares in ([0.5, 0.5], [0.2] * 5):
        pieces = merge(
            [ClientTrainer(scenario.workload).train(chunk, broadcast) for chunk in assignments.chunks(shares)]
        )
        assert tensors.digest(pieces.sums["update"].totals) == tensors.digest(whole.sums["update"].totals)
        assert np.array_equal(pieces.clients["train_loss"], whole.clients["train_loss"])


def test_packs_are_of_one_mask_and_one_number_of_steps_and_no_larger_than_allowed() -> None:
    scenario, assignments, _ = group("method.name=magnitude")
    examples = scenario.workload.population.train.counts_of(assignments.clients)
    assignments = packed(assignments, examples, 8, size=3)
    assert (assignments.packs == Assignments.ALONE).any()
    assert len(set(assignments.masks.mask_of)) > 1
    for pack in set(assignments.packs.tolist()) - {Assignments.ALONE}:
        members = np.flatnonzero(assignments.packs == pack)
        assert 2 <= len(members) <= 3
        assert len(set(assignments.masks.mask_of[members])) == len(set(-(-examples[members] // 8))) == 1


def test_a_client_that_diverges_in_a_pack_is_named() -> None:
    scenario, assignments, broadcast = group("training.learning_rate=1e30")
    with pytest.raises(RunFailedError, match="diverged") as error:
        ClientTrainer(scenario.workload).train(assignments, broadcast)
    assert error.value.client in assignments.clients.tolist()


def test_a_client_that_raises_in_a_pack_is_named() -> None:
    scenario, assignments, broadcast = group()
    whole = np.flatnonzero(assignments.packs == assignments.packs.max())
    bad = int(assignments.clients[whole[-1]])
    labels = scenario.workload.data.train_targets.copy()
    labels[scenario.workload.population.train[bad][0]] = 99
    data = replace(scenario.workload.data, train_targets=labels)
    with pytest.raises(RunFailedError, match="IndexError") as error:
        ClientTrainer(replace(scenario.workload, data=data)).train(assignments, broadcast)
    assert error.value.client == bad


def test_large_clients_make_small_packs() -> None:
    assert pack_size("auto", LINEAR, 500, row_entries=2**20) <= 4


class Doubling(nn.Module):
    def forward(self, inputs):
        return inputs * 2


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10)), "Dropout"),
        (nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10)), "buffers"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10)), "Conv2d"),
        (nn.Sequential(nn.Flatten(), Doubling(), nn.Linear(64, 10)), "Doubling"),
    ],
)
def test_models_that_draw_remember_or_convolve_are_trained_by_themselves(model: nn.Module, reason: str) -> None:
    assert obstacle(LINEAR) is None
    assert reason in str(obstacle(model, convolutions=False))
    assert pack_size("auto", model, 500) == 1
    if reason != "Conv2d":
        with pytest.raises(SettingError, match=r"training.pack=4.*allowed: auto, 1"):
            pack_size(4, model, 500)


def test_auto_cuts_a_cohort_into_packs_that_keep_actors_busy_and_fit_into_memory() -> None:
    assert pack_size("auto", LINEAR, 500) == 125
    assert pack_size("auto", LINEAR, 3) == 1
    assert pack_size("auto", LINEAR, 10_000) <= MOST_CLIENTS
    large = nn.Sequential(nn.Flatten(), nn.Linear(2000, 1000))
    assert pack_size("auto", large, 500) * 2_001_000 <= 2 * MOST_ENTRIES


def test_channels_last_is_that_of_single_models() -> None:
    assert build_scenario(tiny_settings(*MLP, "training.memory_format=channels_last")).pack_size == 1


def test_a_method_that_asks_more_of_clients_is_not_packed() -> None:
    assert build_scenario(tiny_settings(*MLP, "method.name=fedprox")).pack_size == 1
    with pytest.raises(SettingError, match=r"training.pack=4.*fedprox"):
        build_scenario(tiny_settings(*MLP, "method.name=fedprox", "training.pack=4"))
    planned = plan_round(build_scenario(tiny_settings(*MLP, "method.name=fedprox")))
    assert planned.assignments.packs.max() == Assignments.ALONE
