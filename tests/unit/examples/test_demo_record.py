"""The demo's figures as rows: every one of the README's is there, and earlier runs stay."""

import csv

from retrieval_demo import record as module
from retrieval_demo.comparison import OFF, ON
from test_demo_findings import findings


def test_a_run_is_appended(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "version", lambda name: f"{name} 1.0")
    monkeypatch.setattr(module, "commit", lambda: "abc1234")
    file = tmp_path / "results" / "demo.csv"
    run = findings(settings={"documents": 120})
    module.record(file, run, 61.4)
    module.record(file, run, 59.7)
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [(row["stage"], row["side"]) for row in rows] == 2 * [
        ("exact retrieval", OFF), ("exact retrieval", ON), ("the whole demo", "both")
    ]  # fmt: skip
    off, on, whole = rows[3:]
    assert (off["median_seconds"], on["median_seconds"], whole["median_seconds"]) == ("6", "2", "60")
    assert (off["median_peak_mib"], on["largest_difference"], on["runs"]) == ("4096.0", "4.0e-06", "3")
    assert {row["commit"] for row in rows} == {"abc1234"}


def test_older_rows_with_fewer_columns_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "version", lambda name: "1.0")
    file = tmp_path / "demo.csv"
    file.write_text("date,stage,side,median_seconds\n2026-01-01,exact retrieval,PyLate,15.06\n")
    module.record(file, findings(settings={"documents": 120}), 60)
    with file.open(newline="") as opened:
        first, *others = csv.DictReader(opened)
    assert (first["median_seconds"], first["documents"], len(others)) == ("15.06", "", 3)


def test_the_commit_is_named():
    assert module.commit()
