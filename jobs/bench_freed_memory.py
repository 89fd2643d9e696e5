"""Measure the gain of a client actor that keeps the memory that training frees.

Two processes train the same client in turns; one of them has called `keep_freed_memory`, as client actors do. Both
first prove that they computed the same bits. Compared are CPU seconds, which include the kernel's work on page faults
and are not disturbed by other processes. Prints one JSON line with `--json`, else a table.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

import torch
from bench_training import VGG16, noise_images, train_once, workload_of
from benchmark import print_figures

from raysim.client.trainer import ClientTrainer
from raysim.core.tensors import digest
from raysim.executors.ray.client_actor import keep_freed_memory

MODELS = ("resnet32", "vgg16")
"""Trained on one batch of 64 images of 32 x 32 pixels."""


def serve(connection: Connection, model: str, keeps: bool) -> None:
    """Train once, then again at each request; answer with the CPU seconds and the page faults."""
    if keeps:
        keep_freed_memory()
    torch.set_num_threads(1)
    workload = workload_of(noise_images(VGG16.batch_size), model, VGG16.batch_size, VGG16)
    train = train_once(ClientTrainer(workload), workload)
    train()
    connection.send(digest(train().sums["update"].totals))
    while connection.recv():
        started, faults = time.process_time(), page_faults()
        train()
        connection.send((time.process_time() - started, page_faults() - faults))


def page_faults() -> int:
    """Return how often this process has needed a new page of memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def compare(model: str, repeats: int) -> dict[str, Any]:
    """Return medians of both sides, and the gain: CPU seconds without over CPU seconds with kept memory."""
    context, connections = multiprocessing.get_context("spawn"), dict[bool, Connection]()
    for keeps in (True, False):
        connections[keeps], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, model, keeps), daemon=True).start()
    digests = [connection.recv() for connection in connections.values()]
    if digests[0] != digests[1]:
        raise SystemExit(f"the two sides did not do the same work: their updates of {model} differ")
    found: dict[bool, list[tuple[float, int]]] = {True: [], False: []}
    for repeat in range(repeats):
        for keeps in (bool(repeat % 2), not repeat % 2):
            connections[keeps].send(True)
            found[keeps].append(connections[keeps].recv())
    for connection in connections.values():
        connection.send(False)
    seconds = {keeps: statistics.median(each for each, _ in found[keeps]) for keeps in found}
    return {
        f"{model}_gain": seconds[False] / seconds[True],
        f"{model}_page_faults": int(statistics.median(faults for _, faults in found[False])),
        f"{model}_page_faults_kept": int(statistics.median(faults for _, faults in found[True])),
    }


def main() -> None:
    """Compare both sides for each model and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)

    def measure(arguments: argparse.Namespace) -> dict[str, Any]:
        return {name: value for model in MODELS for name, value in compare(model, arguments.repeats).items()}

    print_figures(parser, measure)


if __name__ == "__main__":
    main()
