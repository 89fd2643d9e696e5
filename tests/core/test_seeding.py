import numpy as np
import pytest
import torch

from raysim.core import seeding
from raysim.core.seeding import derive_seed, generator, torch_seeded


def test_seeds_are_the_same_on_every_machine():
    # printf 0/model/0/0 | b2sum -l 64, read as little-endian and halved
    assert derive_seed(0, "model") == 7_249_294_538_564_161_093
    assert derive_seed(7, "batches", 3, 12) == 8_655_882_108_453_480_406


def test_every_argument_changes_the_seed():
    one = derive_seed(1, "batches", 2, 3)
    others = [
        derive_seed(2, "batches", 2, 3),
        derive_seed(1, "layers", 2, 3),
        derive_seed(1, "batches", 3, 3),
        derive_seed(1, "batches", 2, 4),
        derive_seed(1, "batches", 3, 2),
    ]
    assert len({one, *others}) == 6


def test_seeds_fill_63_bits_and_no_more():
    seeds = [derive_seed(seed, "range") for seed in range(200)]
    assert 2**62 < max(seeds) < 2**63
    assert len(set(seeds)) == 200


def test_generators_are_fresh_and_repeatable():
    first = generator(0, "batches", 1, 5)
    first.random(10)
    assert generator(0, "batches", 1, 5).random() == generator(0, "batches", 1, 5).random()
    assert generator(0, "batches", 1, 5).random() != first.random()
    assert generator(0, "batches", 1, 5).random() != generator(0, "batches", 1, 6).random()


def test_the_global_numpy_generator_is_left_alone():
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    generator(0, "batches").random(5)
    assert np.random.random() == expected


def test_torch_seeded_repeats_its_draws_and_restores_the_generator():
    torch.manual_seed(11)
    outside = torch.rand(3)
    torch.manual_seed(11)
    with torch_seeded(0, "layers", 1, 2):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), outside)
    with torch_seeded(0, "layers", 1, 2):
        assert torch.equal(torch.rand(3), inside)
    with torch_seeded(0, "layers", 1, 3):
        assert not torch.equal(torch.rand(3), inside)


def test_torch_seeded_restores_the_generator_after_an_error():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), torch_seeded(0, "layers"):
        torch.rand(3) @ torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)


CLIENTS = np.arange(200_000)


def test_many_clients_draw_uniform_numbers_at_once():
    drawn = seeding.uniform(0, "dropout", 3, CLIENTS, 2)
    assert drawn.shape == (2, len(CLIENTS))
    assert 0 < drawn.min() < drawn.max() < 1
    for row in drawn:
        counts = np.histogram(row, 100, (0, 1))[0]
        assert ((counts - 2000) ** 2 / 2000).sum() < 150  # chi squared, 99 degrees of freedom: p < 0.001
    neighbours = np.corrcoef([drawn[0][:-1], drawn[0][1:], drawn[1][:-1]])
    assert np.abs(neighbours - np.eye(3)).max() < 0.01


def test_what_a_client_draws_does_not_depend_on_the_others_or_on_how_much_is_drawn():
    together, alone = seeding.uniform(0, "dropout", 3, CLIENTS, 2), seeding.uniform(0, "dropout", 3, CLIENTS[7:8])
    assert together[0, 7] == alone[0, 0]
    others = [
        seeding.uniform(*key, CLIENTS[7:8])[0, 0] for key in ((1, "dropout", 3), (0, "else", 3), (0, "dropout", 4))
    ]
    assert len({alone[0, 0], *others}) == 4


def test_many_clients_draw_normal_numbers_at_once():
    drawn = seeding.normal(0, "drift", 1, CLIENTS, 2)
    assert drawn.mean(axis=1) == pytest.approx([0, 0], abs=0.01)
    assert drawn.std(axis=1) == pytest.approx([1, 1], rel=0.01)
    assert ((np.abs(drawn) > 1.96).mean(axis=1)) == pytest.approx([0.05, 0.05], abs=0.002)
    assert abs(np.corrcoef(drawn)[0, 1]) < 0.01
