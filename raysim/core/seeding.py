"""Derive seeds from (experiment, purpose, round, client), so that no random number depends on the order of calls."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""Increment of SplitMix64's counter."""
FEISTEL_TURNS = 6


def derive_seed(seed: int, purpose: str, round: int = 0, client: int = 0) -> int:
    """Return the 63-bit seed of one purpose; equal arguments give equal seeds on every machine."""
    text = f"{seed}/{purpose}/{round}/{client}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, purpose: str, round: int = 0, client: int = 0) -> np.random.Generator:
    """Return a fresh NumPy generator for one purpose, round and client."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, purpose, round, client)))


def uniform(seed: int, purpose: str, round: int, clients: NDArray[np.int64], draws: int = 1) -> NDArray[np.float64]:
    """Return uniform numbers from (0, 1) for many clients at once, `(draws, clients)`.

    A client's numbers depend on (seed, purpose, round, client, draw) alone, not on other clients. They are outputs
    of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), whose state is a hash of these five.
    """
    key = np.uint64(derive_seed(seed, purpose, round))
    with np.errstate(over="ignore"):
        state = _mixed(key + clients.astype(np.uint64) * GOLDEN_GAMMA)
        counters = np.arange(1, draws + 1, dtype=np.uint64)[:, None] * GOLDEN_GAMMA
        bits = _mixed(state + counters) >> np.uint64(11)
    return (bits.astype(np.float64) + 0.5) * 2.0**-53


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def normal(seed: int, purpose: str, round: int, clients: NDArray[np.int64], draws: int = 1) -> NDArray[np.float64]:
    """Return standard normal numbers for many clients at once, `(draws, clients)` (Box and Muller, 1958)."""
    radius, angle = np.split(uniform(seed, purpose, round, clients, 2 * draws), 2)
    return np.asarray(np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle))


def choices(seed: int, purpose: str, clients: NDArray[np.int64], size: int, count: int) -> NDArray[np.int64]:
    """Return `count` different numbers below `size` for each of many clients at once, `(clients, count)`.

    They start a permutation that depends on (seed, purpose, client) alone: a Feistel network on the next power of
    two, applied again until the number is below `size` (Black and Rogaway, CT-RSA 2002).
    """
    bits = max(2, (size - 1).bit_length())
    low_bits = np.uint64(bits // 2)
    low, high = np.uint64((1 << bits // 2) - 1), np.uint64((1 << (bits - bits // 2)) - 1)

    def permuted(numbers: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = numbers >> low_bits, numbers & low
        for turn in range(FEISTEL_TURNS):
            keys = keys + GOLDEN_GAMMA
            if turn % 2:
                right = right ^ (_mixed(keys + left * GOLDEN_GAMMA) & low)
            else:
                left = left ^ (_mixed(keys + right * GOLDEN_GAMMA) & high)
        return (left << low_bits) | right

    with np.errstate(over="ignore"):
        keys = _mixed(np.uint64(derive_seed(seed, purpose)) + clients.astype(np.uint64) * GOLDEN_GAMMA)[:, None]
        found = permuted(np.arange(count, dtype=np.uint64)[None], keys)
        while len(outside := np.nonzero(found >= size)[0]):
            is_outside = found >= size
            found[is_outside] = permuted(found[is_outside], keys[outside, 0])
    return found.astype(np.int64)


@contextmanager
def torch_seeded(seed: int, purpose: str, round: int = 0, client: int = 0, device: str = "cpu") -> Iterator[None]:
    """Seed torch's default generators, which layers such as dropout use, and restore them afterwards."""
    if device != "cpu":
        with torch.random.fork_rng([torch.device(device)], device_type=torch.device(device).type):
            torch.manual_seed(derive_seed(seed, purpose, round, client))
            yield
        return
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(derive_seed(seed, purpose, round, client))
    try:
        yield
    finally:
        torch.set_rng_state(before)
