"""Updates that wait until several of them are added at once."""

import numpy as np
import pytest
import torch

from raysim.client import pending
from raysim.client.assignments import Assignments, Broadcast
from raysim.client.pending import PendingUpdates
from raysim.client.trainer import ClientTrainer
from raysim.client.view import ClientView
from raysim.core import tensors
from raysim.core.errors import RunFailedError
from raysim.core.tensors import Params
from raysim.server.updates import ClientUpdates, merge
from raysim.simulation.build import build_scenario
from raysim.simulation.scenario import Scenario
from tests.conftest import tiny_settings
from tests.planned import plan_round

CLIENTS = 6
NORMALIZED = ("model.name=convnet", "model.options={channels: [4, 6], hidden: 8, norm: batch}")
MODELS = {
    "plain": (),
    "BatchNorm": NORMALIZED,
    "static": (*NORMALIZED, "method.normalization=static"),
    "cut for some": ("method.name=magnitude",),
}


def planned(*overrides: str) -> tuple[Scenario, Assignments, Broadcast]:
    settings = ("method.name=fedavg", "training.pack=1", f"selection.clients_per_round={CLIENTS}")
    scenario = build_scenario(tiny_settings(*settings, "evaluation.client_share=1.0", *overrides))
    round = plan_round(scenario)
    return scenario, round.assignments, round.broadcast


def spoil(view: ClientView) -> None:
    """Make a client's update infinite."""
    with torch.no_grad():
        next(view.model.parameters()).view(-1)[0] = torch.inf


def failure_of(
    monkeypatch, scenario: Scenario, assignments: Assignments, broadcast: Broadcast, add
) -> RunFailedError:
    """Return the error of a chunk whose updates wait by another function."""
    monkeypatch.setattr(PendingUpdates, "add", add)
    with pytest.raises(RunFailedError, match="diverged") as error:
        ClientTrainer(scenario.workload).train(assignments, broadcast)
    return error.value


def found(updates: ClientUpdates) -> tuple[str, list[float], list[float]]:
    losses, accuracies = updates.clients["train_loss"], np.nan_to_num(updates.clients["accuracy"])
    return tensors.digest(updates.sums["update"].totals), losses.tolist(), accuracies.tolist()


@pytest.mark.parametrize("model", MODELS)
def test_clients_that_wait_give_the_bits_of_clients_alone(model: str, monkeypatch) -> None:
    scenario, assignments, broadcast = planned(*MODELS[model])
    added = []
    add = PendingUpdates.add
    monkeypatch.setattr(PendingUpdates, "add", lambda self, *values: added.append(values) or add(self, *values))
    trainer = ClientTrainer(scenario.workload)
    together = [found(trainer.train(assignments, broadcast)) for _ in range(2)]
    whole = int(assignments.masks.kept.all(axis=1).sum())
    assert len(added) == 2 * whole > 0
    monkeypatch.setattr(pending, "MOST_BYTES", 0)
    alone = [trainer.train(assignments.take(np.array([index])), broadcast) for index in range(CLIENTS)]
    assert together == [found(merge(alone))] * 2


@pytest.mark.parametrize("victim", range(CLIENTS))
def test_a_client_that_waits_with_an_update_that_is_not_finite_is_named(victim: int, monkeypatch) -> None:
    add = PendingUpdates.add

    def add_spoiled(self: PendingUpdates, view: ClientView, trained: Params) -> None:
        if view.assignment.client == victim:
            spoil(view)
        add(self, view, trained)

    assert failure_of(monkeypatch, *planned(), add_spoiled).client == victim


def test_of_two_clients_that_fail_the_first_is_named(monkeypatch) -> None:
    """The first waits with an update that is not finite, when the second one fails in another way."""
    add, spoiled = PendingUpdates.add, []

    def add_or_fail(self: PendingUpdates, view: ClientView, trained: Params) -> None:
        if spoiled:
            raise RunFailedError(1, view.assignment.client, "another failure")
        spoiled.append(view.assignment.client)
        spoil(view)
        add(self, view, trained)

    assert failure_of(monkeypatch, *planned(), add_or_fail).client == spoiled[0]
