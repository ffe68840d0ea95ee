"""What the two sides found and what it cost: a table, JSON, rows of a CSV file."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median
from typing import Any

from retrieval_demo.findings import hardware
from retrieval_demo.record import commit
from retrieval_demo.report import duration, ratio, size
from rich import box
from rich.table import Table

from indexed_search.agreement import Agreement
from indexed_search.worker import BUILDING, STAGES, Done

OFF, ON = "colbert-ai", "colbert-ai + li-plugins"
NDCG_LIMIT = 0.02
"""Two trainings of the centroids, each by its own k-means, are two indexes; their nDCG@10 may differ by so much."""


@dataclass(frozen=True)
class Findings:
    """Both sides' work, by side, and what they found in each index, by the side that built it."""

    documents: int
    queries: int
    done: Mapping[str, Done]
    quality: Mapping[str, Mapping[str, tuple[float, float]]]
    """nDCG@10 and Recall@100 in each index, by the side that searched it."""
    agreements: Mapping[str, Agreement]

    def problems(self) -> list[str]:
        """Say what should not be; nothing when the sides agree."""
        found = [
            f"the index that {side} built is searched differently: scores by {agreement.largest_score_difference:.1e}, "
            f"swapped documents by {agreement.largest_swap:.1e}"
            for side, agreement in self.agreements.items()
            if not agreement.same
        ]
        apart = abs(self.quality[OFF][OFF][0] - self.quality[ON][ON][0])
        if apart > NDCG_LIMIT:
            found.append(f"nDCG@10 of the two indexes differs by {apart:.3f}, more than {NDCG_LIMIT}")
        found += [f"{target} fell back to colbert-ai: {why}" for target, why in self.done[ON].declined.items()]
        return found

    def stages(self) -> dict[str, tuple[float, float]]:
        """Return seconds of both sides by stage, and by what they add up to."""
        off, on = (self.done[side].seconds for side in (OFF, ON))
        found = {title: (off[title], on[title]) for title in STAGES}
        found["the index, all stages"] = tuple(sum(done[title] for title in BUILDING.values()) for done in (off, on))
        found["one query, median"] = tuple(median(self.done[side].query_seconds) for side in (OFF, ON))
        found["everything, in a fresh process"] = (off["everything"], on["everything"])
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        return {
            "hardware": hardware("cpu"),
            "documents": self.documents,
            "queries": self.queries,
            "seconds": {title: {OFF: off, ON: on} for title, (off, on) in self.stages().items()},
            "peak_bytes_of_building": {side: done.peak_bytes for side, done in self.done.items()},
            **{
                name: {built: {side: found[number] for side, found in by.items()} for built, by in self.quality.items()}
                for number, name in enumerate(("ndcg@10", "recall@100"))
            },
            "agreement": {
                side: {"score_difference": found.largest_score_difference, "swap": found.largest_swap}
                for side, found in self.agreements.items()
            },
            "calls": self.done[ON].calls,
            "problems": self.problems(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each stage and side.

        ``largest_difference`` is the largest between the scores of both sides in the index that this side built.
        """
        common = {
            "documents": self.documents,
            "queries": self.queries,
            "hardware": hardware("cpu"),
            "torch": version("torch"),
            "colbert-ai": version("colbert-ai"),
            "commit": commit(),
            "remark": "; ".join(self.problems()),
        }
        today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        found = []
        for title, seconds in self.stages().items():
            for side, value in zip((OFF, ON), seconds, strict=True):
                peak = self.done[side].peak_bytes if title.startswith("the index") else None
                measured = {
                    "date": today,
                    "stage": title,
                    "side": side,
                    "seconds": f"{value:.4g}",
                    "peak_mib": "" if peak is None else f"{peak / 2**20:.0f}",
                    "ndcg@10": f"{self.quality[side][side][0]:.4f}",
                    "largest_difference": f"{self.agreements[side].largest_score_difference:.1e}",
                }
                found.append(measured | common)
        return found


def cost(findings: Findings) -> Table:
    """Return the times of both sides, and the memory of building."""
    table = _table("", OFF, ON, "difference")
    for title, (off, on) in findings.stages().items():
        table.add_row(title, duration(off), duration(on), ratio(off / max(on, 1e-9), "faster", "slower"))
    peaks = [findings.done[side].peak_bytes for side in (OFF, ON)]
    if None not in peaks:
        off, on = (float(max(peak or 0, 2**20)) for peak in peaks)
        table.add_row("peak memory of building", size(off), size(on), ratio(off / on, "less", "more"))
    return table


def found(findings: Findings) -> Table:
    """Return quality and agreement."""
    table = _table("in the index that was built by", OFF, ON)
    for number, metric in enumerate(("nDCG@10", "Recall@100")):
        for side in (OFF, ON):
            values = (f"{findings.quality[built][side][number]:.4f}" for built in (OFF, ON))
            table.add_row(f"{metric}, searched by {side}", *values)
    agreements = [findings.agreements[side] for side in (OFF, ON)]
    table.add_row(
        "largest score difference between the sides",
        *(f"{agreement.largest_score_difference:.1e}" for agreement in agreements),
    )
    table.add_row(
        "largest gap between swapped documents", *(f"{agreement.largest_swap:.1e}" for agreement in agreements)
    )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table
