import time
import tracemalloc

import numpy as np
import pytest

from raysim.core.errors import SettingError
from raysim.data.partition import partition
from raysim.data.rules import PartitionOptions
from raysim.executors.in_process import InProcessExecutor
from raysim.population import population
from raysim.population.population import Population
from raysim.population.profiles import DeviceProfile, Tier
from raysim.population.sampling import of_tiers
from raysim.simulation.build import build_scenario
from raysim.simulation.forecast import forecast
from raysim.simulation.round import run_round
from raysim.simulation.transition import initial_state
from tests.conftest import tiny_settings

LABELS = np.zeros(60000, dtype=np.int64)
TIERS = tuple(Tier(DeviceProfile(name, 1e9, 1e6, 1e6), 0.5, 1.0) for name in ("slow", "fast"))
CONFIG = ("data.partition={name: resample, examples_per_client: 40}", "population.clients=1000000")


def built(num_clients: int, seed: int = 0, examples: int = 50) -> Population:
    options = PartitionOptions(examples_per_client=examples)
    return population.build(
        of_tiers(TIERS, num_clients, seed), partition(LABELS, num_clients, "resample", options, seed), 0.2, seed
    )


def test_a_million_clients_need_neither_time_nor_memory():
    tracemalloc.start()
    started = time.process_time()
    clients = built(1_000_000)
    digest = population.digest(clients)
    seconds, (held, _) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 1
    assert held < 10e6  # eight bytes each for the device
    assert len(clients) == len(clients.train.counts) == 1_000_000
    assert digest == population.digest(built(1_000_000))
    assert (
        len({digest, *(population.digest(other) for other in (built(999_999), built(10**6, 1), built(10**6, 0, 49)))})
        == 4
    )


def test_a_clients_rows_depend_on_the_seed_and_its_id_alone():
    few, many = built(10), built(1_000_000)
    assert np.array_equal(few.train[7], many.train[7])
    assert not np.array_equal(many.train[7], many.train[8])
    assert not np.array_equal(many.train[7], built(10, seed=1).train[7])
    with pytest.raises(IndexError):
        few.train[10]


@pytest.mark.slow
def test_training_and_held_out_rows_do_not_overlap_and_all_rows_are_drawn_equally_often():
    clients = built(20_000)
    drawn = np.zeros(60000, dtype=np.int64)
    for client in range(0, 20_000, 10):
        train, heldout = clients.train[client], clients.heldout[client]
        assert (len(train), len(heldout)) == (40, 10)
        both = np.concatenate([train, heldout])
        assert len(np.unique(both)) == 50
        drawn[both] += 1
    halves = drawn.reshape(2, -1).sum(axis=1)
    assert abs(int(halves[0]) - int(halves[1])) < 5 * np.sqrt(100_000)
    assert drawn.max() < 14  # 1.7 draws a row on average


def test_more_rows_than_there_are_are_refused():
    with pytest.raises(SettingError, match=r"examples_per_client=60001 is not allowed .* allowed: 1 to 60000"):
        built(3, examples=60001)


@pytest.mark.slow
def test_a_million_clients_play_a_round():
    scenario = build_scenario(tiny_settings(*CONFIG))
    assert forecast(scenario)["examples_per_client"] == {"min": 36, "median": 36.0, "max": 36}
    assert len(scenario.statistics_rows) == 1437
    _, report = run_round(scenario, initial_state(scenario), InProcessExecutor(scenario.workload))
    assert report.clients["examples"].tolist() == [36, 36, 36]
    assert report.clients["client"].max() > 1000
