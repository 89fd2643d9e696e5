"""The types of arguments of commands."""

from pathlib import Path
from typing import Any

import click

from raysim.core.storage.expansion import expanded_text


class PathArgument(click.ParamType[Path]):
    """A path, with what `~` and environment variables stand for: the shell leaves those of `--output=~/runs`."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path.

        Raises:
            SettingError: If a variable or a user is unknown, or the text cannot be a path.
        """
        return Path(expanded_text(_shown(param), str(value)))


class UriArgument(click.ParamType[str]):
    """A path or a URI, expanded as a `PathArgument` is."""

    name = "uri"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the path or URI.

        Raises:
            SettingError: If a variable or a user is unknown, or the text cannot be a path.
        """
        return expanded_text(_shown(param), str(value))


def _shown(param: click.Parameter | None) -> str:
    return "path" if param is None else param.opts[0] if param.opts[0].startswith("-") else param.opts[0].upper()


PATH, URI = PathArgument(), UriArgument()
