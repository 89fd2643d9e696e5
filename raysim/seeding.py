"""Draw random numbers by purpose, round and client: `raysim.core.seeding` under its public name."""

from raysim.core.seeding import choices, derive_seed, generator, normal, torch_seeded, uniform

__all__ = ["choices", "derive_seed", "generator", "normal", "torch_seeded", "uniform"]
