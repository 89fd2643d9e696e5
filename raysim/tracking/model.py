"""Log the final model to MLflow with its signature, and register it."""

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from torch import nn

from raysim.core import plugins
from raysim.core.errors import reason_of
from raysim.core.inputs import Inputs, each, predict
from raysim.core.log import info
from raysim.tracking.mlflow_writer import MlflowWriter, as_tracking_lost


def keep(tracker: MlflowWriter, model: nn.Module, example: Inputs, name: str | None) -> str | None:
    """Log a model in eval mode for `mlflow.pytorch.load_model`, and register it, unless that has been done already.

    Args:
        tracker: Writes the run of the model.
        model: The final global model.
        example: At least two inputs, so that the number of rows is left open.
        name: The name under which it gets a version in the registry; None: it is not registered.

    Returns:
        The version in the registry, if it is registered.
    """
    with _as_default(tracker.uri):
        model_id = logged(tracker)
        if model_id is None:
            info("logging the final model to MLflow")
            model_id = _log(tracker, model, example)
        if name is None:
            return None
        return registered(tracker, name) or _register(tracker, model_id, name)


def logged(tracker: MlflowWriter) -> str | None:
    """Return the id of the run's model, if there is a complete one."""
    with as_tracking_lost():
        outputs = tracker.client.get_run(tracker.run_id).outputs
        for output in [] if outputs is None else outputs.model_outputs:
            if tracker.client.get_logged_model(output.model_id).status == LoggedModelStatus.READY:
                return str(output.model_id)
    return None


def registered(tracker: MlflowWriter, name: str) -> str | None:
    """Return the version of the run's model in the registry, if it is registered."""
    with as_tracking_lost():
        found = tracker.client.search_model_versions(f"name = '{name}' and run_id = '{tracker.run_id}'")
    return str(found[0].version) if found else None


def _register(tracker: MlflowWriter, model_id: str, name: str) -> str:
    with as_tracking_lost():
        try:
            tracker.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"models:/{model_id}"
        return str(tracker.client.create_model_version(name, source, tracker.run_id, model_id=model_id).version)


def _log(tracker: MlflowWriter, model: nn.Module, example: Inputs) -> str:
    """Log a model as a graph, which needs no code of the user's; if it has none, with that code."""
    arrays = {name: tensor.numpy() for name, tensor in example.items()} if isinstance(example, Mapping) else {}
    inputs = arrays if isinstance(example, Mapping) else example.numpy()
    model.eval()
    with torch.no_grad():
        outputs = predict(model, each(torch.clone, example)).numpy()
    known: dict[str, Any] = {
        "name": "model",
        "input_example": inputs,
        "signature": mlflow.models.infer_signature(inputs, outputs),
        "pip_requirements": [f"torch=={torch.__version__.partition('+')[0]}", f"numpy=={np.__version__}"],
    }
    with (
        as_tracking_lost(),
        mlflow.start_run(run_id=tracker.run_id, nested=True, log_system_metrics=False),
        _without_remarks_of_export(),
    ):
        if _has_graph(model, example):
            info = mlflow.pytorch.log_model(model, serialization_format="pt2", **known)
        else:
            known["pip_requirements"].append("raysim")
            code = [str(path) for path in _users_code()]
            info = mlflow.pytorch.log_model(model, serialization_format="pickle", code_paths=code, **known)
    tracker.reopen()  # MLflow marks the run as finished once its model is logged
    return str(info.model_id)


def _has_graph(model: nn.Module, example: Inputs) -> bool:
    """Whether PyTorch can export the model; if not, the reason is printed."""
    if isinstance(example, Mapping):
        return False  # MLflow's loader of graphs passes on one array
    unread = io.StringIO()  # PyTorch prints the graph that it could not finish
    try:
        with redirect_stdout(unread), redirect_stderr(unread), _without_remarks_of_export():
            torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    except Exception as error:
        info(f"the final model is pickled, since PyTorch cannot export it: {reason_of(error)}")
        return False
    return True


@contextmanager
def _without_remarks_of_export() -> Iterator[None]:
    """Hide that recurrent layers keep their parameters in a list as well, which the graph does not read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"The tensor attributes? .*_flat_weights")
        yield


def _users_code() -> list[Path]:
    """Return the user's modules that are not installed: a pickled model needs them when it is loaded."""
    tops = {module.__name__.partition(".")[0] for module in plugins.users_modules()}
    found = []
    for module in plugins.users_modules():
        if module.__name__ in tops and module.__file__ is not None:
            path = Path(module.__file__)
            found.append(path.parent if path.name == "__init__.py" else path)
    return found


@contextmanager
def _as_default(uri: str) -> Iterator[None]:
    """Use our store in MLflow functions that use the global store."""
    previous = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else ""  # type: ignore[no-untyped-call]
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(previous)
