"""How long does it take to cut a client's submodel and to put it back, against copying the parameters once?

Both are first proved right entry by entry; only then are they timed, in turns. Prints one JSON line.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from itertools import cycle

import torch
from benchmark import medians_in_turns, surroundings
from torch import nn
from torchvision import models as families

from raysim.core.tensors import Params
from raysim.models import zoo
from raysim.pruning import submodel
from raysim.pruning.masks import Mask
from raysim.pruning.plan import ChannelPlan

SEED = 0
KEEP_RATIO = 0.5
MASKS = 4
"""Clients of one width that take turns: skeletons are kept, masks differ."""
EXAMPLE = torch.zeros(2, 3, 32, 32)

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "vgg16": (lambda: zoo.build("vgg16", {}, zoo.DataForm((3, 32, 32), 10), SEED), zoo.MODELS["vgg16"].keep_whole),
    "resnet18": (lambda: families.resnet18(num_classes=10), ()),
    "mobilenet_v3_large": (lambda: families.mobilenet_v3_large(num_classes=10), ()),
}


def extract(cache: submodel.SubmodelCache, plan: ChannelPlan, params: Params, mask: Mask) -> nn.Module:
    """Cut as the engine does: a client's tensors into the skeleton of its width."""
    cut = submodel.cut_for(plan, mask)
    module = cache.module_for(mask, cut)
    submodel.extract_params(params, cut, out=dict(module.state_dict()))
    return module


def prove(plan: ChannelPlan, cache: submodel.SubmodelCache, params: Params, mask: Mask) -> None:
    """Check both ways against the plan's own definition of what a submodel holds, one slot at a time."""
    held = {key: torch.ones(tensor.shape, dtype=torch.bool) for key, tensor in params.items()}
    for group, slot in plan.slots():
        dropped = slot.indices[~mask.kept[plan.units[group.name]]]
        held[slot.key].index_fill_(slot.dim, torch.from_numpy(dropped.ravel()), False)
    compact = extract(cache, plan, params, mask).state_dict()
    if not any(tensor.numel() < params[key].numel() for key, tensor in compact.items()):
        raise SystemExit("nothing was cut")
    doubled = {key: tensor * 2 for key, tensor in compact.items()}
    out = submodel.reconstruct(
        doubled, submodel.cut_for(plan, mask), params, {k: t.clone() for k, t in params.items()}
    )
    for key, tensor in params.items():
        if not torch.equal(compact[key].flatten(), tensor[held[key]]):
            raise SystemExit(f"{key} was not cut right")
        if not torch.equal(out[key], torch.where(held[key], tensor * 2, tensor)):
            raise SystemExit(f"{key} was not put back right")


def measure(name: str, repeats: int) -> dict[str, float]:
    """Time one model: seconds to cut and to put back at half width, and to copy all parameters once."""
    build, keep_whole = MODELS[name]
    torch.manual_seed(SEED)
    model = build()
    started = time.perf_counter()
    plan = ChannelPlan.trace(model, EXAMPLE, keep_whole)
    trace_s = time.perf_counter() - started
    params, masks = dict(model.state_dict()), [plan.random_mask(KEEP_RATIO, seed) for seed in range(MASKS)]
    cache = submodel.SubmodelCache(model, plan)
    prove(plan, cache, params, masks[0])

    copies = {key: tensor.clone() for key, tensor in params.items()}
    turns = {side: cycle(masks) for side in ("extract", "reconstruct")}
    compact = {key: tensor.clone() for key, tensor in extract(cache, plan, params, masks[0]).state_dict().items()}
    full = {key: tensor.clone() for key, tensor in params.items()}
    seconds = medians_in_turns(
        {
            "copy": lambda: torch._foreach_copy_(list(copies.values()), list(params.values())),
            "extract": lambda: extract(cache, plan, params, next(turns["extract"])),
            "reconstruct": lambda: put_back(plan, compact, params, full, turns["reconstruct"]),
        },
        repeats,
    )
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "kept_parameters": sum(parameter.numel() for parameter in cache.module_for(masks[0], {}).parameters()),
        "trace_s": trace_s,
        **{f"{side}_s": taken for side, taken in seconds.items()},
        "extract_ratio_to_copy": seconds["extract"] / seconds["copy"],
        "reconstruct_ratio_to_copy": seconds["reconstruct"] / seconds["copy"],
    }


def put_back(plan: ChannelPlan, compact: Params, params: Params, full: Params, masks: Iterator[Mask]) -> Params:
    """Put back as the engine does: into existing tensors."""
    return submodel.reconstruct(compact, submodel.cut_for(plan, next(masks)), params, full)


def main() -> None:
    """Run the benchmark and print its line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=25, help="repeats, 5 or more [25]")
    parser.add_argument("--quick", action="store_true", help="5 repeats")
    arguments = parser.parse_args()
    repeats = 5 if arguments.quick else arguments.repeats
    if repeats < 5:
        parser.error(f"--repeats={repeats} is not allowed; allowed: 5 or more")

    torch.set_num_threads(1)
    measured = {name: measure(name, repeats) for name in MODELS}
    print(json.dumps({"keep_ratio": KEEP_RATIO, "repeats": repeats, "models": measured, **surroundings()}))


if __name__ == "__main__":
    main()
