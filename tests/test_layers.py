"""Imports go down only: every module has a rank, and heavy libraries stay where they belong."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "raysim"

RANKS: dict[str, float] = {
    # Words, and what needs no other word.
    "raysim": 0,
    "raysim.errors": 0,
    "raysim.fates": 0,
    "raysim.files": 0,
    "raysim.object_store": 0.15,
    "raysim.place": 0.1,
    "raysim.places": 0.18,
    "raysim.termination": 0,
    "raysim.messages": 0.05,
    "raysim.uri_secrets": 0.1,
    "raysim.job_place": 0.1,
    "raysim.provenance": 0.15,
    "raysim.types": 0.2,
    "raysim.arrays": 0.5,
    "raysim.cohort_masks": 0.5,
    "raysim.tasks": 0.6,
    "raysim.dotted": 0.5,
    "raysim.seeding": 0.5,
    # Settings, devices, data, models.
    "raysim.config": 1,
    "raysim.config_devices": 0.95,
    "raysim.config_data": 0.9,
    "raysim.devices": 1,
    "raysim.plain_pickle": 0.5,
    "raysim.device_presets": 1,
    "raysim.device_files": 1.05,
    "raysim.device_traces": 1.05,
    "raysim.availability": 1.1,
    "raysim.device_sources": 1.1,
    "raysim.device_storage": 0.5,
    "raysim.device_summary": 1.1,
    "raysim.device_figure": 1.15,
    "raysim.device_page": 1.25,
    "raysim.data": 1,
    "raysim.data.raw": 1,
    "raysim.data.resample": 1,
    "raysim.data.rules": 1,
    "raysim.data.figure": 1.05,
    "raysim.data.given": 1.05,
    "raysim.data.noise": 1.05,
    "raysim.data.torchvision_sets": 1.05,
    "raysim.data.transform": 1.05,
    "raysim.data.imagefolder": 1.08,
    "raysim.data.datasets": 1.1,
    "raysim.data.partition": 1.1,
    "raysim.models": 1,
    "raysim.models.cost": 1,
    "raysim.models.uncompiled": 0,
    "raysim.models.normalization": 1,
    "raysim.models.resnet": 1,
    "raysim.models.torchvision_models": 1,
    "raysim.models.vgg": 1,
    "raysim.models.weights": 1.1,
    "raysim.models.zoo": 1.2,
    "raysim.clock": 1.2,
    "raysim.config_file": 1.2,
    "raysim.population": 1.2,
    # Pruning.
    "raysim.pruning": 1.5,
    "raysim.pruning.groups": 1.5,
    "raysim.pruning.time_limit": 1.5,
    "raysim.pruning.coverage": 1.6,
    "raysim.pruning.layers": 1.6,
    "raysim.pruning.masks": 1.6,
    "raysim.pruning.submodel": 1.7,
    "raysim.pruning.units": 1.7,
    "raysim.pruning.elements": 1.75,
    "raysim.pruning.costs": 1.8,
    "raysim.pruning.overlap": 1.8,
    "raysim.pruning.proof": 1.8,
    "raysim.pruning.significance": 1.8,
    "raysim.pruning.outputs": 1.85,
    "raysim.pruning.trace": 1.85,
    "raysim.pruning.plan": 1.9,
    # The verbs of a round.
    "raysim.budgets": 2,
    "raysim.evaluation": 2,
    "raysim.exact_sum": 2,
    "raysim.memory_format": 1.9,
    "raysim.plain_descent": 1.9,
    "raysim.training": 2,
    "raysim.ladder": 2.1,
    "raysim.budget_solver": 2.2,
    "raysim.aggregation": 2.2,
    "raysim.client_memory": 2.2,
    "raysim.client_view": 2.2,
    "raysim.contribution": 2.2,
    "raysim.loss_surface": 2.2,
    "raysim.server_optimizers": 2.2,
    "raysim.packing": 2.1,
    "raysim.pack_step": 2.2,
    "raysim.client_step": 2.3,
    "raysim.gpu_share": 2.4,
    "raysim.convergence": 2.3,
    "raysim.methods": 2.4,
    "raysim.methods.options": 2.4,
    "raysim.selection": 2.4,
    "raysim.selection.view": 2.42,
    "raysim.selection.oort": 2.43,
    "raysim.selection.rules": 2.43,
    "raysim.selection.table": 2.44,
    "raysim.methods.method": 2.5,
    "raysim.methods.autoflip": 2.6,
    "raysim.methods.dapperfl": 2.6,
    "raysim.methods.estimators": 2.6,
    "raysim.methods.fjord": 2.6,
    "raysim.methods.objectives": 2.6,
    "raysim.methods.shared_elements": 2.6,
    "raysim.methods.feddst": 2.7,
    "raysim.methods.mask_rules": 2.7,
    "raysim.methods.prunefl": 2.7,
    "raysim.methods.scores": 2.7,
    "raysim.methods.fedmp": 2.8,
    "raysim.methods.fedprox": 2.8,
    "raysim.methods.table": 2.85,
    "raysim.methods.resolve": 2.9,
    # The round, and what stands around it.
    "raysim.scenario": 3,
    "raysim.cohort": 3.1,
    "raysim.solved_budgets": 3.2,
    "raysim.deadline_check": 3.25,
    "raysim.work": 3.15,
    "raysim.work_storage": 3.16,
    "raysim.energy": 3.16,
    "raysim.interruptions": 3.17,
    "raysim.round_end": 3.17,
    "raysim.planning": 3.2,
    "raysim.accounting": 3.25,
    "raysim.asynchronous": 3.25,
    "raysim.diagnostics": 3.2,
    "raysim.preparation": 3.3,
    "raysim.rounds": 3.4,
    "raysim.checkpoint": 4,
    "raysim.tier_lines": 0.5,
    "raysim.console": 4,
    "raysim.progress": 4.1,
    "raysim.device_console": 4.1,
    "raysim.executors": 4,
    "raysim.price": 4,
    "raysim.metrics": 3.9,
    "raysim.records": 4,
    "raysim.continuation": 4.1,
    "raysim.round_log": 4.1,
    "raysim.run_curves": 4.1,
    "raysim.run_note": 4.1,
    "raysim.logged_data": 4.1,
    "raysim.system_metrics": 4.1,
    "raysim.tracking": 4.15,
    "raysim.client_runs": 4.2,
    "raysim.logged_model": 4.2,
    "raysim.tracked": 4.3,
    "raysim.runs": 4.2,
    "raysim.tracked_runs": 4.2,
    "raysim.forecast": 5,
    "raysim.probe": 5.5,
    "raysim.actors": 4.8,
    "raysim.actors.tokens": 4.9,
    "raysim.actors.freed_memory": 4.9,
    "raysim.actors.readiness": 4.9,
    "raysim.actors.connection": 5,
    "raysim.actors.tasks": 5.1,
    "raysim.simulation": 5,
    "raysim.report": 0,
    "raysim.report.fragments": 0.1,
    "raysim.report.numbers": 0.1,
    "raysim.report.style": 0.1,
    "raysim.report.page": 0.2,
    "raysim.report.clients": 4.3,
    "raysim.report.source": 4.3,
    "raysim.report.accuracy": 4.4,
    "raysim.report.coverage": 4.4,
    "raysim.report.diagnostics": 4.4,
    "raysim.report.fedavg": 4.4,
    "raysim.report.partition": 4.4,
    "raysim.report.pruning": 4.4,
    "raysim.report.setup": 4.4,
    "raysim.report.timeline": 4.4,
    "raysim.report.headline": 4.5,
    "raysim.report.write": 4.6,
    "raysim.comparison": 5.5,
    "raysim.comparison.text_tables": 0,
    "raysim.comparison.curves": 5.5,
    "raysim.comparison.plan": 5.5,
    "raysim.comparison.play": 5.5,
    "raysim.comparison.table": 5.85,
    "raysim.comparison.run_record": 5.5,
    "raysim.comparison.rows": 5.6,
    "raysim.comparison.sources": 5.6,
    "raysim.comparison.reached": 5.7,
    "raysim.comparison.views": 5.8,
    "raysim.comparison.page": 5.9,
    "raysim.comparison.compare": 6,
    "raysim.comparison.command": 6.1,
    "raysim.calibration": 4,
    "raysim.calibration.fit": 4,
    "raysim.calibration.measure": 4.1,
    "raysim.calibration.figure": 4.1,
    "raysim.calibration.report": 4.1,
    "raysim.calibration.run": 4.2,
    "raysim.replay": 5.5,
    "raysim.replay.changes": 5.55,
    "raysim.replay.source": 5.5,
    "raysim.replay.starts": 5.5,
    "raysim.replay.order": 5.6,
    "raysim.replay.play": 5.7,
    "raysim.replay.unknown": 5.8,
    "raysim.replay.run": 5.9,
    "raysim.replay.summary": 6,
    "raysim.actors.calls": 5,
    "raysim.actors.faults": 5,
    "raysim.actors.client": 5.1,
    "raysim.actors.cast": 5.2,
    "raysim.actors.casting": 5.3,
    "raysim.actors.dispatch": 5.3,
    "raysim.actors.executor": 5.4,
    "raysim.actors.driver": 5.9,
    "raysim.actors.runner": 6,
    "raysim.job_package": 5,
    "raysim.ray_jobs": 6,
    "raysim.run_folder": 0.19,
    "raysim.telling": 5,
    "raysim.submission": 6.5,
    "raysim.experiment": 6,
    "raysim.resuming": 6.1,
    "raysim.sweep": 0,
    "raysim.sweep.search": 1,
    "raysim.sweep.plan": 5.6,
    "raysim.sweep.journal": 0.1,
    "raysim.sweep.display": 6,
    "raysim.sweep.trial": 6.5,
    "raysim.sweep.record": 6.5,
    "raysim.sweep.scored": 6,
    "raysim.sweep.tuning": 6.6,
    "raysim.sweep.best": 6.6,
    "raysim.sweep.run": 6.7,
    "raysim.comparison.record": 6.5,
    "raysim.comparison.run": 6.6,
    "raysim.cli": 7,
    "raysim.__main__": 8,
}

AT_HOME: dict[str, tuple[str, ...]] = {
    "ray": ("raysim.actors", "raysim.job_package", "raysim.ray_jobs", "raysim.sweep.tuning"),
    "grpc": ("raysim.actors.tokens",),
    "jinja2": ("raysim.report.page",),
    "mlflow": (
        "raysim.tracking",
        "raysim.tracked_runs",
        "raysim.logged_data",
        "raysim.logged_model",
        "raysim.system_metrics",
    ),
    "plotly": ("raysim.report", "raysim.comparison.page"),
    "matplotlib": (
        "raysim.calibration.figure",
        "raysim.comparison.curves",
        "raysim.data.figure",
        "raysim.device_figure",
    ),
    "scipy": ("raysim.calibration.fit",),
    "torchvision": ("raysim.data", "raysim.models"),
    "torch_pruning": ("raysim.pruning.trace",),
    "pydantic": (
        "raysim.config",
        "raysim.config_data",
        "raysim.config_devices",
        "raysim.config_file",
        "raysim.sweep.plan",
        "raysim.sweep.search",
    ),
}
"""Where a library may be imported: in these modules, or in a package's modules."""


@dataclass(frozen=True)
class Import:
    module: str
    line: int


def name_of(path: Path) -> str:
    parts = ["raysim", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


@functools.cache
def imports_of(module: str) -> tuple[Import, ...]:
    """Return what a module imports anywhere at run time: names, and modules of raysim in full."""
    found: list[Import] = []
    for node in running_nodes(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively"
            source = str(node.module)
            full = [f"{source}.{alias.name}" for alias in node.names]
            found += [Import(name if name in MODULES else source, node.lineno) for name in full]
    return tuple(found)


def running_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Walk a tree, leaving out what only a type checker reads."""
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        for child in node.orelse:
            yield from running_nodes(child)
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from running_nodes(child)


def test_every_module_has_a_rank():
    assert set(RANKS) == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_strictly_down(module):
    inside = [found for found in imports_of(module) if found.module.split(".")[0] == "raysim"]
    wrong = [
        f"{module}:{found.line} (rank {RANKS[module]}) imports {found.module} (rank {RANKS[found.module]})"
        for found in inside
        if RANKS[found.module] >= RANKS[module]
    ]
    assert not wrong


@pytest.mark.parametrize("library", AT_HOME)
def test_a_library_stays_at_home(library):
    def is_home(module: str) -> bool:
        return any(module == home or module.startswith(f"{home}.") for home in AT_HOME[library])

    users = {module for module in MODULES for found in imports_of(module) if found.module.split(".")[0] == library}
    assert {module for module in users if not is_home(module)} == set()


@pytest.mark.parametrize(
    ("modules", "not_loaded"),
    [
        ("raysim.executors, raysim.rounds", {"ray", "mlflow", "pydantic", "torch_pruning"}),
        ("raysim.cli", {"torch", "ray", "mlflow", "plotly", "jinja2"}),
        ("raysim", {"numpy", "torch", "ray", "mlflow", "pydantic"}),
    ],
)
def test_an_import_stays_light(modules, not_loaded):
    code = f"import {modules}, sys; print(*(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not_loaded.isdisjoint(done.stdout.split())
    assert "raysim" in done.stdout.split()
