"""Updates of clients that trained the whole model, which wait until several of them are added to the sum at once."""

from torch import nn

from raysim.client.naming import named
from raysim.client.view import ClientView
from raysim.core.tensors import Params
from raysim.pruning.submodel import SubmodelCache
from raysim.server.fixed_point import ExactSum

MOST = 4
"""Clients that are added at once."""
MOST_BYTES = 2**25
"""Memory of the models that may wait; it is kept for the next ones."""


class PendingUpdates:
    """Trained models of a chunk whose differences to the global model are not in the sum yet."""

    def __init__(self, total: ExactSum, submodels: SubmodelCache, round: int) -> None:
        """Prepare for a chunk.

        Args:
            total: The sum of the updates, which is changed in place.
            submodels: Hands out no model that waits.
            round: Number of the round, which errors name.
        """
        self._total, self._submodels, self._round = total, submodels, round
        self._clients: list[int] = []
        self._models: list[nn.Module] = []
        self._trained: list[Params] = []
        self._weights: list[float] = []
        self._start: Params = {}

    def can_wait(self, view: ClientView) -> bool:
        """Whether a client's model may wait: it is the whole one, in main memory, and started from the global one."""
        start, sent = view.start, self._total.tensors
        is_whole = not view.cut and not view.elements and all(tensor.is_cpu for tensor in start.values())
        size = sum(tensor.nbytes for tensor in start.values())
        is_global = is_whole and all(start[key] is view.broadcast.params[key] for key in sent)
        return is_global and MOST * size <= MOST_BYTES

    def taken(self, view: ClientView) -> Params:
        """Return what a client sends: its model's own parameters, and copies of buffers, which scoring may change."""
        buffers = {key for key, _ in view.model.named_buffers(remove_duplicate=False)}
        state = view.model.state_dict()
        return {key: state[key].clone() if key in buffers else state[key] for key in self._total.tensors}

    def add(self, view: ClientView, trained: Params) -> None:
        """Let what a client sends wait, and add all that wait if there are enough."""
        self._submodels.withhold(view.mask)
        self._clients.append(view.assignment.client)
        self._models.append(view.model)
        self._trained.append(trained)
        self._weights.append(len(view.targets))
        self._start = view.start
        if len(self._models) == MOST:
            self.flush()

    def flush(self) -> None:
        """Add what waits to the sum.

        Raises:
            RunFailedError: If a difference is not finite; it names round and client.
        """
        if not self._models:
            return
        try:
            self._total.add_changes(self._trained, self._start, self._weights)
        except OverflowError:
            for client, params, weight in zip(self._clients, self._trained, self._weights, strict=True):
                with named(self._round, client):
                    self._total.add_changes([params], self._start, [weight])
            raise
        self._submodels.take_back(self._models)
        self._clients, self._models, self._trained, self._weights = [], [], [], []
