"""Updates of clients that trained the whole model, which wait until several of them are added to the sum at once."""

from types import TracebackType

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
    """Trained models of a chunk whose differences to the global model are not in the sum yet.

    As a context it adds what waits at its end, after a failure, too: of several that fail, the first client is named.
    """

    def __init__(self, total: ExactSum, submodels: SubmodelCache) -> None:
        """Prepare for a chunk.

        Args:
            total: The sum of the updates, which is changed in place.
            submodels: Hands out no model that waits.
        """
        self._total, self._submodels = total, submodels
        self._waiting: list[tuple[ClientView, Params]] = []

    def __enter__(self) -> "PendingUpdates":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

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
        self._waiting.append((view, trained))
        if len(self._waiting) == MOST:
            self.flush()

    def flush(self) -> None:
        """Add what waits to the sum.

        Raises:
            RunFailedError: If a difference is not finite; it names round and client.
        """
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        start = waiting[0][0].start
        trained, weights = [params for _, params in waiting], [len(view.targets) for view, _ in waiting]
        try:
            self._total.add_changes(trained, start, weights)
        except OverflowError:
            for (view, params), weight in zip(waiting, weights, strict=True):
                with named(view.broadcast.round, view.assignment.client):
                    self._total.add_changes([params], start, [weight])
            raise
        self._submodels.take_back([view.model for view, _ in waiting])
