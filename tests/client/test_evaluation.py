import pytest
import torch
from torch import nn

from raysim.client import evaluation
from raysim.task.table import TASKS


def test_counts_and_losses_equal_one_pass_over_all_rows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    inputs, labels = torch.randn(1203, 5), torch.randint(0, 3, (1203,))
    sums = evaluation.score(TASKS["classification"], model, inputs, labels)
    model.eval()
    logits = model(inputs).detach()
    assert sums.terms["accuracy"] == int((logits.argmax(1) == labels).sum())
    assert sums.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels, reduction="sum")), rel=1e-5)


def test_statistics_are_plain_means_over_the_batches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    batches = [torch.randn(10, 4) + k for k in range(3)]
    evaluation.estimate_statistics(model, batches)
    torch.testing.assert_close(model[0].running_mean, torch.stack([b.mean(0) for b in batches]).mean(0))
    torch.testing.assert_close(model[0].running_var, torch.stack([b.var(0) for b in batches]).mean(0))
    assert model[0].momentum == 0.1


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_models_are_scored_and_statistics_estimated_in_the_memory_format_of_training(memory_format: str) -> None:
    seen = []
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2))
    model[1].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].is_contiguous()))
    images, classes = torch.randn(6, 3, 5, 5), torch.zeros(6, dtype=torch.long)
    evaluation.score(TASKS["classification"], model, images, classes, memory_format=memory_format)
    evaluation.estimate_statistics(model, [images], memory_format)
    assert seen == [memory_format == "contiguous"] * 2
