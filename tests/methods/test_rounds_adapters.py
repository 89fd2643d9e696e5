"""Methods that average adapters, against a slow round."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from raysim.core.errors import SettingError
from raysim.core.tensors import Params
from raysim.methods.low_rank import PRODUCT, split_average_product
from raysim.methods.table import METHODS
from raysim.server.fixed_point import ExactSum
from raysim.simulation.build import build_scenario
from tests.conftest import settings_of, tiny_settings
from tests.methods.slow_rounds import aggregate, agree, first, held_by, members, small_scenario, train
from tests.planned import state_after

ADAPTED = (
    "model.adapter={rank: 4, alpha: 8.0, targets: ['2', '6'], train_also: ['8']}",
    "training.learning_rate=0.5",
)
FACTORS = {f"{layer}.lora_A.default.weight": f"{layer}.lora_B.default.weight" for layer in ("2", "6")}


def products(params: Params) -> dict[str, np.ndarray]:
    """B A of each adapter; of a convolution over the flat filter."""
    return {
        down: params[up].double().flatten(1).numpy() @ params[down].double().flatten(1).numpy()
        for down, up in FACTORS.items()
    }


@pytest.mark.slow
def test_hetlora_weights_padded_factors_with_the_norms_of_their_products() -> None:
    scenario = small_scenario("hetlora", *ADAPTED)
    plan = scenario.workload.plan
    assert [group.name for group in plan.groups] == ["2.lora_A.default", "6.lora_A.default"]

    def play(round: int, params: Params, _: object) -> Params:
        cohort = members(scenario, round)
        held = [held_by(plan, first(plan, client.keep), params) for client in cohort]
        after = [train(scenario, params, c.id, round, h)[0] for c, h in zip(cohort, held, strict=True)]
        result = aggregate("global", params, [c.n for c in cohort], after, held)
        for down, up in FACTORS.items():
            norms = [float(np.linalg.norm(products(client)[down])) for client in after]
            for name in (down, up):
                padded = sum(norm * client[name].double() for norm, client in zip(norms, after, strict=True))
                covered = torch.stack([mask[name] for mask in held]).any(0)
                result[name] = torch.where(covered, (padded / sum(norms)).float(), params[name])
        return result

    agree(scenario, play, rounds=3)


@pytest.mark.slow
def test_flexlora_averages_products_and_splits_them_by_singular_values() -> None:
    scenario = small_scenario("flexlora", *ADAPTED)
    plan = scenario.workload.plan

    def play(round: int, params: Params, _: object) -> Params:
        cohort = members(scenario, round)
        held = [held_by(plan, first(plan, client.keep), params) for client in cohort]
        after = [train(scenario, params, c.id, round, h)[0] for c, h in zip(cohort, held, strict=True)]
        ns = [c.n for c in cohort]
        result = aggregate("global", params, ns, after, held)
        for down, up in FACTORS.items():
            mean = sum(n * products(client)[down] for n, client in zip(ns, after, strict=True)) / sum(ns)
            left, values, right = np.linalg.svd(mean, full_matrices=False)
            for rank in range(min(4, len(values))):
                sign = np.sign(right[rank][np.argmax(np.abs(right[rank]))])
                shape = params[down][rank].shape
                result[down][rank] = torch.from_numpy(sign * right[rank]).view(shape).float()
                shape = params[up][:, rank].shape
                result[up][:, rank] = torch.from_numpy(sign * values[rank] * left[:, rank]).view(shape).float()
        return result

    state = agree(scenario, play, rounds=3)
    for down in FACTORS:
        rows = state.params[down].flatten(1)
        torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["hetlora", "flexlora"])
def test_methods_of_adapters_need_some(method: str) -> None:
    with pytest.raises(SettingError, match=rf"method.name='{method}' is not allowed without model.adapter"):
        build_scenario(tiny_settings(f"method.name={method}"))


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].options.normalization == "batch"])
def test_ranks_are_cut_under_every_method_that_cuts_channels(method: str) -> None:
    settings = settings_of(method, "model.adapter={rank: 4, targets: ['2', '6']}")
    plan = build_scenario(settings).workload.plan
    assert {group.name: group.size for group in plan.groups if group.kind == "channel"} == {
        "2.lora_A.default": 4,
        "6.lora_A.default": 4,
    }


TOKENS = (
    "data.name=python-source", "data.options={length: 8}", "data.max_train_examples=60", "data.partition={name: iid}",
    "task.name=next-token", "rounds=3", "training.learning_rate=0.5",
    "model={name: transformer, options: {layers: 1, width: 8, heads: 2, hidden: 16},"
    " adapter: {rank: 4, targets: [tokens, '*.query']}}",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hetlora", "flexlora"])
def test_adapters_of_embeddings_are_averaged_alike(method: str) -> None:
    """An embedding's A is zero at first, B is drawn: the product is zero, and either factor may be."""
    scenario = build_scenario(settings_of(method, *TOKENS))
    down, up = "tokens.lora_embedding_A.default", "tokens.lora_embedding_B.default"
    assert scenario.workload.plan.groups[0].name == down
    before, after = scenario.workload.model.state_dict(), state_after(scenario, 2).params
    assert not before[down].any()
    assert after[down].any()
    assert not torch.equal(after[up], before[up])
    if method == "flexlora":
        torch.testing.assert_close(after[down] @ after[down].T, torch.eye(4), atol=1e-5, rtol=0)
        norms = after[up].norm(dim=0)
        assert torch.equal(norms.sort(descending=True).values, norms)


@pytest.mark.parametrize("zero", ["A", "B"])
def test_flexlora_keeps_factors_whose_product_is_zero(zero: str) -> None:
    scenario = build_scenario(tiny_settings("method.name=flexlora", *ADAPTED))
    params = dict(scenario.workload.model.state_dict())
    sums = {PRODUCT: ExactSum.zeros_like({f"{PRODUCT}{down}": torch.zeros(3, 3) for down in FACTORS})}
    view = SimpleNamespace(examples=np.array([5]))
    report = SimpleNamespace(view=view, contribution=SimpleNamespace(sums=sums))
    kept, _ = split_average_product(params, {}, report)
    assert all(
        kept[f"{layer}.lora_{zero}.default.weight"] is params[f"{layer}.lora_{zero}.default.weight"] for layer in "26"
    )
