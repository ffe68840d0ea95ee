"""The demo's figures as rows of a CSV file, one run below the other."""

from __future__ import annotations

import csv
import datetime
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from retrieval_demo.comparison import SIDES
from retrieval_demo.findings import Findings


def record(path: Path, findings: Findings, seconds: float) -> None:
    """Append what a run found: a row for each stage and side, and one for the whole, which took so many seconds."""
    append(path, rows_of(findings, seconds))


def append(path: Path, found: list[dict[str, Any]]) -> None:
    """Append rows to a file, which may lack some of their columns and have others."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    rows += found
    columns = list(dict.fromkeys(name for row in reversed(rows) for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def rows_of(findings: Findings, seconds: float) -> list[dict[str, Any]]:
    """Return the rows of one run.

    ``largest_difference`` is the largest between the sides: of two scores, in training of two losses.
    """
    differences = {ranking.title: ranking.largest_score_difference for ranking in findings.rankings}
    common = {
        "documents": findings.settings["documents"],
        "hardware": findings.hardware,
        "torch": version("torch"),
        "pylate": version("pylate"),
        "commit": commit(),
        "remark": "; ".join(findings.problems()),
    }
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    found = []
    for comparison in findings.comparisons:
        difference = differences.get(comparison.title, findings.largest_loss_difference)
        for side in SIDES:
            runs = comparison.sides[side]
            measured = {
                "date": today,
                "stage": comparison.title,
                "side": side,
                "median_seconds": f"{runs.median_seconds:.3g}",
                "runs": len(runs.seconds),
                "median_peak_mib": f"{runs.median_peak_bytes / 2**20:.1f}",
                "largest_difference": f"{difference:.1e}",
            }
            found.append(measured | common)
    whole = {"date": today, "stage": "the whole demo", "side": "both", "median_seconds": f"{seconds:.0f}", "runs": 1}
    return [*found, whole | {"median_peak_mib": "", "largest_difference": ""} | common]


def commit() -> str:
    """Return the commit of the checkout, with a + when files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        described = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:  # no git
        return "unknown"
    return described.stdout.strip() or "unknown"
