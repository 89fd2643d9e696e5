"""What is said on standard error; imports nothing, so that every process of a run starts quickly."""

import sys


def say(text: str) -> None:
    """Write one line to standard error."""
    print(text, file=sys.stderr, flush=True)
