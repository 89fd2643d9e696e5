"""Train one experiment: `ray job submit -- python jobs/train.py CONFIG` takes the arguments of `raysim run`."""

import sys

from raysim.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
