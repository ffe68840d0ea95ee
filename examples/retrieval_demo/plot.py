"""The plot: time and peak memory of every stage, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from retrieval_demo.comparison import OFF, ON, SIDES, Comparison
from retrieval_demo.findings import Findings
from retrieval_demo.report import duration, ratio, size

COLOURS = {OFF: "#9aa5b1", ON: "#0b7285"}
BAR = 0.42
INK, FAINT = "#1f2933", "#7b8794"


def save_plot(findings: Findings, path: Path) -> None:
    """Write the plot as a PNG file."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.1, rect=(0, 0.055, 1, 0.885))
    left, right = figure.subplots(1, 2)
    comparisons = findings.comparisons
    _bars(left, comparisons, lambda runs: runs.median_seconds, duration)
    left.set_ylim(bottom=0)
    left.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    left.set_title("Time (seconds)", loc="left", fontsize=11, color=INK)
    _bars(right, comparisons, lambda runs: runs.median_peak_bytes / 2**20, lambda value: size(value * 2**20))
    right.set_yscale("log")
    right.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    right.set_title("Peak memory above the start (MiB, log scale)", loc="left", fontsize=11, color=INK)
    for axes, saved in (
        (left, [ratio(item.speedup, "faster", "slower") for item in comparisons]),
        (right, [ratio(item.memory_ratio, "less", "more") for item in comparisons]),
    ):
        titles = [item.title for item in comparisons]
        axes.set_xticks(range(len(titles)), [f"{title}\n{gain}" for title, gain in zip(titles, saved, strict=True)])
    figure.legend(
        *left.get_legend_handles_labels(), loc="upper right", ncols=2, frameon=False, fontsize=10, labelcolor=INK
    )
    figure.text(0.012, 0.955, _title(findings), fontsize=13, weight="bold", color=INK, va="center")
    figure.text(0.012, 0.025, _footer(findings), fontsize=8.5, color=FAINT, va="center")
    figure.savefig(path, dpi=160)


def _bars(
    axes: Axes,
    comparisons: Sequence[Comparison],
    value: Callable[..., float],
    label: Callable[[float], str],
) -> None:
    """Draw a pair of bars per stage, each with its figure above it."""
    for offset, side in zip((-BAR / 2, BAR / 2), SIDES, strict=True):
        heights = [value(item.sides[side]) for item in comparisons]
        places = [index + offset for index in range(len(heights))]
        bars = axes.bar(places, heights, width=BAR * 0.94, color=COLOURS[side], label=side, zorder=2)
        axes.bar_label(bars, [label(height) for height in heights], padding=2, fontsize=8.5, color=INK)
    axes.margins(y=0.12)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8, zorder=0)
    axes.tick_params(axis="x", length=0, labelsize=10, labelcolor=INK)
    axes.tick_params(axis="y", which="both", labelsize=8.5, color="#cbd2d9", labelcolor=FAINT)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#cbd2d9")


def _title(findings: Findings) -> str:
    """Say what was measured."""
    settings = findings.settings
    return f"{settings['collection']}: {settings['queries']:,} queries, {settings['documents']:,} documents"


def _footer(findings: Findings) -> str:
    """On what, and how."""
    verdict = "The two sides do not agree." if findings.problems() else "Same rankings but for ties."
    return f"{findings.hardware}. Medians of alternating runs. {verdict}"
