"""Changes of settings as the command line takes them; light, since jobs refuse bad input before they load PyTorch."""

import json
from collections.abc import Mapping
from typing import Any


def as_overrides(changes: Mapping[str, Any]) -> tuple[str, ...]:
    """Return changes of settings, by dotted name, as `--set` takes them."""
    return tuple(f"{name}={json.dumps(value)}" for name, value in changes.items())
