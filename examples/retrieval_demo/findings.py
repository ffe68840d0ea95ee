"""What the demo found: figures of both sides, agreement, verdict; as plain data."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from retrieval_demo.agreement import LOSS_LIMIT, SCORE_LIMIT, TIE, RankingAgreement
from retrieval_demo.comparison import SIDES, Comparison

PACKAGES = ("li-plugins", "pylate", "sentence-transformers", "transformers", "torch")


@dataclass
class Findings:
    """All that the report, the JSON file and the plot say."""

    settings: Mapping[str, Any]
    hardware: str
    memory_method: str
    comparisons: list[Comparison] = field(default_factory=list)
    rankings: list[RankingAgreement] = field(default_factory=list)
    losses: Mapping[str, list[float]] = field(default_factory=dict)
    largest_loss_difference: float = 0.0

    def problems(self) -> list[str]:
        """Everything that makes this run a failure, in sentences; empty when both sides agree."""
        found = []
        for ranking in self.rankings:
            if not ranking.same_ranking:
                found.append(
                    f"{ranking.title}: the rankings differ; documents {ranking.largest_swap:.3g} apart changed places, "
                    f"more than a tie ({TIE:g})"
                )
            if not ranking.same_scores:
                found.append(
                    f"{ranking.title}: scores differ by {ranking.largest_score_difference:.3g}, limit {SCORE_LIMIT:g}"
                )
        if not self.largest_loss_difference <= LOSS_LIMIT:
            found.append(f"training: losses differ by {self.largest_loss_difference:.3g}, limit {LOSS_LIMIT:g}")
        for comparison in self.comparisons:
            if not comparison.served:
                found.append(f"{comparison.title}: no call was answered by li-plugins; the status table says why")
            for target, count in comparison.declined.items():
                found.append(
                    f"{comparison.title}: {target} gave {count} calls back to PyLate; the status table says why"
                )
        return found

    def to_dict(self, status: Mapping[str, Any]) -> dict[str, Any]:
        """Return the same as plain data, with the status table that belongs to it."""
        return {
            "settings": dict(self.settings),
            "hardware": self.hardware,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "memory": MEMORY_METHODS[self.memory_method],
            "stages": [
                {
                    "title": comparison.title,
                    "speedup": comparison.speedup,
                    "memory_ratio": comparison.memory_ratio,
                    "calls_served": dict(comparison.served),
                    "calls_declined": dict(comparison.declined),
                    "sides": {
                        side: {
                            "median_seconds": comparison.sides[side].median_seconds,
                            "median_peak_bytes": comparison.sides[side].median_peak_bytes,
                            "seconds": comparison.sides[side].seconds,
                            "peak_bytes": comparison.sides[side].peak_bytes,
                        }
                        for side in SIDES
                    },
                }
                for comparison in self.comparisons
            ],
            "rankings": [
                {
                    "title": ranking.title,
                    "ndcg@10": dict(zip(SIDES, ranking.ndcg, strict=True)),
                    "recall@100": dict(zip(SIDES, ranking.recall, strict=True)),
                    "same_ranking": ranking.same_ranking,
                    "largest_swap": ranking.largest_swap,
                    "largest_score_difference": ranking.largest_score_difference,
                }
                for ranking in self.rankings
            ],
            "training": {
                "losses": dict(self.losses),
                "largest_loss_difference": self.largest_loss_difference,
            },
            "status": dict(status),
            "problems": self.problems(),
        }


MEMORY_METHODS = {
    "cuda": "peak of torch's CUDA allocator above what was allocated before the run",
    "rss": "peak resident set above the one before the run, high-water mark reset",
    "process": "growth of the peak resident set in a fresh process",
}


def hardware(device: str) -> str:
    """Name the machine in a few words: the GPU, or the processor and its cores."""
    import torch

    from li_plugins.index_diff.environment import processor

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()['model name']}, {threads} thread{'s' if threads > 1 else ''}"
