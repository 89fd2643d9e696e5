"""The population: all clients with their devices and rows, as columns."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysim.core import seeding
from raysim.data.partition import to_row_sets
from raysim.data.resample import DrawnRows
from raysim.data.row_sets import ClientRows, RowSets
from raysim.population.profiles import FIGURES, DeviceProfile, Devices


@dataclass(frozen=True, slots=True)
class Client:
    """One client: its id, its device, and the numbers of its training and held-out rows.

    `keep_ratio` is the largest share of channels that its device trains.
    """

    id: int
    device: DeviceProfile
    keep_ratio: float
    examples: int
    heldout: int


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """All clients as columns, so that no object per client is built."""

    devices: Devices
    train: ClientRows
    heldout: ClientRows

    def __len__(self) -> int:
        return len(self.devices)

    def client(self, id: int) -> Client:
        """Return the record of one client."""
        devices = self.devices
        return Client(
            id, devices.profile(id), float(devices.keep_ratio[id]), len(self.train[id]), len(self.heldout[id])
        )


def build(devices: Devices, rows: RowSets | DrawnRows, heldout_share: float, seed: int) -> Population:
    """Build the population: each client's device, and its rows split into training and held-out rows.

    Args:
        devices: The device of each client.
        rows: The rows of each client; rows that are drawn on demand give held-out rows that are, too.
        heldout_share: Share of a client's rows that is held out, rounded; at least one row where the share is above
            0 and the client has two rows, and never all of them.
        seed: Seed of the experiment.
    """
    if isinstance(rows, DrawnRows):
        return Population(devices, *rows.split(num_heldout(rows.examples, heldout_share)))
    train, heldout = [], []
    for client in range(len(rows)):
        shuffled = seeding.generator(seed, "heldout", client=client).permutation(rows[client])
        cut = num_heldout(len(shuffled), heldout_share)
        heldout.append(shuffled[:cut])
        train.append(shuffled[cut:])
    return Population(devices, to_row_sets(train), to_row_sets(heldout))


def num_heldout(num_examples: int, share: float) -> int:
    """Return the number of a client's held-out rows.

    >>> [num_heldout(rows, 0.2) for rows in (1, 2, 10)]
    [0, 1, 2]
    """
    if share == 0 or num_examples < 2:
        return 0
    return min(max(1, round(num_examples * share)), num_examples - 1)


def digest(population: Population) -> str:
    """Return the SHA-256 of all clients' rows and devices, with all figures of the devices."""
    sha = hashlib.sha256()
    owned = population.devices
    whole: list[NDArray[np.int64]] = [owned.tier_of_device, owned.device_of]
    numbers = [owned.figures[name] for name in FIGURES] + [owned.keep_ratios]
    if owned.online is not None:
        whole += [owned.online.offsets] + ([] if owned.trace_of is None else [owned.trace_of])
        numbers += [owned.online.starts, owned.online.ends, owned.online.periods]
    for rows in (population.train, population.heldout):
        whole += rows.identity
    sha.update("/".join(owned.tiers).encode())
    for array in whole:
        sha.update(np.ascontiguousarray(array, dtype="<i8").data)
    for column in numbers:
        sha.update(np.ascontiguousarray(column, dtype="<f8").data)
    return sha.hexdigest()


def leftover_rows(population: Population, num_rows: int) -> int | None:
    """Return the number of training rows that no client owns. None: clients may draw the same rows.

    Args:
        population: The clients.
        num_rows: Training rows, without those that validate.
    """
    if isinstance(population.train, DrawnRows):
        return None
    return num_rows - int(population.train.counts.sum() + population.heldout.counts.sum())
