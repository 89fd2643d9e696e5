"""Import the objects that users' dotted paths name, such as `my_pkg.scores:my_score` in the settings."""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from raysim.core.errors import SettingError, nearest_first


def is_dotted(name: str) -> bool:
    """Whether a name in the settings is a dotted path.

    >>> is_dotted("my_pkg.scores:my_score"), is_dotted("magnitude")
    (True, False)
    """
    return ":" in name


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
    except Exception as error:
        raise SettingError(
            f"{setting}={path!r}: module {module_name!r} cannot be imported ({type(error).__name__}: {error}); "
            "allowed: package.module:name, with the module installed or in the working directory"
        ) from error
    if not hasattr(module, name):
        known = ", ".join(nearest_first(name, [other for other in vars(module) if not other.startswith("_")])[:5])
        raise SettingError(f"{setting}={path!r}: module {module_name!r} has no {name!r}; nearest: {known}")
    if module_name.partition(".")[0] != "raysim":
        _LOADED.add(module_name)  # raysim itself is installed on every machine
    return getattr(module, name)


def users_modules() -> list[ModuleType]:
    """Return the user's modules that are not installed: their code must be sent to other processes."""
    packages = {name.partition(".")[0] for name in _LOADED}
    return [
        module
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in packages and not _is_installed(module)
    ]


def _is_installed(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None) or ""
    return not file or bool({"site-packages", "dist-packages"} & set(Path(file).parts))


_LOADED: set[str] = set()
