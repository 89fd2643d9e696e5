"""Convert work in flight to tensors and back, for checkpoints."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch

from raysim.clock import outcomes
from raysim.clock.timing import CohortLoad, CohortTiming
from raysim.clock.work import Cohort, Work
from raysim.core.tensors import Columns, Params
from raysim.pruning.masks import CohortMasks, Mask

NUMBERS = tuple(field.name for field in fields(Cohort) if field.name not in ("round", "limited_by"))


def tensors_of(works: Sequence[Work]) -> Params:
    """Return the numbers of work in flight, keyed by `<round>/<name>`."""
    return {f"{work.cohort.round}/{name}": tensor for work in works for name, tensor in _tensors_of_one(work).items()}


def reasons_of(works: Sequence[Work]) -> dict[str, list[str]]:
    """Return what limits the clients' budgets, by round."""
    return {str(work.cohort.round): work.cohort.limited_by.tolist() for work in works}


def works_from(tensors: Params, reasons: dict[str, list[str]]) -> tuple[Work, ...]:
    """Return the work that `tensors_of` and `reasons_of` describe, oldest first."""
    works = []
    for round, limited_by in sorted(reasons.items(), key=lambda item: int(item[0])):
        prefix = f"{round}/"
        own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        works.append(_one_from(own, int(round), limited_by))
    return tuple(works)


def _tensors_of_one(work: Work) -> Params:
    numbers = {name: getattr(work.cohort, name) for name in NUMBERS}
    numbers |= {f"load.{name}": getattr(work.load, name) for name in CohortLoad.__slots__}
    numbers |= {f"timing.{name}": getattr(work.timing, name) for name in CohortTiming.__slots__}
    numbers |= {"start_s": work.start_s, "lasts_s": work.duration_s}
    numbers["fates"] = np.array([outcomes.ALL.index(outcome) for outcome in work.outcomes], dtype=np.int64)
    numbers["mask_of"] = work.masks.mask_of
    numbers["kept"] = np.stack([mask.kept for mask in work.masks.distinct])
    for index, mask in enumerate(work.masks.distinct):
        numbers |= {f"elements.{index}.{key}": packed for key, packed in mask.elements.items()}
    return {name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in numbers.items()}


def _one_from(tensors: Params, round: int, limited_by: list[str]) -> Work:
    columns = {name: tensor.numpy() for name, tensor in tensors.items()}
    masks = [Mask(kept, _elements_of(columns, index)) for index, kept in enumerate(columns["kept"])]
    return Work(
        Cohort(round, **{name: columns[name] for name in NUMBERS}, limited_by=np.array(limited_by)),
        CohortMasks(tuple(masks), columns["mask_of"]),
        CohortLoad(*(columns[f"load.{name}"] for name in CohortLoad.__slots__)),
        CohortTiming(*(columns[f"timing.{name}"] for name in CohortTiming.__slots__)),
        columns["start_s"],
        columns["lasts_s"],
        np.array(outcomes.ALL, dtype=outcomes.DTYPE)[columns["fates"]],
    )


def _elements_of(columns: Columns, index: int) -> Columns:
    prefix = f"elements.{index}."
    return {name.removeprefix(prefix): packed for name, packed in columns.items() if name.startswith(prefix)}
