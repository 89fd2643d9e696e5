"""A search for channel groups ends after a number of steps and gives the reason; its limit needs no clock."""

import pytest
import torch
import torchvision
from torch import nn

from raysim.core.errors import SettingError, UntraceableError
from raysim.pruning import step_limit
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.step_limit import StepCounter, StepLimitError
from tests.oracles import BranchNet


@pytest.mark.slow
def test_a_search_that_never_ends_is_ended_with_the_layer_and_the_reason() -> None:
    swin = torchvision.models.swin_t(num_classes=10)
    with pytest.raises(UntraceableError, match=r"cannot be traced at layer 'features.*': its reshapes repeat"):
        ChannelPlan.trace(swin, torch.randn(2, 3, 32, 32))


def test_a_search_ends_at_its_number_of_steps_whatever_the_machine_does() -> None:
    model, example = BranchNet(), torch.randn(2, 3, 8, 8)
    enough = next(steps for steps in range(1, 1000) if has_plan(model, example, steps))
    assert [has_plan(model, example, steps) for steps in (enough - 1, enough, enough + 1)] == [False, True, True]
    with pytest.raises(UntraceableError, match=rf"takes more than max_steps={enough - 1} steps"):
        ChannelPlan.trace(model, example, max_steps=enough - 1)


def has_plan(model: nn.Module, example: torch.Tensor, max_steps: int) -> bool:
    try:
        return bool(ChannelPlan.trace(model, example, max_steps=max_steps).groups)
    except UntraceableError:
        return False


@pytest.mark.parametrize("max_steps", [0, -1, 1.5, True, "many"])
def test_a_limit_that_is_no_count_is_refused(max_steps) -> None:
    with pytest.raises(SettingError, match=r"max_steps=.* is not a whole number above 0"):
        ChannelPlan.trace(BranchNet(), torch.randn(2, 3, 8, 8), max_steps=max_steps)


def test_every_index_is_a_step_and_lists_have_a_longest() -> None:
    counter = StepCounter(max_steps=10, max_entries=5)
    counter.add([0] * 4)
    counter.add([0] * 4)
    with pytest.raises(StepLimitError, match="more than max_steps=10"):
        counter.add([])
    with pytest.raises(StepLimitError, match="repeat channel indices"):
        StepCounter(max_steps=100, max_entries=5).add([0] * 6)


def test_a_long_search_warns_once(capsys, monkeypatch) -> None:
    monkeypatch.setattr(step_limit, "WARN_AFTER_S", 0.0)
    counter = StepCounter(max_steps=10, max_entries=5)
    counter.add([])
    counter.add([])
    assert capsys.readouterr().err.count("smaller example inputs are traced faster") == 1


def test_tracing_uses_one_thread_and_puts_the_setting_back() -> None:
    before, used = torch.get_num_threads(), []

    def forward(model: nn.Module, example: torch.Tensor) -> torch.Tensor:
        used.append(torch.get_num_threads())
        return model(example)

    torch.set_num_threads(2)
    try:
        ChannelPlan.trace(BranchNet(), torch.randn(2, 3, 8, 8), forward=forward)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(used) == {1}
