"""The drift of an encoder's layers as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from li_plugins.errors import BadInput
from li_plugins.index_diff.layers import LayersReport

GREATEST, MEAN, INK, FAINT = "#0b7285", "#9aa5b1", "#1f2933", "#7b8794"


def save_plot(report: LayersReport, path: Path) -> None:
    """Write a PNG file.

    Raises
    ------
    BadInput
        When matplotlib is not installed, or the file cannot be written.
    """
    figure = draw(report)
    try:
        figure.savefig(path, dpi=160, format="png")
    except OSError as error:
        raise BadInput(f"--plot writes {path}", str(error), "name a file in a folder that is there") from error


def draw(report: LayersReport) -> Any:
    """Return a figure of matplotlib: the greatest and the mean drift of each layer, relative to its typical number.

    Raises
    ------
    BadInput
        When matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BadInput("--plot draws with matplotlib", str(error), "pip install matplotlib") from error
    names = [layer.name for layer in report.layers]
    figure = Figure(figsize=(max(6.0, 1.8 + 0.55 * len(names)), 4.2), layout="constrained")
    axes = figure.subplots()
    for label, colour, values in (
        ("greatest", GREATEST, [layer.relative for layer in report.layers]),
        ("mean", MEAN, [_mean_relative(layer.mean_abs, layer.max_abs, layer.relative) for layer in report.layers]),
    ):
        # a logarithm has no place for 0: what does not drift is no point
        points = [(place, value) for place, value in enumerate(values) if value > 0]
        axes.plot(*zip(*points, strict=True) if points else ((), ()), "o-", color=colour, label=label, markersize=5)
    axes.axhline(report.tolerance, color=FAINT, linewidth=0.8, linestyle="--", label="tolerance")
    axes.set_yscale("log")
    axes.set_xlim(-0.4, len(names) - 0.6)
    axes.set_xticks(
        range(len(names)), names, rotation=35 if len(names) > 6 else 0, ha="right" if len(names) > 6 else "center"
    )
    axes.set_ylabel("|a - b| over the layer's root mean square", color=INK, fontsize=9)
    axes.set_title("Drift of the encoder's layers", loc="left", fontsize=12, weight="bold", color=INK)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.tick_params(which="both", labelsize=8.5, color="#cbd2d9", labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#cbd2d9")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _mean_relative(mean: float, greatest: float, relative: float) -> float:
    return mean / greatest * relative if greatest else 0.0
