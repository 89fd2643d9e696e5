import numpy as np
import pytest
from matplotlib import image

from raysim.data import figure
from raysim.data.partition import partition
from raysim.data.rules import PartitionOptions
from raysim.population import population
from raysim.population.profiles import DeviceProfile
from raysim.population.sampling import listed

LABELS = np.random.default_rng(0).integers(0, 10, 20_000)
DEVICE = DeviceProfile("any", 1e9, 1e6, 1e6)


def owned(num_clients, name):
    devices = listed([DEVICE], device_of=np.zeros(num_clients, dtype=np.int64))
    clients = population.build(devices, partition(LABELS, num_clients, name, PartitionOptions(), 0), 0.2, 0)
    return clients.train, clients.heldout


@pytest.mark.parametrize("name", ["dirichlet", "resample"])
def test_class_counts_are_those_of_all_rows_a_client_owns(name):
    train, heldout = owned(7, name)
    clients, counts = figure.class_counts(LABELS, (train, heldout), 10)
    assert clients.tolist() == list(range(7))
    for client in range(7):
        rows = np.concatenate([train[client], heldout[client]])
        assert counts[client].tolist() == np.bincount(LABELS[rows], minlength=10).tolist()


@pytest.mark.slow
def test_of_a_million_clients_that_draw_rows_some_are_looked_at():
    clients, counts = figure.class_counts(LABELS, owned(1_000_000, "resample"), 10)
    assert (clients[0], clients[-1], counts.shape) == (0, 999_999, (1000, 10))
    assert (counts.sum(axis=1) == 100).all()


@pytest.mark.slow
@pytest.mark.parametrize(("num_clients", "name"), [(3, "classes"), (60, "dirichlet"), (5000, "dirichlet")])
def test_the_picture_is_drawn_without_touching_anybody_elses(tmp_path, num_clients, name):
    path = figure.draw(tmp_path / "partition.png", LABELS, owned(num_clients, name), 10, "title")
    pixels = image.imread(path)
    assert pixels.shape == (660, 1210, 4)
    colors = (pixels * 255).astype(np.uint8).view(np.uint32)
    assert len(np.unique(colors)) > 20
