"""How fast is a client's local training, against a plain PyTorch loop, and how much faster is a submodel?

With `--compare`, how much faster is it by what exists for speed alone, on a client of W1 (`configs/bench_w1.yaml`)?
Both sides first prove that they did the same work; only then are they timed, in turns. Prints one JSON line.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from benchmark import medians_in_turns, surroundings
from torch import nn

from raysim.client.assignments import Assignment, Assignments, Broadcast, LocalRules
from raysim.client.hooks import LocalHooks
from raysim.client.trainer import ClientTrainer
from raysim.client.training import LocalTraining, train
from raysim.client.view import Workload
from raysim.config import loader
from raysim.core import seeding
from raysim.core.tensors import Params, floating
from raysim.data import datasets
from raysim.data.batches import batch_slices
from raysim.data.partition import to_row_sets
from raysim.data.splits import DataSplits
from raysim.executors.ray.client_actor import keep_freed_memory
from raysim.models import zoo
from raysim.population import population, sampling
from raysim.population.profiles import DeviceProfile
from raysim.pruning import masks
from raysim.pruning.costs import CostTable
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.significance import first_channels
from raysim.server.fixed_point import ExactSum
from raysim.server.updates import ClientUpdates
from raysim.simulation.build import build_scenario

SEED, ROUND, CLIENT = 0, 1, 0
SMALL_CNN = LocalTraining(learning_rate=0.2, momentum=0.9, epochs=3, batch_size=16)
"""The local training of `jobs/configs/digits.yaml`, without clipping."""
DIGITS_ROWS = (200, 21)
"""Rows of the timed client: enough to time training itself, and the median client of `digits.yaml`."""
W1 = Path(__file__).parent / "configs" / "bench_w1.yaml"
SAME_WORK = 1e-4
"""Largest difference of two trained models, as a share of the update's norm: float sums in another order."""
VGG16 = LocalTraining(learning_rate=0.01, momentum=0.9, epochs=1, batch_size=64)
WIDTHS = {1.0: 15.120, 0.5: 3.950, 0.25: 1.123}
"""Millions of parameters of VGG16 with these shares of its filters (CA-HFP, arXiv 2603.12591, Table I)."""


def workload_of(data: DataSplits, model_name: str, rows: int, local: LocalTraining) -> Workload:
    """Return what is needed to train one client that owns the first rows, by plain FedAvg."""
    device = DeviceProfile("bench", flops_per_s=1.0, down_bytes_per_s=1.0, up_bytes_per_s=1.0)
    clients = population.build(sampling.listed([device]), to_row_sets([np.arange(rows)]), 0.0, SEED)
    model = zoo.build(model_name, {}, zoo.DataForm(data.input_shape, data.num_classes), SEED)
    plan = ChannelPlan.trace(model, data.test_rows(np.arange(2))[0], zoo.MODELS[model_name].keep_whole)
    return Workload(SEED, data, clients, model, plan, local)


def assignment_of(workload: Workload, keep_ratio: float) -> Assignment:
    """Return the client's assignment: train the first channels, score nothing."""
    mask = masks.keep_top(workload.plan, first_channels(workload.plan), keep_ratio)
    return Assignment(CLIENT, mask, keep_ratio, keep_ratio, workload.local.epochs, score_heldout=False, cost=0.0)


def train_once(trainer: ClientTrainer, workload: Workload, keep_ratio: float = 1.0) -> Callable[[], ClientUpdates]:
    """Return raysim's side: one client trained by the trainer."""
    assignment = assignment_of(workload, keep_ratio)
    broadcast = Broadcast(ROUND, dict(workload.model.state_dict()), LocalRules())
    return lambda: trainer.train(Assignments.of_rows([assignment]), broadcast)


def plain_loop(workload: Workload) -> Callable[[], Params]:
    """Return the floor: the same client in as little PyTorch as it takes, its inputs ready in memory."""
    form = zoo.DataForm(workload.data.input_shape, workload.data.num_classes)
    local, model = workload.local, zoo.build("cnn", {}, form, 1)
    images, labels = workload.data.train_rows(workload.population.train[CLIENT])
    inputs = cast("torch.Tensor", images)
    start = [tensor.clone() for tensor in workload.model.state_dict().values()]
    parameters = list(model.parameters())
    weights = [parameter.data for parameter in parameters]

    def train() -> Params:
        torch._foreach_copy_(weights, start)
        velocity = [torch.zeros_like(weight) for weight in weights]
        order = seeding.generator(SEED, "batches", ROUND, CLIENT)
        for _ in range(local.epochs):
            shuffled = torch.from_numpy(order.permutation(len(labels)))
            for batch in batch_slices(len(labels), local.batch_size):
                rows = shuffled[batch]
                loss = nn.functional.cross_entropy(model(inputs[rows]), labels[rows])
                gradients = torch.autograd.grad(loss, parameters)
                torch._foreach_mul_(velocity, local.momentum)
                torch._foreach_add_(velocity, gradients)
                torch._foreach_add_(weights, velocity, alpha=-local.learning_rate)
        return dict(model.state_dict())

    return train


def prove_same_update(workload: Workload, contribution: ClientUpdates, trained: Params) -> None:
    """Check that both sides changed every parameter alike, to the bit of the exact sum the client sends."""
    before = floating(workload.model.state_dict())
    expected = ExactSum.zeros_like(before)
    update = {key: trained[key].double() - before[key].double() for key in before}
    expected.add(update, {}, len(workload.population.train[CLIENT]))
    found = contribution.sums["update"]
    for key, total in expected.totals.items():
        difference = float((expected.value(key) - found.value(key)).abs().max())
        if not total.any() or difference:
            raise SystemExit(f"the two sides did not do the same work: {key} differs by {difference:.3g}")


def prove_widths(workload: Workload) -> None:
    """Check that the timed submodels have the sizes the paper prints."""
    costs = CostTable(workload.model, workload.plan, workload.data.input_shape)
    for keep_ratio, millions in WIDTHS.items():
        found = costs.of(assignment_of(workload, keep_ratio).mask).parameters / 1e6
        if round(found, 3) != millions:
            raise SystemExit(f"VGG16 at keep_ratio={keep_ratio} has {found:.3f} M parameters, not {millions:.3f} M")


def against_floor(rows: int, repeats: int) -> dict[str, float]:
    """Time one client of the digits experiment through raysim and through the plain loop."""
    workload = workload_of(datasets.load("digits", None, False, None, SEED), "cnn", rows, SMALL_CNN)
    raysim, floor = train_once(ClientTrainer(workload), workload), plain_loop(workload)
    prove_same_update(workload, raysim(), floor())
    seconds = medians_in_turns({"raysim": raysim, "floor": floor}, repeats)
    samples = rows * SMALL_CNN.epochs
    return {
        "rows": rows,
        "raysim_samples_per_s": samples / seconds["raysim"],
        "floor_samples_per_s": samples / seconds["floor"],
        "ratio_to_floor": seconds["floor"] / seconds["raysim"],
    }


def of_widths(batches: int, repeats: int) -> dict[str, float]:
    """Time one client with VGG16 at 32 x 32 pixels: dense, half and a quarter of the filters."""
    rows = batches * VGG16.batch_size
    workload = workload_of(noise_images(rows), "vgg16", rows, VGG16)
    prove_widths(workload)
    trainer = ClientTrainer(workload)
    sides = {f"{keep_ratio:g}": train_once(trainer, workload, keep_ratio) for keep_ratio in WIDTHS}
    for side in sides.values():
        side()
    seconds = medians_in_turns({**sides}, repeats)
    return {
        "rows": rows,
        "dense_samples_per_s": rows / seconds["1"],
        "seconds_ratio_keep_0.5": seconds["0.5"] / seconds["1"],
        "seconds_ratio_keep_0.25": seconds["0.25"] / seconds["1"],
    }


def noise_images(rows: int) -> DataSplits:
    """Return colour images of 32 x 32 pixels: what is on them does not change how long they take."""
    rng = seeding.generator(SEED, "bench images")
    images = rng.integers(0, 256, (rows, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(rows) % 10
    return DataSplits("noise", images, labels, images, labels, 10, 255, (0.5,) * 3, (0.3,) * 3)


def compare(what: str, repeats: int) -> dict[str, Any]:
    """Time a client of W1 with and without something that exists for speed alone.

    The seconds are CPU seconds, which other processes disturb less; the gain is the median over the repeats' ratios.
    """
    keep_freed_memory()  # as in an actor
    workload = build_scenario(loader.load(W1)).workload
    sides = {name: one_client(workload, *options) for name, options in COMPARED[what](workload.local).items()}
    difference = prove_close(workload, {name: side() for name, side in sides.items()})
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name in sorted(sides, reverse=repeat % 2 == 0):
            started = time.thread_time()
            sides[name]()
            seconds[name].append(time.thread_time() - started)
    ratios = [other / own for own, other in zip(seconds["with"], seconds["without"], strict=True)]
    return {
        "compare": what,
        "times_as_fast": statistics.median(ratios),
        **{f"{name}_s": statistics.median(measured) for name, measured in seconds.items()},
        "difference": difference,
    }


def one_client(workload: Workload, local: LocalTraining, hooks: LocalHooks) -> Callable[[], Params]:
    """Return what trains the client and returns the trained model's parameters."""
    inputs, labels = workload.data.train_rows(workload.population.train[CLIENT])
    model, start = copy.deepcopy(workload.model), dict(workload.model.state_dict())

    def trained() -> Params:
        model.load_state_dict(start)
        order = seeding.generator(SEED, "batches", ROUND, CLIENT)
        with seeding.torch_seeded(SEED, "layers", ROUND, CLIENT):
            train(model, inputs, labels, workload.task, local, local.learning_rate, order, hooks)
        return dict(model.state_dict())

    return trained


def prove_close(workload: Workload, trained: Mapping[str, Params]) -> float:
    """Check that both sides trained the same model; return their difference as a share of the update's norm."""
    start = workload.model.state_dict()
    moved = {
        name: torch.cat([(params[key] - start[key]).flatten() for key in start]) for name, params in trained.items()
    }
    difference = float((moved["with"] - moved["without"]).norm() / moved["without"].norm())
    if not difference < SAME_WORK:
        raise SystemExit(f"the two sides did not do the same work: they differ by {difference:.2g} of the update")
    return difference


COMPARED: dict[str, Callable[[LocalTraining], dict[str, tuple[LocalTraining, LocalHooks]]]] = {
    "fused-sgd": lambda local: {
        "with": (local, LocalHooks()),
        "without": (local, LocalHooks(observe=(lambda gradients: None,))),  # whoever observes needs the gradients
    },
    "channels-last": lambda local: {
        "with": (local, LocalHooks()),
        "without": (replace(local, memory_format="contiguous"), LocalHooks()),
    },
}


def main() -> None:
    """Run the benchmark and print its line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compare", choices=COMPARED, help="time W1's client with and without it, and nothing else")
    parser.add_argument("--repeats", type=int, default=25, help="repeats of the first part, 5 or more [25]")
    parser.add_argument("--quick", action="store_true", help="5 repeats, and one batch of VGG16 instead of four")
    arguments = parser.parse_args()
    repeats = 5 if arguments.quick else arguments.repeats
    if repeats < 5:
        parser.error(f"--repeats={repeats} is not allowed; allowed: 5 or more")

    torch.set_num_threads(1)
    if arguments.compare:
        print(json.dumps({**compare(arguments.compare, repeats), "repeats": repeats, **surroundings()}))
        return
    floors = [against_floor(rows, repeats) for rows in DIGITS_ROWS]
    widths = of_widths(1 if arguments.quick else 4, max(3, repeats // 5))
    result = {
        "ratio_to_floor": floors[0]["ratio_to_floor"],
        "ratio_to_floor_median_client": floors[1]["ratio_to_floor"],
        "seconds_ratio_keep_0.5": widths["seconds_ratio_keep_0.5"],
        "seconds_ratio_keep_0.25": widths["seconds_ratio_keep_0.25"],
        "repeats": {"digits": repeats, "vgg16": max(3, repeats // 5)},
        "digits": floors,
        "vgg16": widths,
        **surroundings(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
