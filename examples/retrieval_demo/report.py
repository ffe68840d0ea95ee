"""The report in the terminal."""

from __future__ import annotations

from statistics import mean

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

import li_plugins
from retrieval_demo.agreement import LOSS_LIMIT, SCORE_LIMIT, TIE
from retrieval_demo.collection import Collection
from retrieval_demo.comparison import OFF, ON, Comparison
from retrieval_demo.findings import MEMORY_METHODS, Findings, hardware


def print_report(console: Console, findings: Findings) -> None:
    """Print who answered the calls, what was found, what it cost, and the verdict."""
    _heading(console, "Who answered PyLate's calls", "li_plugins.status()")
    console.print(li_plugins.status())
    _heading(console, "What was found", "both sides, same embeddings")
    console.print(_quality(findings))
    _heading(console, "How far the two sides are apart")
    console.print(_agreement(findings))
    _heading(console, "What it cost", findings.hardware)
    console.print(_cost(findings))
    console.print(f"[dim]medians; memory is the {MEMORY_METHODS[findings.memory_method]}[/]")
    console.print()
    console.print(_verdict(findings))


def introduce(console: Console, collection: Collection, source: str | None, device: str) -> None:
    """Print what is searched, and with what."""
    empty = collection.documents.count("")
    console.print(
        f"[bold]{collection.name}[/]: {len(collection.documents):,} documents"
        + (f" ({empty} empty)" if empty else "")
        + f", {len(collection.queries):,} queries\n"
        + f"{source or 'MiniLM with an orthogonal head of 128 dimensions'}, on {hardware(device)}\n"
    )


def _heading(console: Console, title: str, note: str = "") -> None:
    """Print the line above a table."""
    console.print(f"\n[bold]{title}[/]" + (f"  [dim]{note}[/]" if note else ""))


def _quality(findings: Findings) -> Table:
    """Quality of the rankings."""
    table = _table("", OFF, ON)
    for ranking in findings.rankings:
        for metric, (off, on) in (("nDCG@10", ranking.ndcg), ("Recall@100", ranking.recall)):
            table.add_row(f"{ranking.title}, {metric}", f"{off:.4f}", f"{on:.4f}")
    batches = findings.settings["training_batches"]
    for when, steps in (("first", slice(batches)), ("last", slice(-batches, None))):
        means = (mean(findings.losses[side][steps]) for side in (OFF, ON))
        table.add_row(f"training, mean loss of the {when} pass", *(f"{value:.4f}" for value in means))
    return table


def _agreement(findings: Findings) -> Table:
    """Largest differences and their limits."""
    table = _table("", "largest", "limit", "agree")
    for ranking in findings.rankings:
        table.add_row(
            f"{ranking.title}, score difference",
            _small(ranking.largest_score_difference),
            f"{SCORE_LIMIT:.0e}",
            _mark(ranking.same_scores),
        )
        table.add_row(
            f"{ranking.title}, gap between swapped documents",
            _small(ranking.largest_swap),
            f"{TIE:.0e}",
            _mark(ranking.same_ranking),
        )
    steps = len(next(iter(findings.losses.values())))
    table.add_row(
        f"training, loss difference over {steps} steps",
        _small(findings.largest_loss_difference),
        f"{LOSS_LIMIT:.0e}",
        _mark(findings.largest_loss_difference <= LOSS_LIMIT),
    )
    return table


def _cost(findings: Findings) -> Table:
    """Time and memory of each stage."""
    table = _table("", OFF, ON, "difference")
    for comparison in findings.comparisons:
        off, on = (comparison.sides[side] for side in (OFF, ON))
        table.add_row(
            f"{comparison.title}, time",
            duration(off.median_seconds),
            duration(on.median_seconds),
            ratio(comparison.speedup, "faster", "slower"),
        )
        table.add_row(
            f"{comparison.title}, peak memory",
            size(off.median_peak_bytes),
            size(on.median_peak_bytes),
            ratio(comparison.memory_ratio, "less", "more"),
        )
    return table


def _verdict(findings: Findings) -> Panel:
    """One panel: what this run showed, or what is wrong."""
    problems = findings.problems()
    if problems:
        return Panel("\n".join(problems), title="The two sides do not agree", border_style="red", title_align="left")
    retrieval = findings.comparisons[0]
    return Panel(_summary(retrieval), title="The two sides agree", border_style="green", title_align="left")


def _summary(retrieval: Comparison) -> str:
    """Say the result in a sentence."""
    return (
        f"Same rankings but for ties. {retrieval.title.capitalize()} with li-plugins: "
        f"{ratio(retrieval.speedup, 'faster', 'slower')}, {ratio(retrieval.memory_ratio, 'less', 'more')} memory."
    )


def _table(*columns: str) -> Table:
    """Make a table with its first column for names and the others for figures."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=bool(index))
    return table


def _small(value: float) -> str:
    """Write a difference in two figures; none at all as 0."""
    return f"{value:.1e}" if value else "0"


def _mark(good: bool) -> str:
    """Yes or no, coloured."""
    return "[green]yes[/]" if good else "[bold red]no[/]"


def ratio(value: float, better: str, worse: str) -> str:
    """``3.2x faster``, ``1.4x slower``, or ``same`` within 10 %."""
    if 1 / 1.1 <= value <= 1.1:
        return "same"
    word, factor = (better, value) if value > 1 else (worse, 1 / value)
    return f"{factor:.0f}x {word}" if factor >= 10 else f"{factor:.1f}x {word}"


def duration(seconds: float) -> str:
    """Three figures with a unit."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def size(count: float) -> str:
    """Bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"
