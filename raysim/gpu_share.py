"""How much of a GPU a client actor needs, measured where its largest client trains."""

from math import ceil

import numpy as np
import torch

from raysim import evaluation
from raysim.client_step import Stage
from raysim.packing import packed
from raysim.tasks import Tasks
from raysim.types import Broadcast, ClientTask, LocalRules, Mask

MARGIN = 1.25
"""Memory that is reserved over memory that was measured: methods keep more than plain training does."""


def needed_share(used_bytes: int, total_bytes: int) -> float:
    """Return the share of a GPU that an actor takes, in hundredths, rounded up; at most all of it.

    >>> needed_share(1_000_000_000, 80_000_000_000), needed_share(70, 80)
    (0.02, 1.0)
    """
    return min(1.0, ceil(100 * MARGIN * used_bytes / total_bytes) / 100)


def measured(stage: Stage, pack_size: int) -> float:
    """Train those clients with the most rows on the full model, on a GPU of their own; return the share needed.

    What counts is all that is taken of the GPU afterwards: PyTorch keeps what it has had, and its context is part
    of it.
    """
    workload = stage.workload
    counts = workload.population.train.counts
    mask = Mask(np.ones(workload.plan.num_units, dtype=np.bool_))
    largest = np.argpartition(-counts, min(pack_size, len(counts)) - 1)[:pack_size]
    tasks = Tasks.of_rows([ClientTask(int(client), mask, 1.0, 1.0, 1, True, 1.0) for client in np.sort(largest)])
    tasks = packed(tasks, counts[tasks.clients], workload.local.batch_size, pack_size)
    params = dict(workload.model.state_dict())
    stage.train(tasks, Broadcast(1, params, LocalRules()))
    stage.score(params, np.arange(min(evaluation.BATCH, len(workload.data.test_labels))))
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    return needed_share(total_bytes - free_bytes, total_bytes)
