"""Seeds derived from (experiment, purpose, round, client); never a global generator."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray


def derive_seed(seed: int, purpose: str, round: int = 0, client: int = 0) -> int:
    """Return the 63-bit seed of one purpose; equal arguments give equal seeds on every machine."""
    text = f"{seed}/{purpose}/{round}/{client}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, purpose: str, round: int = 0, client: int = 0) -> np.random.Generator:
    """Return a fresh NumPy generator for one purpose, round and client."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, purpose, round, client)))


def uniform(seed: int, purpose: str, round: int, clients: NDArray[np.int64], draws: int = 1) -> NDArray[np.float64]:
    """Return numbers drawn uniformly from (0, 1) for many clients at once, `(draws, clients)`.

    A client's numbers depend on (seed, purpose, round, client, draw) alone, not on who else is asked. They are
    outputs of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), whose state is a hash of those five.
    """
    key = np.uint64(derive_seed(seed, purpose, round))
    with np.errstate(over="ignore"):
        state = _mixed(key + clients.astype(np.uint64) * GOLDEN_GAMMA)
        counters = np.arange(1, draws + 1, dtype=np.uint64)[:, None] * GOLDEN_GAMMA
        bits = _mixed(state + counters) >> np.uint64(11)
    return (bits.astype(np.float64) + 0.5) * 2.0**-53


GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


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

    They are the first places of a permutation that depends on (seed, purpose, client) alone: a Feistel network of
    four rounds on the next power of four, walked on until the number is below `size` (Black and Rogaway, 2002).
    """
    half = np.uint64(max(1, (max(1, size - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    with np.errstate(over="ignore"):
        keys = _mixed(np.uint64(derive_seed(seed, purpose)) + clients.astype(np.uint64) * GOLDEN_GAMMA)[:, None]

        def permuted(numbers: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
            left, right = numbers >> half, numbers & low
            for turn in range(4):
                drawn = _mixed(keys + (right + np.uint64(turn << 32)) * GOLDEN_GAMMA)
                left, right = right, left ^ (drawn & low)
            return (left << half) | right

        found = permuted(np.arange(count, dtype=np.uint64)[None], keys)
        while (outside := found >= size).any():
            found[outside] = permuted(found[outside], np.broadcast_to(keys, found.shape)[outside])
    return found.astype(np.int64)


@contextmanager
def torch_seeded(
    seed: int, purpose: str, round: int = 0, client: int = 0, device: str = "cpu"
) -> Iterator[None]:  # fmt: skip
    """Seed torch's default generators, which layers such as dropout draw from, and put them back afterwards."""
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
