"""Studies, comparisons, sweeps and replays of runs."""
