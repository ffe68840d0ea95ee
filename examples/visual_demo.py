"""Show li-plugins in colpali-engine: train a tiny visual retriever on pages of text, and ask it for them.

Renders abstracts as pictures, trains a small ColModernVBert from nothing with the plugin off and on, asks for each page
by some of its words, and compares. The exit status is 1 when the sides differ. Writes a picture of where on a page each
word of a query finds its match.
"""

from __future__ import annotations

from pathlib import Path

import click
from retrieval_demo.collection import read_collection
from retrieval_demo.errors import DemoError
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import li_plugins

HERE = Path(__file__).resolve().parent
LIBRARY, PATCHED = "colpali-engine", "colpali-engine + li-plugins"
TOLERANCE = 1e-3
"""Largest difference between losses, and between scores."""
CHECKED_STEPS = 20
"""Steps whose losses are compared. Later ones tell nothing: each step multiplies a rounding of the one before."""


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--data", type=click.Path(path_type=Path), default=HERE / "cranfield",
              help="Folder with a collection in BEIR layout.", show_default="Cranfield, bundled")  # fmt: skip
@click.option("--pages", "count", type=click.IntRange(min=2), default=48, help="How many documents become pages.")
@click.option("--steps", type=click.IntRange(min=1), default=120, help="Training steps.")
@click.option("--output", type=click.Path(path_type=Path), default=HERE / "output",
              help="Folder for the picture.", show_default="examples/output")  # fmt: skip
def main(data: Path, count: int, steps: int, output: Path) -> None:
    """Run both sides; the exit status says whether they agreed."""
    console = Console(highlight=False)
    try:
        collection = read_collection(data, None)
    except DemoError as error:
        console.print(f"[bold red]The demo cannot run:[/] {error}", soft_wrap=True)
        raise SystemExit(2) from None
    with console.status("Importing colpali-engine (its own imports take a while)"):
        from visual_retrieval import experiment, pages, picture

    rendered = [page for page in map(pages.render, collection.documents) if len(page.words) >= pages.QUERY_WORDS]
    rendered = rendered[:count]
    vocabulary = pages.Vocabulary(rendered)
    console.print(f"{len(rendered)} pages of {pages.SIDE} x {pages.SIDE} pixels, {len(vocabulary):,} words")
    with Progress(console=console) as progress:
        off = experiment.train(rendered, vocabulary, steps, progress, LIBRARY.ljust(len(PATCHED)))
        li_plugins.enable("colpali", strict=True)
        on = experiment.train(rendered, vocabulary, steps, progress, PATCHED)
    queries, documents = experiment.vectors(on.model, rendered, vocabulary)
    scores = experiment.score(queries, documents)
    calls = {row.target: row.calls for row in li_plugins.status().rows if row.adapter == "colpali" and row.calls}
    with li_plugins.suspended():
        expected = experiment.score(queries, documents)
    li_plugins.disable_all()

    table = Table("", LIBRARY, PATCHED, box=None)
    table.add_row("loss of the first step", f"{off.losses[0]:.4f}", f"{on.losses[0]:.4f}")
    table.add_row("loss of the last step", f"{off.losses[-1]:.4f}", f"{on.losses[-1]:.4f}")
    table.add_row("training", f"{off.seconds:.1f} s", f"{on.seconds:.1f} s")
    first = [f"{experiment.found_first(found):.0%}" for found in (expected, scores)]
    table.add_row("queries whose page comes first", *first)
    console.print(table)
    console.print("calls:", ", ".join(f"{target.rpartition(':')[2]} {count}" for target, count in calls.items()))
    checked = list(zip(on.losses, off.losses, strict=True))[:CHECKED_STEPS]
    loss_difference = max(abs(mine - theirs) for mine, theirs in checked)
    score_difference = (scores - expected).abs().max().item()
    agreed = loss_difference < TOLERANCE and score_difference < TOLERANCE
    console.print(
        f"The two sides {'agree' if agreed else 'DIFFER'}: losses of the first {len(checked)} steps by at most "
        f"{loss_difference:.0e}, scores of one model by at most {score_difference:.0e}."
    )

    output.mkdir(parents=True, exist_ok=True)
    path = output / "similarity.png"
    picture.save_similarity(
        path, on.model, rendered[0], experiment.questions(rendered, experiment.UNSEEN)[0], vocabulary
    )
    console.print(path, soft_wrap=True)
    raise SystemExit(0 if agreed else 1)


if __name__ == "__main__":
    main()
