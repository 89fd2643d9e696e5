"""Build a scenario from settings: data, partition, population, model, plan and budgets."""

import copy
import fnmatch
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raysim.client import compression, evaluation, trainable
from raysim.client.packing import pack_size
from raysim.client.schedule import Schedule
from raysim.client.training import LocalTraining
from raysim.client.view import Workload
from raysim.clock.modes import MODES, ClockRules
from raysim.config.experiment import ExperimentSettings
from raysim.core import memory, plugins, seeding
from raysim.core.errors import SettingError, UntraceableError, nearest_first
from raysim.core.inputs import Inputs, predict
from raysim.core.log import info, warning
from raysim.core.tensors import one_thread
from raysim.data import datasets
from raysim.data.batches import batch_slices
from raysim.data.partition import check_partition, partition
from raysim.data.row_sets import RowSets
from raysim.data.rules import PartitionOptions
from raysim.data.splits import DataSplits, Origin
from raysim.data.stratified import validation_rows
from raysim.data.transform import Transform
from raysim.methods import resolve as methods
from raysim.methods.method import Method
from raysim.models import adapters, weights, zoo
from raysim.models.normalization import group_normalized
from raysim.models.steps import add_steps
from raysim.models.trained_part import train_only
from raysim.population import population, sources
from raysim.population.population import Population
from raysim.pruning import masks
from raysim.pruning.blocks import branch_ends
from raysim.pruning.costs import CostTable
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.significance import first_channels
from raysim.selection import table as selection
from raysim.selection.table import SelectionRule
from raysim.server.optimizers import ServerOptimizer
from raysim.simulation.feasibility import check_clock, check_deadline, with_solved_budgets
from raysim.simulation.scenario import Scenario, StopRules
from raysim.simulation.task import task_of
from raysim.simulation.widths import with_widths

NOT_LOCAL = {"schedule", "label_smoothing", "class_weights", "pack"}
"""Settings of local training that are no fields of `LocalTraining`, or another type there."""

COUNTED_AHEAD = 64
"""Widths whose costs are counted before the first round; a file of devices may have one for each."""


def check_names(settings: ExperimentSettings) -> None:
    """Resolve names without loading anything.

    Raises:
        SettingError: If a method, model, data set, partition, selection rule or one of their options is unknown.
    """
    _check_asynchronous(settings, method_of(settings))
    _check_device(settings)
    _selection_rule(settings)
    zoo.check_name(settings.model.name)
    weights.check_path(settings.model.weights)
    datasets.check_name(settings.data.name, settings.data.options)
    check_partition(settings.data.partition.name, _partition_options(settings))
    sources.check(settings.population)


def _check_device(settings: ExperimentSettings) -> None:
    if (
        settings.executor.device == "cuda"
        and settings.executor.kind == "in-process"
        and not torch.cuda.is_available()
    ):
        raise SettingError("executor.device='cuda' is not allowed: PyTorch finds no GPU here; allowed: cpu")


def _check_asynchronous(settings: ExperimentSettings, method: Method) -> None:
    """Refuse what is impossible where clients start from different versions of the model."""
    mode = MODES[settings.clock.mode]
    if mode.starts_together:
        return
    *others, last = [repr(name) for name, mode in MODES.items() if mode.starts_together]
    given, allowed = f"clock.mode={mode.name!r}", f"allowed: clock.mode={', '.join(others)} or {last}"
    if method.one_version:
        raise SettingError(
            f"method.name={method.name!r} is not allowed with {given}: it changes one mask for all or "
            f"parameters of each submodel, which clients that started before do not have; {allowed}"
        )
    if method.objective.sends_memory:
        raise SettingError(
            f"method.objective={method.options.objective!r} is not allowed with {given}: its corrections "
            f"hold for one version of the model; {allowed}"
        )
    if methods.uses_estimator(method) and method.options.estimator == "secant":
        raise SettingError(
            f"method.estimator='secant' is not allowed with {given}: it compares gradients of two versions "
            f"of the model; {allowed}"
        )
    if settings.diagnostics.every is not None:
        raise SettingError(
            f"diagnostics.every={settings.diagnostics.every} is not allowed with {given}: what is "
            f"diagnosed starts from one version of the model; {allowed}"
        )


def build_scenario(settings: ExperimentSettings) -> Scenario:
    """Build a scenario: load data, partition it, build and trace the model.

    Raises:
        SettingError: If a setting does not fit the data, the model, another setting or memory; or if a user's code
            fails.
    """
    what = f"model.name={settings.model.name!r} with {settings.population.clients:,} clients"
    fewer = "a smaller model (model.options), fewer clients (population.clients)"
    # with two threads small operations wait for each other, especially while Ray starts
    with one_thread(), memory.enough_for(what, fewer), plugins.users_code():
        return _build(settings)


def _build(settings: ExperimentSettings) -> Scenario:
    seed, split, local = settings.seed, settings.split_seed, _local_training(settings)
    method = method_of(settings)
    _check_asynchronous(settings, method)
    _check_population(settings)
    data = _load_data(settings)
    validating = validation_rows(data.strata, settings.data.validation_share, split)
    rows = partition(
        data.strata,
        settings.population.clients,
        settings.data.partition.name,
        _partition_options(settings),
        split,
        data.train_users,
        validating,
        without_classes=None if data.train_classes is not None else data.task,
    )
    owned = sources.of_settings(settings.population, split)
    clients = population.build(owned, rows, settings.data.heldout_share, split)

    example, _ = data.example()
    model = _build_model(settings, data, method, example)
    is_default = settings.method.normalization is None and method.options.normalization != "batch"
    if is_default and not evaluation.batch_norms(model):
        method = method_of(settings, normalization="batch")
    model = _normalized(model, method.options.normalization)
    if method.drops_blocks:
        model = add_steps(model, branch_ends(model, example))
    task = task_of(settings, data, validating)
    methods.check_task(method, task)
    trainable.check(settings.model.name, model, task, *data.extremes())
    plan = _plan_of(settings, model, example, method.drops_blocks)
    workload = Workload(seed, data, clients, model, plan, local, task)
    check_batches(workload)
    costs = CostTable(model, plan, data.input_shape, example)
    _ = costs.dense
    # counted here: the driver actor then need not import PyTorch's counter
    for ratio in np.unique(method.budget(owned.keep_ratios))[:COUNTED_AHEAD]:
        costs.of(masks.keep_top(plan, first_channels(plan), float(ratio)))
    everything = masks.Mask.whole(plan)
    methods.update_bytes(method, costs, everything)  # so that a compression that cannot count fails before round 1
    limit = settings.evaluation.max_examples
    scenario = Scenario(
        workload=workload,
        method=method,
        server=ServerOptimizer(**settings.server.model_dump(exclude_none=True)),
        costs=costs,
        cohort_size=settings.selection.clients_per_round,
        rounds=settings.rounds,
        score_every=settings.evaluation.every,
        test_rows=_some_rows(len(data.test_targets), limit, split, "test rows"),
        statistics_rows=_statistics_rows(settings, clients, len(data.train_targets), validating),
        validation_rows=validating,
        scored_share=settings.evaluation.client_share,
        diagnose_every=settings.diagnostics.every or 0,
        clock=clock_rules(settings),
        stop=StopRules.of(settings.stop, task.primary),
        targets=tuple(settings.evaluation.targets),
        selection=_selection_rule(settings),
        pack_size=_pack_size(settings, method, workload),
    )
    if settings.budget.rule == "solved":
        if method.ignores_budgets:
            warning(f"budgets are ignored: method.name={settings.method.name!r} trains the full model")
        deadline_s = settings.budget.deadline_s or settings.clock.deadline_s
        scenario = with_solved_budgets(scenario, deadline_s, settings.budget.steps)
    check_clock(scenario)
    check_deadline(scenario)
    return with_widths(scenario, settings.evaluation.widths)


BYTES_OF_A_CLIENT = 400
"""Of its device's figures, its state and its rows, at least."""


def _check_population(settings: ExperimentSettings) -> None:
    """Refuse more clients than memory holds."""
    clients = settings.population.clients
    memory.check_fits("population.clients", clients, clients * BYTES_OF_A_CLIENT)


def _pack_size(settings: ExperimentSettings, method: Method, workload: Workload) -> int:
    """Return how many clients are trained together at most.

    Raises:
        SettingError: If the settings give a number and clients cannot be trained together.
    """
    wanted, cohort = settings.training.pack, settings.selection.clients_per_round
    reason = why_alone(method, workload)
    if reason is None:
        largest = int(workload.population.train.counts.max()) * workload.data.row_size
        return pack_size(wanted, workload.model, cohort, largest, on_gpu=settings.executor.device == "cuda")
    if wanted not in ("auto", 1):
        raise SettingError(
            f"training.pack={wanted} is not allowed: clients are trained one by one, since {reason}; allowed: auto, 1"
        )
    return 1


def why_alone(method: Method, workload: Workload) -> str | None:
    """Return why clients cannot be trained together, whatever the model. None: they can."""
    if workload.data.augmentation is not None:
        return "data.transform.augment draws for each client"
    if not workload.task.packs:
        return "task.loss is your own"
    if workload.local.memory_format != "contiguous":
        return f"training.memory_format={workload.local.memory_format!r} works for single models only"
    if not method.is_plain:
        return f"method.name={method.name!r} needs more than plain training"
    return None


def resolved(settings: ExperimentSettings, scenario: Scenario) -> ExperimentSettings:
    """Return settings with the pack size that a rule has chosen filled in, since it decides the last bits."""
    training = settings.training.model_copy(update={"pack": scenario.pack_size})
    return settings.model_copy(update={"training": training})


def clock_rules(settings: ExperimentSettings) -> ClockRules:
    """Return the clock's rules; sizes that the settings leave open are those of the cohort."""
    cohort = settings.selection.clients_per_round
    rules = {"buffer_size": cohort, "concurrency": cohort} | settings.clock.model_dump(exclude_none=True)
    return ClockRules(**rules | {"mode": MODES[settings.clock.mode]})


def _selection_rule(settings: ExperimentSettings) -> SelectionRule:
    chosen = settings.selection
    return selection.resolve(chosen.rule, chosen.options, chosen.clients_per_round)


def _normalized(model: nn.Module, normalization: str) -> nn.Module:
    if normalization != "batch" and not evaluation.batch_norms(model):
        raise SettingError(
            f"method.normalization={normalization!r} has no effect on a model without BatchNorm; allowed: null"
        )
    return group_normalized(model) if normalization == "group" else model


def _plan_of(settings: ExperimentSettings, model: nn.Module, example: Inputs, blocks: bool) -> ChannelPlan:
    """Trace the model; one that cannot be traced is trained whole, and a warning gives the reason."""
    try:
        whole, keep_residual = _layers_kept_whole(settings, model), settings.model.keep_residual
        uncut = adapters.uncut_tensors(model)
        return ChannelPlan.trace(model, example, whole, keep_residual, blocks=blocks, uncut=uncut)
    except UntraceableError as error:
        warning(f"model.name={settings.model.name!r} is trained whole, whatever the budgets: {error}")
        return ChannelPlan.dense(model, str(error), example)


def _layers_kept_whole(settings: ExperimentSettings, model: nn.Module) -> list[str]:
    patterns = settings.model.keep_whole
    if patterns is None:  # what a model leaves whole by default is frozen beside adapters
        return [] if settings.model.adapter else zoo.kept_whole(settings.model.name)
    layers = [name for name, layer in model.named_modules() if list(layer.parameters(recurse=False))]
    for pattern in patterns:
        if not fnmatch.filter(layers, pattern):
            known = ", ".join(nearest_first(pattern, layers))
            raise SettingError(f"model.keep_whole={pattern!r} matches no layer; layers: {known}")
    return patterns


def method_of(settings: ExperimentSettings, **more: Any) -> Method:
    """Resolve the settings' method, its options, and how updates are compressed.

    Args:
        settings: The experiment.
        more: Options of the method beside those of the settings.

    Raises:
        SettingError: If one of them is unknown, or does not go with another.
    """
    given = settings.method.model_dump(exclude={"name"}, exclude_none=True) | more
    method = methods.resolve(settings.method.name, given, _local_training(settings))
    if method.options.scaled_start and settings.model.weights is not None:
        if settings.method.scaled_start:
            raise SettingError(
                "method.scaled_start=True is not allowed with model.weights: it scales weights that are drawn; "
                "allowed: false"
            )
        method = replace(method, options=replace(method.options, scaled_start=False))
    chosen = settings.compression.model_dump(exclude_none=True)
    if not chosen:
        return method
    rules = replace(method.rules, compression=compression.resolve(chosen.pop("name"), chosen))
    return replace(method, rules=rules)


def _local_training(settings: ExperimentSettings) -> LocalTraining:
    schedule = Schedule(**settings.training.schedule.model_dump(), rounds=settings.rounds)
    return LocalTraining(**settings.training.model_dump(exclude=NOT_LOCAL), schedule=schedule)


def _load_data(settings: ExperimentSettings) -> DataSplits:
    data, transform = settings.data, Transform(**settings.data.transform.model_dump())
    task = settings.task.name
    root = str(Path(data.root).absolute()) if data.on_nodes and data.root is not None else data.root
    with memory.enough_for(f"data.name={data.name!r}", "fewer or smaller inputs"):
        loaded = datasets.load(
            data.name,
            root,
            data.download,
            data.max_train_examples,
            settings.split_seed,
            data.options,
            transform,
            task,
        )
    if not data.on_nodes:
        return loaded
    origin = Origin(data.name, root, data.max_train_examples, settings.split_seed, data.options, transform, task)
    return replace(loaded, on_nodes=origin)


def _partition_options(settings: ExperimentSettings) -> PartitionOptions:
    return PartitionOptions(**settings.data.partition.model_dump(exclude={"name"}))


def _build_model(settings: ExperimentSettings, data: DataSplits, method: Method, example: Inputs) -> nn.Module:
    chosen = settings.model
    form = zoo.DataForm(data.input_shape, data.num_classes, data.vocabulary, data.task, example)
    model = zoo.build(chosen.name, chosen.options, form, settings.seed)
    if chosen.weights is not None:
        fresh = weights.load_into(model, chosen.weights, chosen.name, data.num_classes)
        if fresh:
            info(f"model.weights={chosen.weights!r}: fresh values for {', '.join(fresh)}")
    if chosen.train_only is not None:
        train_only(model, chosen.train_only, "model.train_only")
    if chosen.adapter is not None:
        model = adapters.with_adapters(model, adapters.Adapter(**chosen.adapter.model_dump()), settings.seed)
    if method.needs_adapters and not adapters.factors_in(model.state_dict()):
        raise SettingError(
            f"method.name={method.name!r} is not allowed without model.adapter: it averages adapters; allowed: "
            "model.adapter={rank: 8}"
        )
    return model


def _statistics_rows(
    settings: ExperimentSettings, clients: Population, num_rows: int, validating: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return training rows of clients; where clients draw their rows on demand, those that they draw from."""
    train = clients.train
    owned = train.rows if isinstance(train, RowSets) else np.setdiff1d(np.arange(num_rows), validating)
    return owned[_some_rows(len(owned), settings.evaluation.max_examples, settings.split_seed, "statistics rows")]


def _some_rows(num_rows: int, limit: int | None, seed: int, purpose: str) -> NDArray[np.int64]:
    if limit is None or limit >= num_rows:
        return np.arange(num_rows)
    return np.sort(seeding.generator(seed, purpose).choice(num_rows, limit, replace=False))


def check_batches(workload: Workload) -> None:
    """Refuse settings under which a BatchNorm layer would have to train on a single value per channel.

    Raises:
        SettingError: If a client's smallest batch has one row and the model cannot train on it.
    """
    counts = workload.population.train.counts
    poorest = int(np.argmin(counts))
    batches = batch_slices(int(counts[poorest]), workload.local.batch_size)
    if min(batch.stop - batch.start for batch in batches) > 1:
        return
    inputs, _ = workload.data.train_rows(workload.population.train[poorest][:1])
    try:
        model = copy.deepcopy(workload.model)
        model.train()
        with torch.no_grad():
            predict(model, inputs)
    except ValueError as error:
        setting, wanted = ("training.batch_size=1", "2 or more")
        if workload.local.batch_size > 1:
            setting = f"client {poorest} has 1 training row, so data.partition.min_examples"
            wanted = "3 or more, so that 2 rows remain for training"
        raise SettingError(
            f"{setting} is not allowed: the model's BatchNorm cannot train on one row ({error}); allowed: {wanted}"
        ) from None
