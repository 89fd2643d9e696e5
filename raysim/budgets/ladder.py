"""The ladder of keep ratios that budgets are solved on, with the costs of a client's round on each rung."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.clock.timing import CohortLoad
from raysim.data.batches import largest_batch, num_batches

UNLIMITED_ROWS = 2**62
"""`Ladder.extra_rows` where there is no limit."""


@dataclass(frozen=True, slots=True, eq=False)
class Ladder:
    """Costs of a round at each keep ratio, arrays `(rungs,)`; plain numbers, so that no model is needed.

    FLOPs and activation bytes are per example and epoch; the `extra_` ones are added once a round, per example.

    Attributes:
        keep_ratios: The rungs, ascending.
        down_bytes: Bytes that a client downloads.
        up_bytes: Bytes that it uploads.
        train_flops: FLOPs of training.
        activation_bytes: Saved activations that pass through memory.
        extra_flops: For example those of Hessian-vector products.
        extra_activation_bytes: For example those of an epoch on the full model.
        state_bytes: Memory for parameters, gradients and the optimizer's state.
        row_bytes: Memory that the backward pass needs for one row of a batch.
        extra_rows: Most examples with extra FLOPs and activations.
    """

    keep_ratios: NDArray[np.float64]
    down_bytes: NDArray[np.int64]
    up_bytes: NDArray[np.int64]
    train_flops: NDArray[np.int64]
    activation_bytes: NDArray[np.int64]
    extra_flops: NDArray[np.int64]
    extra_activation_bytes: NDArray[np.int64]
    state_bytes: NDArray[np.int64]
    row_bytes: NDArray[np.int64]
    extra_rows: int = UNLIMITED_ROWS

    def __len__(self) -> int:
        return len(self.keep_ratios)

    def load(self, examples: NDArray[np.int64], epochs: int, batch_size: int) -> CohortLoad:
        """Return the load of clients on each rung, `(rungs, clients)`.

        Args:
            examples: Training rows of each, `(clients,)`.
            epochs: Passes over them.
            batch_size: Rows of a batch.
        """
        rows, extra = examples * epochs, np.minimum(examples, self.extra_rows)
        return CohortLoad(
            down_bytes=self.down_bytes[:, None],
            up_bytes=self.up_bytes[:, None],
            train_flops=np.outer(self.train_flops, rows) + np.outer(self.extra_flops, extra),
            activation_bytes=np.outer(self.activation_bytes, rows) + np.outer(self.extra_activation_bytes, extra),
            steps=epochs * num_batches(examples, batch_size),
        )

    def memory_bytes(self, examples: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
        """Return the memory that clients would need on each rung at their largest batch, `(rungs, clients)`."""
        return self.state_bytes[:, None] + np.outer(self.row_bytes, largest_batch(examples, batch_size))

    def to_json(self) -> dict[str, Any]:
        """Return the ladder as values for JSON."""
        columns = {name: getattr(self, name).tolist() for name in _COLUMNS}
        return {**columns, "extra_rows": None if self.extra_rows == UNLIMITED_ROWS else self.extra_rows}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "Ladder":
        """Return the ladder that `to_json` wrote."""
        keep_ratios = np.array(content["keep_ratios"], np.float64)
        counted = {name: np.array(content[name], np.int64) for name in _COLUMNS if name != "keep_ratios"}
        return Ladder(keep_ratios, **counted, extra_rows=content["extra_rows"] or UNLIMITED_ROWS)


_COLUMNS = tuple(field.name for field in fields(Ladder) if field.name != "extra_rows")
