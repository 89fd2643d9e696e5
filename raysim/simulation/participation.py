"""Who took part in a run: the tiers and clients whose work never counted, and what became of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.clock import outcomes
from raysim.population.profiles import Devices

NAMED = 20
"""Clients that are named, of those that never counted; all are numbered."""


class Participation:
    """Counts the outcomes of the clients' work, by tier, round by round."""

    def __init__(self, devices: Devices) -> None:
        self._devices = devices
        self._counts = np.zeros((len(devices.tiers), len(outcomes.ALL)), dtype=np.int64)
        self._selected = np.zeros(len(devices), dtype=np.bool_)
        self._counted = np.zeros(len(devices), dtype=np.bool_)

    def add(self, clients: NDArray[np.int64], fates: NDArray[np.str_]) -> None:
        """Add the clients of a round, and the outcome of the work of each, `(clients,)`."""
        names, indices = np.unique(fates, return_inverse=True)
        known = np.array([outcomes.ALL.index(str(name)) for name in names], dtype=np.int64)
        np.add.at(self._counts, (self._devices.tier_of[clients], known[indices]), 1)
        self._selected[clients] = True
        self._counted[clients[fates == outcomes.COUNTED]] = True

    def never_counted(self) -> dict[str, Any]:
        """Return the tiers of which no work counted, and the clients of other tiers that were selected in vain.

        Returns:
            `tiers`, each with its number of clients and their outcomes; `clients`, the first ids; `num_clients`, how
            many there are; `num_unselected`, clients of other tiers that were never selected.
        """
        sizes = np.bincount(self._devices.tier_of, minlength=len(self._devices.tiers))
        none = (self._counts[:, outcomes.ALL.index(outcomes.COUNTED)] == 0) & (sizes > 0)
        others = ~none[self._devices.tier_of]
        in_vain = np.flatnonzero(self._selected & ~self._counted & others)
        return {
            "tiers": [
                {"tier": self._devices.tiers[tier], "clients": int(sizes[tier]), "fates": self._fates(tier)}
                for tier in np.flatnonzero(none).tolist()
            ],
            "clients": in_vain[:NAMED].tolist(),
            "num_clients": len(in_vain),
            "num_unselected": int((~self._selected & others).sum()),
        }

    def _fates(self, tier: int) -> dict[str, int]:
        numbers = zip(outcomes.ALL, self._counts[tier].tolist(), strict=True)
        return {outcome: number for outcome, number in numbers if number}


def never_counted_lines(found: Mapping[str, Any]) -> list[str]:
    """Return sentences on what `Participation.never_counted` found; none if all work has counted at times.

    >>> tier = {"tier": "slow", "clients": 3, "fates": {"late": 5}}
    >>> found = {"tiers": [tier], "clients": [4, 7], "num_clients": 2, "num_unselected": 0}
    >>> never_counted_lines(found)
    ['tier slow (3 clients): never counted, 5 late', '2 clients were selected and never counted: 4, 7']
    """
    lines = [f"tier {each['tier']} ({_clients(each['clients'])}): never {_fate(each)}" for each in found["tiers"]]
    if found["num_clients"]:
        were = "was" if found["num_clients"] == 1 else "were"
        named = in_short(found["clients"], found["num_clients"])
        lines.append(f"{_clients(found['num_clients'])} {were} selected and never counted: {named}")
    if found["num_unselected"]:
        were = "was" if found["num_unselected"] == 1 else "were"
        lines.append(f"{_clients(found['num_unselected'])} {were} never selected")
    return lines


def _clients(number: int) -> str:
    return f"{number:,} client" + "s" * (number != 1)


def _fate(tier: Mapping[str, Any]) -> str:
    if not tier["fates"]:
        return "selected"
    return "counted, " + ", ".join(f"{number:,} {outcome}" for outcome, number in tier["fates"].items())


def in_short(ids: Sequence[int], total: int) -> str:
    """Write the first ids of some clients.

    >>> in_short([3, 5], 9)
    '3, 5 and 7 more'
    """
    more = f" and {total - len(ids):,} more" if total > len(ids) else ""
    return ", ".join(map(str, ids)) + more
