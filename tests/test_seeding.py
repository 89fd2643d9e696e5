import numpy as np
import pytest
import torch

from raysim.seeding import derive_seed, generator, torch_seeded


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
