"""raysim: `python ours.py BENCHMARK ROUNDS RESULT OVERRIDES...`, in raysim's environment."""

import sys
from pathlib import Path

JOBS = Path(__file__).parents[3] / "jobs"
sys.path[:0] = [str(Path(__file__).parent), str(JOBS)]

from bench_engine import CORES, build  # noqa: E402
from shared import Stopwatch, write  # noqa: E402

from raysim.core.tensors import one_thread  # noqa: E402
from raysim.executors.ray.client_actor import keep_freed_memory  # noqa: E402
from raysim.executors.ray.runner import RayRunner  # noqa: E402
from raysim.simulation.round import run_round  # noqa: E402
from raysim.simulation.transition import initial_state  # noqa: E402


def main(benchmark: str, rounds: int, result: Path, overrides: list[str]) -> None:
    """Run rounds on as many actors as processors; this process does the work of a driver actor."""
    keep_freed_memory()
    scenario = build(benchmark, *overrides)
    state = initial_state(scenario)
    with RayRunner(CORES, None) as runner, one_thread():
        executor, watch = runner.executor(scenario), Stopwatch()
        for _ in range(rounds):
            state, _ = run_round(scenario, state, executor)
            watch.lap()
    write(result, watch.seconds, state.params)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
