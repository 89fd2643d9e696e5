"""Where clients are trained, and how precisely."""

import pytest
import torch

from raysim.client.trainer import ClientTrainer
from raysim.core import tensors
from raysim.core.errors import SettingError
from raysim.server.updates import ClientUpdates
from raysim.simulation.build import build_scenario, check_names
from tests.conftest import tiny_settings
from tests.planned import plan_round


def trained(*overrides: str) -> ClientUpdates:
    scenario = build_scenario(tiny_settings(*overrides))
    planned = plan_round(scenario)
    return ClientTrainer(scenario.workload).train(planned.assignments, planned.broadcast)


def changes(contribution: ClientUpdates) -> torch.Tensor:
    sums = contribution.sums["update"]
    return torch.cat([sums.value(key).flatten() for key in sums.totals])


@pytest.mark.slow
def test_bf16_rounds_what_layers_compute_and_keeps_weights_in_float32() -> None:
    plain, rounded = trained(), trained("training.precision=bf16")
    apart = float((changes(plain) - changes(rounded)).norm() / changes(plain).norm())
    assert 1e-4 < apart < 0.3
    assert tensors.digest(rounded.sums["update"].totals) == tensors.digest(
        trained("training.precision=bf16").sums["update"].totals
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(SettingError, match=r"executor.device='cuda' is not allowed.*allowed: cpu"):
        check_names(tiny_settings("executor.device=cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_what_the_cpu_trains() -> None:
    plain, other = trained(), trained("executor.device=cuda")
    assert float((changes(plain) - changes(other)).norm() / changes(plain).norm()) < 1e-2
