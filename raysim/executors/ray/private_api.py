"""Every use of Ray's private API, each with its reason; another version of Ray may change any of them.

`tests/executors/ray/test_private_api.py` pins them, and keeps the rest of the package free of others.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import ray
from ray._private import ray_constants
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc


def silence_standard_output() -> None:
    """Keep Ray from printing lost actors to standard output, which `ray.init(log_to_driver=False)` does not."""
    ray._private.worker._worker_logs_enabled = False


@contextmanager
def on_loopback() -> Iterator[None]:
    """Let a Ray that is started meanwhile have the node address 127.0.0.1, so that all its ports listen there alone.

    `ray.init` replaces that address by one that other machines reach, except where Ray expects no cluster.
    """
    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    variables = {name: "0", **dict.fromkeys(METRICS_PORTS, NO_PORT)}
    old = {variable: os.environ.get(variable) for variable in variables}
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ.update(variables)
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        for variable, value in old.items():
            os.environ.pop(variable) if value is None else os.environ.update({variable: value})


METRICS_PORTS = ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")
"""Environment variables with the ports on which two of Ray's processes publish metrics, without a token."""
NO_PORT = "-1"
"""A port that cannot be opened: the processes log that and go on. Ray has no switch for these ports."""


def read_auth_mode_again() -> None:
    """Have Ray read `RAY_AUTH_MODE` again: it did when it was imported, and has no public way to change the mode."""
    Config.initialize("")


def demands_token(address: str, timeout_s: float) -> bool:
    """Whether the cluster at `HOST:PORT` refuses a call without a token; False if it does not answer.

    `ray.init` cannot be used to find out: without a token it fails in the same way as where no cluster is.
    """
    with grpc.insecure_channel(address) as channel:
        service = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            request = gcs_service_pb2.GetClusterIdRequest()  # type: ignore[attr-defined]
            service.GetClusterId(request, timeout=timeout_s)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False
