"""A command of raysim on one machine of a cluster that is all on this host.

Usage: python -m tests.executors.ray.run_on_machine ADDRESS FOLDER ...

On a host with several of Ray's machines a process joins the first one, unless it names another's temporary folder.
"""

import sys

import ray

from raysim.cli import main as cli

if __name__ == "__main__":
    address, folder, *arguments = sys.argv[1:]
    ray.init(address=address, _temp_dir=folder, log_to_driver=False)
    cli.main(arguments)
