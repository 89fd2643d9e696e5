"""The source of modules of Python's standard library: real text with natural users, on every machine."""

import importlib.util
from pathlib import Path

from raysim.core.errors import SettingError
from raysim.data.raw import RawData, Source, refuse_unread
from raysim.data.text import of_users

MODULES = (
    "abc", "argparse", "ast", "base64", "bdb", "bisect", "calendar", "cmd", "code", "codecs", "collections",
    "concurrent.futures", "configparser", "contextlib", "copy", "copyreg", "csv", "dataclasses", "datetime",
    "decimal", "difflib", "dis", "doctest", "enum", "filecmp", "fileinput", "fnmatch", "fractions", "ftplib",
    "functools", "getopt", "gettext", "glob", "gzip", "hashlib", "heapq", "hmac", "inspect", "io", "ipaddress",
    "locale", "logging", "lzma", "mailbox", "mimetypes", "numbers", "operator", "optparse", "os", "pathlib",
    "pdb", "pickle", "pickletools", "platform", "plistlib", "posixpath", "pprint", "profile", "pstats", "queue",
    "quopri", "random", "runpy", "sched", "selectors", "shelve", "shlex", "shutil", "site", "smtplib", "socket",
    "socketserver", "statistics", "string", "subprocess", "symtable", "tarfile", "tempfile", "textwrap",
    "threading", "timeit", "token", "tokenize", "trace", "traceback", "types", "typing", "uuid", "warnings",
    "weakref", "zipapp", "zipfile",
)  # fmt: skip
"""Each module is a user; they are in Python 3.11, 3.12 and 3.13, whose sources differ."""


def python_source(source: Source, length: int = 64, unit: str = "characters", users: int = len(MODULES)) -> RawData:
    """Return windows of Python's own source: the next character is the target, and each module is a user.

    Args:
        source: The `data` settings.
        length: Characters of a window.
        unit: `characters` or `bytes`.
        users: How many modules are read, in the order of their names.

    Raises:
        SettingError: If an option is not allowed, or the modules are installed without their source.
    """
    refuse_unread(source)
    if type(users) is not int or not 1 <= users <= len(MODULES):
        raise SettingError(f"data.options.users={users!r} is not allowed; allowed: 1 to {len(MODULES)}")
    return of_users(source, {name: _source_of(name) for name in MODULES[:users]}, unit, length)


def _source_of(name: str) -> str:
    spec = importlib.util.find_spec(name)
    origin = None if spec is None else spec.origin
    if origin in ("frozen", None) and spec is not None:
        origin = getattr(spec.loader_state, "filename", None)
    if origin is None or not Path(origin).is_file():
        raise SettingError(f"data.name='python-source': the source of module {name!r} is not installed")
    return Path(origin).read_text(encoding="utf-8")
