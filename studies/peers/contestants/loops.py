"""Plain loops, one per processor: `python loops.py BENCHMARK ROUNDS RESULT FORMAT OVERRIDES...`.

They send nothing, sum nothing and keep nothing: the floor of `jobs/bench_engine.py`. Every round starts from the
model as it was built, so there is no model to score; the sums of their updates show that they do raysim's work.
"""

import sys
from pathlib import Path

JOBS = Path(__file__).parents[3] / "jobs"
sys.path[:0] = [str(Path(__file__).parent), str(JOBS)]

from bench_engine import CORES, Rounds, build, floor_of, prove_same_work  # noqa: E402
from shared import Stopwatch, write  # noqa: E402

from raysim.executors.ray.runner import RayRunner  # noqa: E402


def main(benchmark: str, rounds: int, result: Path, memory_format: str, overrides: list[str]) -> None:
    """Run rounds; first show, in contiguous memory, that raysim sums the same updates."""
    work = Rounds(build(benchmark, *overrides), rounds)
    if memory_format == "contiguous":
        first = Rounds(work.scenario, 1)
        with RayRunner(CORES, None) as runner, floor_of(first) as floor:
            prove_same_work(first, first.run(runner.executor(first.scenario)), floor)
    with floor_of(work, memory_format) as floor:
        watch = Stopwatch()
        for round, cohort in work.cohorts.items():
            floor.train({round: cohort})
            watch.lap()
    write(result, watch.seconds, {})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5:])
