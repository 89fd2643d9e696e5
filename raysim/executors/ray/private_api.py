"""Every use of Ray's private API, each with its reason; another version of Ray may change any of them.

`tests/executors/ray/test_private_api.py` pins them, and keeps the rest of the package free of others.
"""

import grpc
import ray
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc


def silence_standard_output() -> None:
    """Keep Ray from printing lost actors to standard output, which `ray.init(log_to_driver=False)` does not."""
    ray._private.worker._worker_logs_enabled = False


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
