"""`python -m raysim` is `raysim`."""

from raysim.cli import command_line

command_line()
