"""Who takes part in a round."""

import numpy as np
from numpy.typing import NDArray

from raysim import seeding


def uniform(num_clients: int, cohort_size: int, round: int, seed: int) -> NDArray[np.int64]:
    """Draw a cohort uniformly without replacement; ids come in ascending order, `(cohort_size,)`."""
    rng = seeding.generator(seed, "selection", round)
    return np.sort(rng.choice(num_clients, cohort_size, replace=False))
