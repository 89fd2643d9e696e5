"""`python -m raysim` is `raysim`."""

from raysim.cli.main import command_line

command_line()
