"""Read JSON that a file holds: whatever is wrong with it is a ValueError."""

import json
from typing import Any


def json_in(text: str | bytes) -> Any:
    """Return what a JSON text holds.

    Raises:
        ValueError: If it is damaged.

    >>> json_in("[" * 100_000)
    Traceback (most recent call last):
    ValueError: its JSON is nested too deeply
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
