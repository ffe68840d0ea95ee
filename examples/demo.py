"""Show what li-plugins does to PyLate on real text: the same rankings, in less time and less memory.

Encodes a collection once, then retrieves exactly, reranks and trains, each with the plugin off and on, and compares.
It is a check as well: the exit status is 1 when rankings differ beyond ties, scores beyond 1e-3, or when a call that
should be patched fell back to PyLate.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import click
from retrieval_demo.collection import Collection, read_collection
from retrieval_demo.errors import DemoError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import li_plugins

HERE = Path(__file__).resolve().parent
CANDIDATES = 100
"""Documents per query that the first stage hands to ``rank.rerank``."""


@click.command(help=__doc__, context_settings={"show_default": True, "max_content_width": 100})
@click.option("--data", type=click.Path(path_type=Path), default=HERE / "cranfield",
              help="Folder with a collection in BEIR layout.", show_default="Cranfield, bundled")  # fmt: skip
@click.option("--model", default=None, help="Folder or hub id of a model for pylate.models.ColBERT.",
              show_default="MiniLM with an orthogonal head")  # fmt: skip
@click.option("--device", default=None, help="Where to compute.", show_default="cuda if there is one, else cpu")
@click.option("--documents", type=click.IntRange(min=1), default=None,
              help="Keep only the first so many documents.", show_default="all")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), default=HERE / "output",
              help="Folder for results, model and embeddings.", show_default="examples/output")  # fmt: skip
def main(data: Path, model: str | None, device: str | None, documents: int | None, output: Path) -> None:
    """Run the demo; the exit status says whether both sides agreed."""
    console = Console(highlight=False)
    try:
        agreed = run(console, data=data, source=model, device=device, limit=documents, output=output)
    except DemoError as error:
        console.print(f"[bold red]The demo cannot run:[/] {error}", soft_wrap=True)
        raise SystemExit(2) from None
    raise SystemExit(0 if agreed else 1)


def run(
    console: Console, *, data: Path, source: str | None, device: str | None, limit: int | None, output: Path
) -> bool:
    """Encode, measure every stage on both sides, report; return whether the sides agree.

    Raises
    ------
    DemoError
        Something that the demo needs is missing; the message says what to do.
    """
    collection = read_collection(data, limit)
    with console.status("Importing PyLate (its own imports take a while)"):
        import_libraries()
    from retrieval_demo.agreement import Ranked, compare_rankings, largest_difference
    from retrieval_demo.comparison import OFF, ON, SIDES, compare, side_in_force
    from retrieval_demo.embeddings import encode_once
    from retrieval_demo.findings import Findings, hardware
    from retrieval_demo.memory import available, method
    from retrieval_demo.model import load_model, model_digest, save_model
    from retrieval_demo.plot import save_plot
    from retrieval_demo.report import print_report
    from retrieval_demo.stages import Inputs, Reranking, Retrieval, Training, first_stage, queries_per_call

    li_plugins.enable_all()
    if not any(row.state == "patched" for row in li_plugins.status().rows):
        console.print(li_plugins.status())
        raise DemoError("nothing of PyLate is patched; the table above says why")

    device = device or default_device()
    output.mkdir(parents=True, exist_ok=True)
    console.print(introduction(collection, source, hardware(device)))
    with Progress(
        TextColumn("{task.description:<28}"), BarColumn(36), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    ) as progress:

        def start(title: str, total: int) -> Callable[[int], None]:
            task = progress.add_task(title, total=total)
            return lambda count: progress.advance(task, count)

        with side_in_force(OFF):
            folder = save_model(source, output / "model")
            model = load_model(folder, device)
            path, embeddings = encode_once(model, collection, model_digest(model), output, start)
        queries, documents = embeddings.queries, embeddings.documents
        per_call = queries_per_call(
            len(queries), max(map(len, queries)), len(documents), max(map(len, documents)), available(device)
        )
        if per_call < len(queries):
            progress.print(f"PyLate's grid does not fit in memory: both sides score {per_call} queries at a time.")
        inputs = Inputs(
            model=folder,
            embeddings=path,
            device=device,
            document_ids=tuple(collection.document_ids),
            candidates=first_stage(collection.documents, collection.queries, CANDIDATES),
            pairs=training_pairs(collection),
            queries_per_call=per_call,
        )
        retrieval, reranking, training = (
            compare(stage, inputs, start(f"{stage.title}, off and on", len(SIDES) * stage.repetitions))
            for stage in (Retrieval, Reranking, Training)
        )

    full = [Ranked.by_scores(collection.document_ids, retrieval.sides[side].results[-1]) for side in SIDES]
    ids = [[collection.document_ids[index] for index in chosen] for chosen in inputs.candidates]
    top = [Ranked.by_results(ids, reranking.sides[side].results[-1]) for side in SIDES]
    losses = {side: training.sides[side].results for side in SIDES}
    findings = Findings(
        settings={
            "collection": collection.name,
            "documents": len(documents),
            "queries": len(queries),
            "model": source or "MiniLM, orthogonal head",
            "device": device,
            "queries_per_call": per_call,
            "candidates": len(inputs.candidates[0]),
        },
        hardware=hardware(device),
        memory_method=method(device),
        comparisons=[retrieval, reranking, training],
        rankings=[
            compare_rankings(retrieval.title, collection, *full),
            compare_rankings(reranking.title, collection, *top),
        ],
        losses=losses,
        largest_loss_difference=largest_difference(losses[OFF], losses[ON]),
    )
    print_report(console, findings)
    (output / "results.json").write_text(json.dumps(findings.to_dict(li_plugins.status().to_dict()), indent=2) + "\n")
    save_plot(findings, output / "results.png")
    console.print(f"[dim]{output / 'results.json'}, {output / 'results.png'}[/]", soft_wrap=True)
    return not findings.problems()


def import_libraries() -> None:
    """Import PyLate without its chatter, and what else the demo needs.

    Raises
    ------
    DemoError
        One of them is not installed.
    """
    try:
        for name in ("pylate.models", "sklearn", "matplotlib"):
            importlib.import_module(name)
        import transformers
    except ImportError as error:
        raise DemoError(
            f"{error}; run it with `tox run -e demo`, or pip install 'li-plugins\\[pylate]' matplotlib"
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def default_device() -> str:
    """Return ``"cuda"`` if there is a GPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def introduction(collection: Collection, source: str | None, machine: str) -> str:
    """Two lines: what is searched, and with what."""
    empty = collection.documents.count("")
    return (
        f"[bold]{collection.name}[/]: {len(collection.documents):,} documents"
        + (f" ({empty} empty)" if empty else "")
        + f", {len(collection.queries):,} queries\n"
        + f"{source or 'MiniLM with an orthogonal head of 128 dimensions'}, on {machine}\n"
    )


def training_pairs(collection: Collection) -> tuple[tuple[str, str], ...]:
    """Each query with its best document that has a text."""
    texts = dict(zip(collection.document_ids, collection.documents, strict=True))
    pairs = []
    for query_id, query in zip(collection.query_ids, collection.queries, strict=True):
        judged = {document: grade for document, grade in collection.judgments[query_id].items() if texts[document]}
        if judged:
            pairs.append((query, texts[max(judged, key=judged.__getitem__)]))
    return tuple(pairs)


if __name__ == "__main__":
    main()
