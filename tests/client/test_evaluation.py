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
