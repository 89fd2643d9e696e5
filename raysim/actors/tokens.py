"""Ray's authentication token: used where it is asked for, readable by its owner only, never shown."""

import os
from pathlib import Path

import grpc
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from raysim.errors import SettingError

TOKEN_FILE = Path(".ray") / "auth_token"
"""Where Ray keeps its token, under the user's home."""
WAY_IN = "Ray looks for it in RAY_AUTH_TOKEN, in the file RAY_AUTH_TOKEN_PATH, or in ~/.ray/auth_token"
PATIENCE_S = 10.0


def use_one() -> None:
    """Have Ray send the token that is at hand, if any; a mode that is set, `RAY_AUTH_MODE`, stays."""
    if os.environ.get("RAY_AUTH_MODE") is None and _is_at_hand():
        os.environ["RAY_AUTH_MODE"] = "token"
        Config.initialize("")  # Ray has read the mode when it was imported


def use_one_where_asked(address: str) -> None:
    """Have Ray send the token to a cluster that asks for one; by itself it sends none to an address that is named.

    To a cluster without tokens none may be sent: its actors could not answer a process that wants one of them.

    Raises:
        SettingError: If it asks for one, and there is none.
    """
    if os.environ.get("RAY_AUTH_MODE") is not None or not _is_asked(address):
        return
    if not _is_at_hand():
        raise SettingError(f"executor.address={address!r} asks for a token: {WAY_IN}")
    use_one()


def _is_at_hand() -> bool:
    """Whether there is a token where Ray looks for one; Ray's own answer would have it keep and demand that token."""
    named = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return named or (Path.home() / TOKEN_FILE).is_file()


def _is_asked(address: str) -> bool:
    if "://" in address or ":" not in address:
        return False  # Ray's own names, as auto
    with grpc.insecure_channel(address) as channel:
        service = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            request = gcs_service_pb2.GetClusterIdRequest()  # type: ignore[attr-defined]
            service.GetClusterId(request, timeout=PATIENCE_S)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False


def keep_private() -> None:
    """Take a token's file from all but its owner; Ray writes it readable for everybody on the machine."""
    file = Path.home() / TOKEN_FILE
    if file.is_file() and file.stat().st_uid == os.getuid():
        file.chmod(0o600)
