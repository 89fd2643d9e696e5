"""Pages in a real browser: MLflow's pages on a run of 1,000 clients, and the run's report."""

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console
from rich.text import Text

from raysim.analysis.comparison import compare
from raysim.config import loader
from raysim.executors.in_process import InProcessRunner
from raysim.experiment import run as experiment
from tests.conftest import CONFIGS, ROOT
from tests.servers import Server, free_port
from tests.stores import store_in
from tests.terminals import Terminal
from tests.ui.chromium import NARROW, WIDE, Visit, chromium, missing, visit

REASON = missing()
pytestmark = [
    pytest.mark.ui, pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=REASON or "-"),
]  # fmt: skip

USABLE_S = 5.0
"""From the address to drawn charts, in the fastest visit."""
VISITS = 6
"""Visits until one is fast enough: what else the machine does delays single visits."""
SETTINGS = (
    "population.clients=1000", "selection.clients_per_round=100", "rounds=10", "training.epochs=1",
    "data.partition={name: resample, examples_per_client: 20}", "model.options={channels: [4, 8], hidden: 16}",
    "executor.kind=in-process",
)  # fmt: skip
DENSE = ("method.name=fedavg", "tracking.register_model=null", "tracking.system_metrics=false")
SECTIONS = ("headline", "accuracy", "pruning", "coverage", "timeline", "partition", "diagnostics", "config")
DESCRIBED = (
    "test accuracy", "of FedAvg", "10 rounds in", "ca-hfp trains cnn (", "100 of 1,000 clients a round",
)  # fmt: skip
"""What the run's description says, as MLflow shows it."""
PAGES = {"report": (SECTIONS, 6, "body"), "comparison": (("table", "fronts", "curves"), 5, "#table")}
"""Pages that open from disk: their sections, how many figures they have at least, and where their picture begins."""
PICTURES = os.environ.get("RAYSIM_PICTURES", "")
"""Folder for pictures of the pages; none = none are taken."""
MLFLOWS_OWN = (
    # MLflow asks who is logged in; a server without accounts has no such page.
    (
        "error: Failed to load resource: the server responded with a status of 404",
        "/ajax-api/2.0/mlflow/users/current",
    ),
    # The table of runs is set up with two options that its library calls by other names now.
    ("warning: AG Grid: since v27.1, `getRowNodeId` is deprecated", "/static-files/static/js/"),
    ("warning: AG Grid: since v27.1, `immutableData` is deprecated", "/static-files/static/js/"),
    # Chromium's note that a layout took two frames, which MLflow's listener to all errors prints.
    ("error: null ResizeObserver loop completed with undelivered notifications.", "/static-files/static/js/main."),
)
"""What MLflow's own pages complain of: how it begins, and where it comes from."""


@dataclass(frozen=True)
class Shown:
    """A run, and the server that shows it."""

    url: str
    store: str
    folder: Path
    run_id: str
    experiment_id: str

    @property
    def run(self) -> str:
        return f"{self.url}/#/experiments/{self.experiment_id}/runs/{self.run_id}"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("ui")
    store = store_in(folder)
    given = [part for each in (*SETTINGS, f"tracking.uri={store}") for part in ("--set", each)]
    command = [sys.executable, "-m", "raysim", "run", str(CONFIGS / "digits.yaml"), *given]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "--output", str(folder / "out"), "--quiet"], cwd=folder, env=environment, check=True)
    noted = json.loads((folder / "out" / "run.json").read_text())
    url = f"http://127.0.0.1:{free_port()}"
    where = ["--host", "127.0.0.1", "--port", url.rpartition(":")[2], "--workers", "1"]
    server = Server(
        [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, *where],
        f"{url}/health",
        folder / "mlflow.log",
        MLFLOW_DISABLE_TELEMETRY="true",
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    )
    try:
        server.start()
        yield Shown(url, store, folder / "out", noted["run_id"], noted["experiment_id"])
    finally:
        server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(shown: Shown) -> dict[str, Path]:
    """The run's report, and its comparison with FedAvg on the same data."""
    dense = shown.folder.parent / "dense"
    settings = loader.load(CONFIGS / "digits.yaml", (*SETTINGS, f"tracking.uri={shown.store}", *DENSE))
    experiment.run(experiment.prepare(settings, dense), InProcessRunner(), time.monotonic())
    compared = compare.compare([str(dense), str(shown.folder)])
    compare.write(compared, shown.folder.parent / "compared")
    return {
        "report": shown.folder / "report.html",
        "comparison": shown.folder.parent / "compared" / "compare.html",
    }


def complaints(seen: Visit) -> list[str]:
    """Complaints but for those that are known to be MLflow's own."""
    return [
        each
        for each in seen.complaints
        if not any(each.startswith(start) and f"({seen.home}{place}" in each for start, place in MLFLOWS_OWN)
    ]


def picture(page: Any, name: str, **options: Any) -> None:
    """Take a picture of what the window shows, in 128 colours."""
    if PICTURES:
        path = Path(PICTURES) / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=path, **options)
        with Image.open(path) as taken:
            small = taken.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        small.save(path, optimize=True)
        assert path.stat().st_size < 300_000, path


def without_assistant(page: Any) -> None:
    """Close the panel that MLflow opens beside its pages."""
    close = page.locator("[data-component-id='mlflow.assistant.chat_panel.close']")
    if close.count():
        close.click()
        page.wait_for_timeout(1000)  # the page takes the room


def test_the_runs_charts_draw_in_their_groups_within_five_seconds(shown: Shown, browser: Any) -> None:
    groups = {name.split("/")[0] for name in pq.read_schema(shown.folder / "rounds.parquet").names if "/" in name}
    seconds: list[float] = []
    with visit(browser, shown.url) as seen:
        page = seen.page
        page.goto(f"{shown.url}/#/experiments")
        page.get_by_text("digits").first.wait_for(timeout=120_000)
        for _ in range(3):
            page.goto("about:blank")
            started = time.monotonic()
            page.goto(f"{shown.run}/model-metrics")
            page.wait_for_selector(".js-plotly-plot .scatterlayer .trace path.js-line", timeout=120_000)
            seconds.append(time.monotonic() - started)
        headers = page.get_by_test_id("experiment-view-compare-runs-section-header")
        titles = {text.split("(")[0].strip() for text in headers.all_inner_texts()}
        lines = page.locator(".js-plotly-plot .scatterlayer .trace path.js-line")
        assert lines.count() >= 3
        points = [line.get_attribute("d").count("L") + 1 for line in lines.all()]
        assert min(points) >= 2, points  # of a straight line its ends alone are drawn
        assert max(points) >= 5, points
        without_assistant(page)
        picture(page, "mlflow_metrics")
    print(f"charts drawn after {', '.join(f'{each:.1f}' for each in seconds)} s")
    assert groups <= titles | {"system", "width_loss"}, titles  # of widths, MLflow has the accuracy
    assert complaints(seen) == []
    assert seen.refused == []
    assert min(seconds) < USABLE_S


def test_the_experiment_and_the_runs_overview_tell_what_was_run(shown: Shown, browser: Any) -> None:
    with visit(browser, shown.url) as seen:
        page = seen.page
        page.goto(f"{shown.url}/#/experiments/{shown.experiment_id}/runs")
        page.get_by_text("ca-hfp digits seed 0").first.wait_for(timeout=120_000)
        page.goto(shown.run)
        page.get_by_text(shown.run_id).first.wait_for(timeout=120_000)
        page.get_by_text("population.clients").first.wait_for(timeout=120_000)
        text = page.locator("body").inner_text()
        for part in ("FINISHED", "accuracy/global", "data_sha256", "method.name", *DESCRIBED):
            assert part.lower() in text.lower(), part
        without_assistant(page)
        picture(page, "mlflow_overview")
    assert complaints(seen) == []
    assert seen.refused == []


def test_the_machines_metrics_draw_apart(shown: Shown, browser: Any) -> None:
    with visit(browser, shown.url) as seen:
        page = seen.page
        page.goto(f"{shown.run}/system-metrics")
        page.locator(".js-plotly-plot .main-svg").first.wait_for(timeout=120_000)
        for name in ("cpu_utilization_percentage", "disk_usage_percentage", "network_receive_megabytes"):
            page.get_by_text(name, exact=True).first.wait_for(timeout=120_000)
        headers = page.get_by_test_id("experiment-view-compare-runs-section-header").all_inner_texts()
        without_assistant(page)
        picture(page, "mlflow_system")
    assert [text.split("(")[0].strip() for text in headers] == ["System metrics"]
    assert complaints(seen) == []
    assert seen.refused == []


def test_the_artifact_pane_shows_the_report_with_its_figures(shown: Shown, browser: Any) -> None:
    with visit(browser, shown.url) as seen:
        page = seen.page
        page.goto(f"{shown.run}/artifacts/report.html")
        frame = page.frame_locator("iframe.mlflow-html-iframe")
        frame.locator(".js-plotly-plot .main-svg").first.wait_for(timeout=120_000)
        for section in SECTIONS:
            assert frame.locator(f"#{section}").count() == 1, section
        assert frame.locator(".js-plotly-plot").count() >= 6
        without_assistant(page)
        page.wait_for_timeout(1000)
        page.get_by_text("Path: /").first.evaluate("element => { element.style.visibility = 'hidden' }")
        picture(page, "mlflow_report")
    assert complaints(seen) == []
    assert seen.refused == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_from_disk(
    pages: dict[str, Path], browser: Any, name: str, size: tuple[int, int], dark: bool
) -> None:
    home, (sections, figures, shown_first) = pages[name].as_uri(), PAGES[name]
    with visit(browser, home, size, dark) as seen:
        page = seen.page
        page.goto(home)
        page.locator(".js-plotly-plot .main-svg").first.wait_for(timeout=120_000)
        drawn = []
        for section in sections:
            page.locator(f"#{section}").scroll_into_view_if_needed()
            page.wait_for_timeout(150)
        for plot in page.locator(".js-plotly-plot").all():
            plot.scroll_into_view_if_needed()
            plot.locator(".main-svg").first.wait_for(timeout=60_000)
            drawn.append(plot.bounding_box())
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.evaluate(f"document.querySelector('{shown_first}').scrollIntoView()")
        page.wait_for_timeout(300)
        picture(page, f"{name}_{'narrow' if size == NARROW else 'wide'}_{'dark' if dark else 'light'}")
    assert len(drawn) >= figures
    assert all(box["width"] <= size[0] and box["height"] > 50 for box in drawn)
    assert overflow <= 0
    brightness = sum(int(part) for part in background.strip("rgba()").split(",")[:3]) / 3
    assert (brightness < 80) if dark else (brightness > 200)
    assert seen.complaints == []
    assert seen.asked == [home]


ERASED = re.compile(r"(?:\r|\x1b\[1A)\x1b\[2K")
"""What a live screen goes back with before it is drawn anew."""


def test_the_screen_of_a_run_has_a_bar_and_its_tiers(browser: Any, tmp_path: Path) -> None:
    """As a run draws it on a terminal of 92 columns, between two times that it is drawn."""
    given = ["--set", "executor.kind=in-process", "--set", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    command = [sys.executable, "-m", "raysim", "run", str(CONFIGS / "digits.yaml"), *given]
    terminal = Terminal([*command, "--output", str(tmp_path / "out")], ROOT, tmp_path / "stdout", columns=92)
    try:
        terminal.until(r"(?s)[89]/50.*fast-phone.*\x1b\[2K.*\d/50")
    finally:
        terminal.close()
    drawn = next(each for each in ERASED.split(terminal.shown) if re.search(" [89]/50", each))
    console = Console(record=True, force_terminal=True, width=92, file=io.StringIO())
    console.print(Text.from_ansi(drawn.replace("\r\n", "\n")))
    text = console.export_text(clear=False)
    tiers = ("microcontroller", "single-board", "slow-phone", "fast-phone")
    assert [name for name in tiers if f"\n{name} " not in text] == []
    with visit(browser, "about:") as seen:  # the drawing names fonts of the net, and does without
        seen.page.set_content(
            f"<body style='margin:0'>{console.export_svg(title='raysim run jobs/configs/digits.yaml')}"
        )
        if PICTURES:
            picture(seen.page.locator("svg").first, "terminal")
