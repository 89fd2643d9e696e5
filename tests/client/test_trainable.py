"""Models that PyTorch trains are trained, whole where they cannot be cut; others are refused in one line."""

import sys
from types import ModuleType

import pytest
import torch

from raysim.core.errors import SettingError
from raysim.core.tensors import digest
from raysim.executors.in_process import InProcessExecutor
from raysim.simulation.build import build_scenario
from raysim.simulation.round import run_round
from raysim.simulation.state import ServerState
from raysim.simulation.transition import initial_state
from tests import networks
from tests.conftest import settings_of


@pytest.fixture
def model(monkeypatch):
    """Let the settings name a network by `networks_of_test:build`."""
    module = ModuleType("networks_of_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def chosen(build) -> str:
        module.build = build
        return "model={name: 'networks_of_test:build', options: {}}"

    return chosen


def after_round(method: str, model: str, *others: str) -> ServerState:
    scenario = build_scenario(settings_of(method, model, *others))
    before = initial_state(scenario)
    state, _ = run_round(scenario, before, InProcessExecutor(scenario.workload))
    assert digest(state.params) != digest(before.params)
    assert all(torch.isfinite(tensor.double()).all() for tensor in state.params.values())
    return state


@pytest.mark.parametrize("build", networks.TRAINED.values(), ids=networks.TRAINED)
def test_a_model_that_pytorch_trains_is_trained_under_a_method_that_cuts(build, model):
    after_round("magnitude", model(build))


@pytest.mark.parametrize("method", ["fedavg", "ca-hfp", "heterofl", "autoflip"])
@pytest.mark.parametrize("name", ["weight norm", "looks at logits", "bare parameters"])
def test_methods_train_models_that_they_cannot_cut_or_count_without_values(name, method, model):
    after_round(method, model(networks.TRAINED[name]))


@pytest.mark.parametrize(("build", "reason"), networks.REFUSED.values(), ids=networks.REFUSED)
@pytest.mark.parametrize("method", ["fedavg", "magnitude"])
def test_a_model_that_cannot_be_trained_is_refused_in_one_line(build, reason, method, model):
    with pytest.raises(SettingError, match=r"^model\.name='networks_of_test:build'") as refused:
        build_scenario(settings_of(method, model(build)))
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 500
    assert "\n" not in str(refused.value)


def test_the_reason_names_the_layer_that_computes_its_weight(model):
    plan = build_scenario(settings_of("magnitude", model(networks.TRAINED["orthogonal"]))).workload.plan
    assert plan.unprunable == dict.fromkeys(("1", "3"), "layer '3' computes its weight from other tensors")


def test_the_reason_names_layers_that_the_tracer_does_not_know(model):
    plan = build_scenario(settings_of("magnitude", model(networks.Pairs))).workload.plan
    assert plan.groups == ()
    assert plan.unprunable == {"pairs": "layers of type Bilinear are not cut"}


def test_costs_that_need_values_are_those_of_the_same_layers_without(model):
    costs = [
        build_scenario(settings_of("fedavg", model(build))).costs.dense
        for build in (networks.Plain, networks.LooksAtLogits)
    ]
    assert costs[0].train_flops == costs[1].train_flops > 0
    assert costs[0].model_bytes == costs[1].model_bytes


def test_draws_of_an_evaluation_do_not_depend_on_what_was_drawn_before(model):
    scenario = build_scenario(settings_of("fedavg", model(networks.DrawsInEvaluation)))
    executor, params = InProcessExecutor(scenario.workload), initial_state(scenario).params
    first = executor.score(params, scenario.test_rows)
    before = torch.get_rng_state()
    torch.randn(7)
    again = executor.score(params, scenario.test_rows)
    assert (first.loss, first.terms) == (again.loss, again.terms)
    torch.set_rng_state(before)


def test_a_model_that_changes_its_input_computes_as_one_that_does_not(model):
    states = [after_round("magnitude", model(build)) for build in (networks.ChangesItsInput, networks.ShiftsItsInput)]
    assert digest(states[0].params) == digest(states[1].params)


def test_the_check_leaves_the_model_and_the_generator_as_they_were(model):
    built = networks.mean_of_all_batches()
    before = digest(dict(built.state_dict()))
    scenario = build_scenario(settings_of("fedavg", model(lambda: built)))
    state = torch.get_rng_state()
    assert digest(dict(scenario.workload.model.state_dict())) == before
    build_scenario(settings_of("fedavg", model(lambda: built)))
    assert torch.equal(torch.get_rng_state(), state)
