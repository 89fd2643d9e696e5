"""Measure what grows in long runs: memory, seconds a round, files, MLflow's database, the report.

Runs `jobs/configs/bench_long.yaml` as a user does, with all its files: many rounds of few clients, or with
`--clients 10000 --rounds 50` few rounds of many. First it proves that tables and MLflow have every round of every
client; then it reports sizes, and their growth per round or per row of the table of clients. Prints one JSON line
with `--json`, else a table.
"""

import argparse
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from benchmark import print_figures

from raysim.report import write
from raysim.simulation import records

CONFIG = Path(__file__).parent / "configs" / "bench_long.yaml"
POLL_S = 0.2
"""Seconds between two looks at the number of files of a run."""
OPENED_MS = 120_000


def run(folder: Path, rounds: int, clients: int) -> tuple[Path, int]:
    """Run the configuration; return its folder and the most files that it had at a moment."""
    output = folder / "run"
    overrides = [
        f"rounds={rounds}",
        f"selection.clients_per_round={clients}",
        f"population.clients={max(2 * clients, 100)}",
        f"tracking.uri=sqlite:///{folder}/mlflow.db",
    ]
    settings = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, "-m", "raysim", "run", str(CONFIG), "--output", str(output), "--quiet", *settings]
    with (folder / "errors.txt").open("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        most = 0
        while process.poll() is None:
            most = max(most, num_files(output))
            time.sleep(POLL_S)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{errors.read()}")
    return output, most


def num_files(folder: Path) -> int:
    """Return the number of files in a folder and below; some may come and go meanwhile."""
    return sum(not path.is_dir() for path in folder.rglob("*")) if folder.is_dir() else 0


def prove_complete(output: Path, rounds: int) -> tuple[dict[str, np.ndarray], int]:
    """Check that tables and MLflow have each round once; return the table of rounds, and the rows of clients."""
    table = records.read(output / "rounds.parquet")
    client_rounds = pq.read_table(output / "clients.parquet", columns=["round"])["round"].to_numpy()
    expected = list(range(1, rounds + 1))
    with sqlite3.connect(output.parent / "mlflow.db") as store:
        logged = store.execute("SELECT step FROM metrics WHERE key = 'traffic/total_bytes' ORDER BY step").fetchall()
    sides = {
        "rounds.parquet": table["round"].tolist(),
        "clients.parquet": np.unique(client_rounds).tolist(),
        "MLflow": [step for (step,) in logged],
    }
    for name, found in sides.items():
        if found != expected:
            raise SystemExit(f"{name} has {len(found)} rounds, not each of {rounds} once")
    if not (np.diff(client_rounds) >= 0).all():
        raise SystemExit("clients.parquet is not in the order of the rounds")
    return table, len(client_rounds)


def growth_per_round(values: np.ndarray) -> float:
    """Return the slope of a line through the last three quarters of some values, one per round."""
    settled = values[len(values) // 4 :].astype(np.float64)
    return float(np.polyfit(np.arange(len(settled)), settled, 1)[0]) if len(settled) > 1 else 0.0


def report_of(output: Path) -> dict[str, float | None]:
    """Write the report again; return the seconds, the size, and the seconds until Chromium shows it."""
    started, page = time.perf_counter(), output / "page.html"
    write.of_named(str(output), str(page))
    return {
        "report_write_s": time.perf_counter() - started,
        "report_mb": page.stat().st_size / 1e6,
        "report_open_s": seconds_to_open(page),
    }


def seconds_to_open(page: Path) -> float | None:
    """Return the seconds until Chromium has loaded a page and drawn its figures; None where there is no Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    found = shutil.which("chromium")
    if found is None:
        return None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        view = browser.new_page()
        started = time.perf_counter()
        view.goto(page.as_uri(), timeout=OPENED_MS)
        view.wait_for_selector(".js-plotly-plot .main-svg", timeout=OPENED_MS)
        seconds = time.perf_counter() - started
        browser.close()
    return seconds


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run, prove, and return the figures."""
    with tempfile.TemporaryDirectory() as folder:
        output, most_files = run(Path(folder), arguments.rounds, arguments.clients)
        table, rows = prove_complete(output, arguments.rounds)
        walls, memory = np.diff(table["wall_s"], prepend=0.0), table["driver_bytes"]
        tenth = max(1, arguments.rounds // 10)
        sizes = {name: (output / f"{name}.parquet").stat().st_size for name in records.TABLES}
        return {
            "rounds": arguments.rounds,
            "clients_per_round": arguments.clients,
            "rows": rows,
            "driver_mb_first": float(memory[min(4, len(memory) - 1)]) / 1e6,
            "driver_mb_last": float(memory[-1]) / 1e6,
            "driver_kb_per_round": growth_per_round(memory) / 1e3,
            "round_s_first_tenth": float(np.median(walls[1 : tenth + 1])),
            "round_s_last_tenth": float(np.median(walls[-tenth:])),
            "files_most": most_files,
            "files_at_end": num_files(output),
            "rounds_parquet_bytes_per_round": sizes["rounds"] / arguments.rounds,
            "clients_parquet_bytes_per_row": sizes["clients"] / rows,
            "channels_parquet_bytes_per_round": sizes["channels"] / arguments.rounds,
            "mlflow_mb": (output.parent / "mlflow.db").stat().st_size / 1e6,
            "mlflow_kb_per_round": (output.parent / "mlflow.db").stat().st_size / 1e3 / arguments.rounds,
            **report_of(output),
        }


def main() -> None:
    """Measure one length of run and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000, help="rounds of the run [2000]")
    parser.add_argument("--clients", type=int, default=20, help="clients of a round [20]")
    print_figures(parser, measure)


if __name__ == "__main__":
    main()
