"""Import and call what users' dotted paths name, such as `my_pkg.scores:my_score` in the settings."""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from raysim.core.errors import SettingError, kind_and_reason, nearest_first, reason_of, shortened

LIBRARY = "huggingface:"
"""Begins names that a library knows."""


def is_dotted(name: str) -> bool:
    """Whether a name in the settings is a dotted path.

    >>> is_dotted("my_pkg.scores:my_score"), is_dotted("magnitude"), is_dotted("huggingface:gpt2")
    (True, False, False)
    """
    return ":" in name and not name.startswith(LIBRARY)


def load(setting: str, path: str) -> Any:
    """Import what a dotted path names, from installed modules or the working directory.

    Args:
        setting: The setting that holds the path, for the error.
        path: `package.module:name`.

    Raises:
        SettingError: If the module cannot be imported or has no such name.
    """
    module_name, _, name = path.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise SettingError(
            f"{setting}={path!r}: module {module_name!r} cannot be imported ({described(error, path)}); "
            "allowed: package.module:name, with the module installed or in the working directory"
        ) from error
    if not hasattr(module, name):
        known = ", ".join(nearest_first(name, [other for other in vars(module) if not other.startswith("_")])[:5])
        raise SettingError(f"{setting}={path!r}: module {module_name!r} has no {name!r}; nearest: {known}")
    if module_name.partition(".")[0] != "raysim":
        _LOADED[path] = setting  # raysim itself is installed on every machine
    return getattr(module, name)


def parameters_of(setting: str, path: str, function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a user's function, by name.

    Raises:
        SettingError: If they cannot be read.
    """
    with calling(setting, path):
        return inspect.signature(function).parameters


def call(
    setting: str, path: str, function: Callable[..., Any], given: Mapping[str, Any], options: Mapping[str, Any]
) -> Any:
    """Call a user's function and return what it returns.

    Args:
        setting: The setting that holds its path, such as `data.name`; its options are those beside it.
        path: Its dotted path.
        function: The function, or a class.
        given: Keyword arguments that every such function may get.
        options: Keyword arguments from the settings.

    Raises:
        SettingError: If it does not take the options, or raises anything.
    """
    beside = f"{setting.rpartition('.')[0]}.options"
    for name in given.keys() & options.keys():
        raise SettingError(
            f"{beside}.{name}={shortened(options[name])} is not allowed: {setting}={path!r} has it given"
        )
    with calling(setting, path):
        try:
            inspect.signature(function).bind(**given, **options)
        except TypeError as error:
            raise SettingError(
                f"{beside}={shortened(options)} is not allowed for {setting}={path!r}: {reason_of(error)}"
            ) from None
        return function(**given, **options)


@contextmanager
def calling(setting: str, path: str) -> Iterator[None]:
    """Turn all that a user's code raises into a refusal, which names the setting, the error and the user's line.

    Args:
        setting: The setting that holds its path.
        path: Its dotted path.

    Raises:
        SettingError: If anything was raised within the context.
    """
    try:
        yield
    except SettingError:
        raise
    except (Exception, SystemExit) as error:
        raise SettingError(f"{setting}={path!r} fails: {described(error, path)}") from error


@contextmanager
def users_code() -> Iterator[None]:
    """Turn what a user's code raises, wherever it is called from, into a refusal as `calling` does.

    Errors that come from no code of the user's pass.

    Raises:
        SettingError: If a user's code that is not installed raised anything within the context.
    """
    try:
        yield
    except SettingError:
        raise
    except (Exception, SystemExit) as error:
        for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
            for path in _paths_of(frame):
                raise SettingError(f"{_LOADED[path]}={path!r} fails: {described(error, path)}") from error
        raise


def _paths_of(frame: FrameType) -> list[str]:
    """Return the dotted paths that lead to the module of a frame, or to its package; that of its function first."""
    if _is_of_packages(frame.f_code.co_filename):
        return []
    module = str(frame.f_globals.get("__name__"))
    exact = f"{module}:{frame.f_code.co_name}"
    near = [path for path in _LOADED if _package_of(path) == _package_of(module)]
    return sorted(near, key=lambda path: (path != exact, path.partition(":")[0] != module))


def described(error: BaseException, path: str) -> str:
    """Return the type and the text of an error, and the last line of the user's own code that it came from, if any.

    Args:
        error: The error, as it was caught.
        path: The dotted path of the user's code, or its name if it is none of the user's.
    """
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if _package_of(str(frame.f_globals.get("__name__"))) == _package_of(path):
            return f"{kind_and_reason(error)} ({frame.f_code.co_filename}:{line}, in {frame.f_code.co_name})"
    return kind_and_reason(error)


def _package_of(path: str) -> str:
    return path.partition(":")[0].partition(".")[0]


def users_modules() -> list[ModuleType]:
    """Return the user's modules that are not installed: their code must be sent to other processes."""
    packages = {_package_of(path) for path in _LOADED}
    return [
        module
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in packages and not _is_installed(module)
    ]


def _is_installed(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None) or ""
    return not file or _is_of_packages(file)


def _is_of_packages(file: str) -> bool:
    return bool({"site-packages", "dist-packages"} & set(Path(file).parts))


_LOADED: dict[str, str] = {}
"""Settings by the dotted path that they hold."""
