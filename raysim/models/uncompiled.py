"""Keeps PyTorch's compiler, which takes more than a second to import, out of what is only counted."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

COMPILER = "torch._dynamo"
EXCLUDED = "__dynamo_disable"
"""Where PyTorch keeps, beside a function that is never compiled, what it calls in its place."""


@contextmanager
def without_compiler() -> Iterator[None]:
    """Call what PyTorch never compiles as it is, as long as the context lasts; without effect once it is imported."""
    if COMPILER in sys.modules:
        yield
        return
    called: list[Any] = []

    def disable(function: Callable[..., Any], *_: object, **__: object) -> Callable[..., Any]:
        called.append(function)
        return function

    stand_in = ModuleType(COMPILER)
    vars(stand_in)["disable"] = disable
    sys.modules[COMPILER] = vars(torch)["_dynamo"] = stand_in
    try:
        yield
    finally:
        del sys.modules[COMPILER], vars(torch)["_dynamo"]
        for function in called:
            vars(function).pop(EXCLUDED, None)
