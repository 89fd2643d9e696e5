"""Packages import downwards only, modules form no cycle, and heavy libraries stay where they belong."""

import subprocess
import sys
from graphlib import TopologicalSorter

import grimp
import pytest

from tests.conftest import ROOT

LAYERS = (
    "cli",
    "calibration | analysis",
    "experiment",
    "report",
    "terminal",
    "executors | tracking",
    "simulation",
    "methods",
    "selection",
    "client",
    "server",
    "budgets",
    "clock",
    "pruning",
    "population",
    "data | models",
    "task",
    "config",
    "core",
)
"""The packages of raysim, top to bottom: each imports from those below it only, and from none in its own line."""

HOMES = {
    "ray": ("executors.ray", "analysis.sweep.tuning"),
    "datasets": ("data.huggingface",),
    "peft": ("models.adapters",),
    "transformers": ("models.huggingface",),
    "grpc": ("executors.ray.private_api",),
    "jinja2": ("report.page",),
    "mlflow": (
        "tracking.mlflow_store",
        "tracking.mlflow_writer",
        "tracking.mlflow_reader",
        "tracking.datasets",
        "tracking.model",
        "tracking.system_metrics",
    ),
    "plotly": ("report", "analysis.comparison.page"),
    "matplotlib": (
        "calibration.figure",
        "analysis.comparison.cost_figure",
        "analysis.study.figure",
        "data.figure",
        "population.figure",
    ),
    "scipy": ("calibration.fit", "analysis.tables.means"),
    "torchvision": ("data", "models"),
    "torch_pruning": ("pruning.trace",),
    "tensorboardX": ("tracking.tensorboard",),
    "pydantic": ("config", "analysis.sweep.plan", "analysis.sweep.search", "tracking.run_json"),
}
"""Where a library may be imported: in these modules, or in the modules of these packages."""

OUTSIDE = {"raysim", "raysim.__main__", "raysim.seeding"}
"""The public names and the start of the command lie in no package."""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """All imports of raysim's modules, those for annotations and those inside functions included."""
    sys.path.insert(0, str(ROOT))
    try:
        return grimp.build_graph("raysim", include_external_packages=True, cache_dir=None)
    finally:
        sys.path.remove(str(ROOT))


def layer_of(module: str) -> int:
    package = module.split(".")[1]
    return next(place for place, line in enumerate(LAYERS) if package in line.split(" | "))


def inside(graph: grimp.ImportGraph) -> list[str]:
    return sorted(m for m in graph.modules if m.split(".")[0] == "raysim" and m not in OUTSIDE)


def test_every_package_has_a_layer(graph):
    named = [package for line in LAYERS for package in line.split(" | ")]
    assert sorted(named) == sorted({module.split(".")[1] for module in inside(graph)})


def test_no_package_imports_the_public_names(graph):
    assert not [m for m in inside(graph) if OUTSIDE & graph.find_modules_directly_imported_by(m)]


def test_packages_import_downwards_only(graph):
    wrong = [
        f"{module} -> {imported}"
        for module in inside(graph)
        for imported in graph.find_modules_directly_imported_by(module)
        if imported.startswith("raysim.")
        and module.split(".")[1] != imported.split(".")[1]
        and layer_of(imported) <= layer_of(module)
    ]
    assert not wrong


def test_modules_form_no_cycle(graph):
    imports = {module: graph.find_modules_directly_imported_by(module) for module in inside(graph)}
    assert list(TopologicalSorter(imports).static_order())  # raises CycleError and names the cycle


@pytest.mark.parametrize("library", HOMES)
def test_a_library_stays_at_home(graph, library):
    users = graph.find_modules_that_directly_import(library)
    homes = [f"raysim.{home}" for home in HOMES[library]]
    assert users, f"nothing imports {library}: take it out of the table"
    assert not {m for m in users if not any(m == home or m.startswith(f"{home}.") for home in homes)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modules", "not_loaded"),
    [
        ("raysim", {"numpy", "torch", "ray", "mlflow", "pydantic"}),
        ("raysim.cli.main", {"torch", "ray", "mlflow", "plotly", "jinja2", "matplotlib", "torchvision", "scipy"}),
        (
            "raysim.executors.in_process, raysim.simulation.round",
            {"ray", "mlflow", "pydantic", "torch_pruning", "torchvision", "matplotlib", "plotly", "scipy", "grpc"},
        ),
        ("raysim.population.summary", {"matplotlib", "torch", "ray", "mlflow"}),
        ("raysim.executors.ray.failure_policy", {"ray", "torch", "numpy", "mlflow"}),
        (
            "raysim.experiment.run, raysim.experiment.resume",
            {"ray", "mlflow", "tensorboardX", "matplotlib", "plotly", "jinja2", "torchvision", "scipy", "grpc"},
        ),
        ("raysim.tracking.run_reader", {"ray", "mlflow", "plotly", "matplotlib"}),
        (
            "raysim.executors.ray.client_actor",
            {"mlflow", "pydantic", "torch_pruning", "triton", "matplotlib", "plotly"},
        ),
    ],
)
def test_an_import_stays_light(modules, not_loaded):
    code = f"import {modules}, sys; print(*(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not_loaded.isdisjoint(done.stdout.split())
    assert "raysim" in done.stdout.split()
