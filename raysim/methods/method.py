"""A method: one record of rules, each a function of the server's view of a round."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raysim.budgets.rules import BudgetRule, all_affordable
from raysim.client.assignments import LocalRules
from raysim.client.hooks import LocalHooks
from raysim.client.training import LocalTraining
from raysim.clock.timing import CohortLoad
from raysim.clock.work import Cohort
from raysim.core.options import Option
from raysim.core.tensors import Columns, Params
from raysim.methods.options import MethodOptions
from raysim.population.profiles import Devices
from raysim.pruning.costs import CostTable
from raysim.pruning.coverage import Coverage
from raysim.pruning.masks import CohortMasks, Mask, Scores
from raysim.pruning.plan import ChannelPlan
from raysim.server.fill import FillRule, fill_global
from raysim.server.updates import ClientUpdates


@dataclass(frozen=True, slots=True, eq=False)
class RoundView:
    """The server's view when it plans a round.

    Attributes:
        plan: The model's channel groups.
        costs: Costs of submodels.
        local: Optimizer, epochs and batch size of local training.
        options: The method's options.
        seed: Seed of the experiment.
        num_clients: Registered clients.
        num_examples: Training rows of all clients.
        devices: Devices of all clients.
        cohort: Who takes part, with how much of the model and how many epochs.
        params: Global parameters and buffers.
        memory: Memory of the method.
        client_memory: Its memory of single clients, by id.
        update_bytes: Returns the bytes of a client's update, from its mask.
    """

    plan: ChannelPlan
    costs: CostTable
    local: LocalTraining
    options: MethodOptions
    seed: int
    num_clients: int
    num_examples: int
    devices: Devices
    cohort: Cohort
    params: Params
    memory: Params
    client_memory: Mapping[int, Params]
    update_bytes: Callable[[Mask], int]

    @property
    def round(self) -> int:
        """The round, counted from 1; preparation has 0 and below."""
        return self.cohort.round

    @property
    def clients(self) -> NDArray[np.int64]:
        """Ids of the cohort, `(cohort,)`."""
        return self.cohort.clients

    @property
    def examples(self) -> NDArray[np.int64]:
        """Training rows of each client, `(cohort,)`."""
        return self.cohort.examples

    @property
    def budgets(self) -> NDArray[np.float64]:
        """Share of channels the method's budget rule gives each client, `(cohort,)`."""
        return self.cohort.budgets

    @property
    def keep_ratios(self) -> NDArray[np.float64]:
        """Share of channels each client trains in this round, `(cohort,)`."""
        return self.cohort.keep_ratios

    @property
    def epochs(self) -> NDArray[np.int64]:
        """Passes of each client over its rows, `(cohort,)`."""
        return self.cohort.epochs


@dataclass(frozen=True, slots=True, eq=False)
class CohortReport:
    """The server's view after a round.

    Attributes:
        view: Its view before the round; its parameters are those the cohort started from, except stale clients.
        contribution: The updates of the clients; one row per client, in the view's order.
        masks: Masks of the submodels that each client sends back.
        coverage: Examples behind each entry.
        total_s: Simulated seconds of each client, `(cohort,)`.
    """

    view: RoundView
    contribution: ClientUpdates
    masks: CohortMasks
    coverage: Coverage
    total_s: NDArray[np.float64]


class Trainer(Protocol):
    """Trains clients before round 1; the costs count like those of any round."""

    def __call__(
        self,
        clients: NDArray[np.int64],
        mask: Mask,
        epochs: int,
        hooks: tuple[Callable[..., LocalHooks], ...],
        params: Params,
        travels: bool = True,
        charge: "LoadRule | None" = None,
    ) -> tuple[ClientUpdates, Params]:
        """Train some clients on equal masks; return their updates and the weighted mean of their weights.

        Args:
            clients: Their ids.
            mask: Mask of the submodel that all of them hold.
            epochs: Passes over their rows; 0: no step is taken, and only hooks look at the model.
            hooks: From a `ClientView` to the `LocalHooks` that take part.
            params: Global parameters and buffers that they start from.
            travels: Whether anything is transferred: one client may continue with its own weights.
            charge: Corrects the load, where it is not that of training a submodel and sending an update.
        """
        ...


ScoreRule = Callable[[RoundView], Scores]
"""Returns scores, higher: kept first; shared `(num_units,)`, or one row per client `(cohort, num_units)`."""
MaskRule = Callable[[RoundView, Scores], Sequence[Mask]]
"""Returns the mask of each client of the cohort; equal masks may be one object."""
WidthRule = Callable[[RoundView], NDArray[np.float64]]
"""Returns the budgets of this round, `(cohort,)`, where they depend on more than the device."""
WorkRule = Callable[[RoundView], NDArray[np.int64]]
"""Returns the epochs each client trains, `(cohort,)`."""
LoadRule = Callable[[RoundView, CohortMasks, CohortLoad], CohortLoad]
"""Corrects the load of a cohort, where it is more than that of its submodels."""
ExtraRule = Callable[[RoundView], Params]
"""Returns tensors that are sent to all clients beside the parameters."""
AfterRound = Callable[[Params, Params, CohortReport], tuple[Params, Params]]
"""Returns the parameters and memory that are kept, from aggregated parameters, memory and report."""
FigureRule = Callable[[CohortReport], Mapping[str, float]]
"""Returns figures of a round by name."""
ServeRule = Callable[[ChannelPlan, Params, Params], Params]
"""Returns the global model as it is scored and served, from plan, parameters and memory."""
ServeWidthRule = Callable[[Params, Params, float], Params]
"""Returns the parameters from which the submodel of a width is cut, from parameters, memory and width."""
TableRule = Callable[[Params], Columns]
"""Returns a table that is written when a run ends, from memory."""
PrepareRule = Callable[[RoundView, Trainer], tuple[Params, Params]]
"""Returns parameters and memory at the start of round 1; the view's cohort is the whole population."""
LocalHook = Callable[..., LocalHooks]
"""`(ClientView, MethodOptions) -> LocalHooks`."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A local objective: what clients minimise beside the loss, and the state that the server keeps for it."""

    hook: LocalHook | None = None
    extra: ExtraRule | None = None
    load: LoadRule | None = None
    after_round: AfterRound | None = None
    needs_plain_sgd: bool = False
    sends_memory: bool = False


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the table.

    Attributes:
        name: Name in the settings.
        source: Paper and equations.
        score: Ranks the channels.
        budget: Share of its budget that a client trains.
        options: Values of the shared options.
        reads: Which shared options it reads; the others are refused.
        own: Options of its own.
        rules: Rules for clients beyond plain local training.
        local: Hooks of its local training.
        mask: Chooses masks from scores. None: the rule that `options.mask` names.
        width_mask: Cuts the global model for its evaluation at a width, where clients cut their own submodels.
            None: as `mask` does.
        cost_mask: Chooses masks that cost what those of `mask` do, before anything is learned, for solved budgets and
            forecasts: where it cuts single weights or blocks. None: it cuts channels; the first cost as much.
        fill: Normalises the summed updates; set from `options.fill`.
        widths: Budgets of a round, where they depend on more than the device.
        work: Epochs of each client, where they are not all equal.
        load: Corrects bytes and FLOPs.
        most_load: Upper bound of `load`, where it depends on random draws; budgets are solved for it.
        prepare: Preparation before round 1.
        after_round: Learns from a round.
        serve: Returns the global model as it is scored and served, where that is not the parameters as they are.
        figures: Figures of every round, recorded with its metrics.
        table: A table of its own, written with the results of a run as `method.parquet`.
        extra: Returns tensors that are sent to all clients beside the parameters.
        serve_width: Returns the parameters from which the submodel of a width is cut to be scored. None: those of the
            global model.
        drops_blocks: Whether whole blocks are units of the plan, too, and learn the step sizes of their branches.
        needs_adapters: Whether it averages adapters, and nothing else.
        objective: Local objective; set from `options.objective`.
        sends_memory: Whether a client's assignment carries its memory.
        learns_widths: Whether the size of submodels depends on what is learned.
        chooses_widths: Whether it drops channels whatever the budget.
        one_version: Whether all updates of a round must start from one version of the model.
        min_epochs: Fewest epochs of local training that it needs.
        claims: Laws of `tests/test_laws.py` it claims beyond those that hold for all.
    """

    name: str
    source: str
    score: ScoreRule
    budget: BudgetRule = all_affordable
    options: MethodOptions = field(default_factory=MethodOptions)
    reads: frozenset[str] = frozenset()
    own: Mapping[str, Option] = field(default_factory=dict)
    rules: LocalRules = field(default_factory=LocalRules)
    local: tuple[LocalHook, ...] = ()
    mask: MaskRule | None = None
    width_mask: MaskRule | None = None
    cost_mask: MaskRule | None = None
    fill: FillRule = fill_global
    widths: WidthRule | None = None
    work: WorkRule | None = None
    load: LoadRule | None = None
    most_load: LoadRule | None = None
    prepare: PrepareRule | None = None
    after_round: AfterRound | None = None
    serve: ServeRule | None = None
    figures: FigureRule | None = None
    table: TableRule | None = None
    extra: ExtraRule | None = None
    serve_width: ServeWidthRule | None = None
    drops_blocks: bool = False
    needs_adapters: bool = False
    objective: Objective = field(default_factory=Objective)
    sends_memory: bool = False
    learns_widths: bool = False
    chooses_widths: bool = False
    one_version: bool = False
    min_epochs: int = 1
    claims: frozenset[str] = frozenset()

    @property
    def cuts_by_width(self) -> bool:
        """Whether it has masks by width: not where all clients train the full model or share a mask of weights."""
        return self.chooses_widths or not self.ignores_budgets

    def cuts_channels(self, affordable: NDArray[np.float64]) -> bool:
        """Whether some client would train less than all channels or blocks, from the clients' budgets."""
        if self.cost_mask is not None and not self.drops_blocks:
            return False
        return self.chooses_widths or bool((self.budget(affordable) < 1).any())

    @property
    def is_plain(self) -> bool:
        """Whether clients do nothing but train the submodel they are sent."""
        return not any(
            (
                self.rules.hooks,
                self.local,
                self.rules.choose_locally,
                self.objective.hook,
                self.rules.static_norm,
                self.rules.scale_by_keep_ratio,
                self.rules.own_classes_only,
                self.sends_memory,
            )
        )

    @property
    def ignores_budgets(self) -> bool:
        """Whether every client trains the full model, whatever its budget."""
        return bool(self.budget(np.array([1e-9]))[0] == 1)

    @property
    def has_known_costs(self) -> bool:
        """Whether bytes, FLOPs and seconds are known before anything is learned."""
        return not self.learns_widths and self.options.mask in ("top", "coverage")
