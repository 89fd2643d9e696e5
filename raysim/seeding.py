"""Seeds derived from (experiment, purpose, round, client); never a global generator."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, purpose: str, round: int = 0, client: int = 0) -> int:
    """Return the 63-bit seed of one purpose; equal arguments give equal seeds on every machine."""
    text = f"{seed}/{purpose}/{round}/{client}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, purpose: str, round: int = 0, client: int = 0) -> np.random.Generator:
    """Return a fresh NumPy generator for one purpose, round and client."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, purpose, round, client)))


@contextmanager
def torch_seeded(seed: int, purpose: str, round: int = 0, client: int = 0) -> Iterator[None]:
    """Seed torch's default generator, which layers such as dropout draw from, and put it back afterwards."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(derive_seed(seed, purpose, round, client))
    try:
        yield
    finally:
        torch.set_rng_state(before)
