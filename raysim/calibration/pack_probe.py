"""Time packs of several sizes on this machine and recommend one; `training.pack: auto` never measures time."""

import time
from dataclasses import replace
from typing import Any

from raysim.client.assignments import Assignments, Broadcast
from raysim.client.packing import obstacle
from raysim.client.trainer import ClientTrainer
from raysim.core.errors import SettingError
from raysim.simulation.assignments import assign
from raysim.simulation.build import why_alone
from raysim.simulation.planning import plan_round
from raysim.simulation.scenario import Scenario
from raysim.simulation.transition import initial_state

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
REPEATS = 3


def probe(scenario: Scenario) -> dict[str, Any]:
    """Train the cohort of round 1 in packs of several sizes, in turns, and return the fastest size.

    Returns:
        `auto`: the size that the rule chooses; `recommended`: the fastest size; `sizes`: one entry per size with
        `clients_per_s` and the share of `packed` clients.

    Raises:
        SettingError: If the model or the method cannot be trained in packs.
    """
    reason = why_alone(scenario.method, scenario.workload) or obstacle(scenario.workload.model)
    if reason is not None:
        raise SettingError(f"training.pack has nothing to choose from: {reason}; allowed: auto, 1")
    state = initial_state(scenario)
    work = plan_round(scenario, state).ended[0].counted
    packs = {size: assign(replace(scenario, pack_size=size), state, work) for size in SIZES if size <= len(work)}
    stage, seconds = ClientTrainer(scenario.workload), dict.fromkeys(packs, float("inf"))
    for _ in range(REPEATS):
        for size, (assignments, broadcast) in packs.items():
            seconds[size] = min(seconds[size], _seconds(stage, assignments, broadcast))
    shares = {
        size: float((assignments.packs != Assignments.ALONE).mean()) for size, (assignments, _) in packs.items()
    }
    sizes = [
        {"pack": size, "clients_per_s": len(work) / seconds[size], "packed": share} for size, share in shares.items()
    ]
    return {"auto": scenario.pack_size, "recommended": min(seconds, key=lambda size: seconds[size]), "sizes": sizes}


def _seconds(stage: ClientTrainer, assignments: Assignments, broadcast: Broadcast) -> float:
    started = time.perf_counter()
    stage.train(assignments, broadcast)
    return time.perf_counter() - started
