"""Train one experiment: `ray job submit -- python jobs/train.py CONFIG` takes the arguments of `raysim run`."""

import sys

from raysim.cli.main import command_line

if __name__ == "__main__":
    command_line(["run", *sys.argv[1:]])
