import numpy as np
import pytest
import torch

from raysim.seeding import derive_seed, generator, torch_seeded


def test_seeds_are_the_same_on_every_machine():
    assert derive_seed(0, "model") == 3_058_229_653_063_966_519
    assert derive_seed(7, "batches", 3, 12) == 4_612_078_862_393_042_498


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
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    generator(0, "batches").random(5)
    assert np.random.random() == expected  # noqa: NPY002


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
    with pytest.raises(ZeroDivisionError), torch_seeded(0, "layers"):
        torch.rand(3)
        _ = 1 / 0
    assert torch.equal(torch.get_rng_state(), before)
