"""Convert tensors to NumPy arrays and back, and hash them."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Params = dict[str, torch.Tensor]
"""Parameters and buffers of a model by state-dict key."""
Columns = dict[str, NDArray[Any]]
"""A table as equally long one-dimensional arrays by column name."""


def floating(params: Params) -> Params:
    """Return the tensors of floating-point numbers; the others, such as BatchNorm's counts, are not averaged."""
    return {key: tensor for key, tensor in params.items() if tensor.is_floating_point()}


def frozen_keys(model: nn.Module) -> frozenset[str]:
    """Return the keys of the floating-point parameters that are not trained; a shared one has several."""
    named = model.named_parameters(remove_duplicate=False)
    return frozenset(name for name, value in named if value.is_floating_point() and not value.requires_grad)


def as_arrays(params: Params) -> dict[str, NDArray[np.generic]]:
    """Return NumPy views of tensors."""
    return {key: tensor.detach().numpy() for key, tensor in params.items()}


def as_tensors(arrays: Mapping[str, NDArray[np.generic]]) -> Params:
    """Return tensors that share memory with arrays; do not write to those of read-only arrays."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return {key: torch.from_numpy(array) for key, array in arrays.items()}


def digest(params: Params) -> str:
    """Return the SHA-256 of all keys in ascending order, each with dtype, shape and bytes."""
    sha = hashlib.sha256()
    for key in sorted(params):
        tensor = params[key].detach().cpu().contiguous()
        sha.update(f"{key}|{str(tensor.dtype).removeprefix('torch.')}|{tuple(tensor.shape)}|".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, as an actor with one CPU does, so that sums have the same order everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
