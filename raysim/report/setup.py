"""What was asked for, and what the bits depend on beyond that."""

from raysim.report.fragments import folded, table
from raysim.report.page import Section
from raysim.report.source import Recorded


def section(recorded: Recorded) -> Section:
    """Return the complete settings, folded, and which run it is, with versions and digests."""
    noted = recorded.noted
    told = {
        "MLflow run": noted.get("run_id"),
        "MLflow store": noted.get("tracking_uri"),
        "folder": noted.get("output_dir"),
        "data (SHA-256)": noted.get("data_sha256"),
        "partition (SHA-256)": noted.get("partition_sha256"),
        "final parameters (SHA-256)": recorded.summary.get("params_sha256"),
        "rows that no client owns": noted.get("leftover_rows"),
        **noted.get("environment", {}),
    }
    rows = [(name, str(value)) for name, value in told.items() if value is not None]
    html = folded("All settings: config.yaml, from which raysim run repeats the run", recorded.yaml)
    return Section("config", "Settings and versions", html=html + table(("", ""), rows, text_columns=2))
