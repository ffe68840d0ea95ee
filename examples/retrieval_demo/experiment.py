"""The experiment: what is prepared once, and what is then measured on both sides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from retrieval_demo.agreement import Ranked, compare_rankings, largest_difference
from retrieval_demo.collection import Collection
from retrieval_demo.comparison import OFF, ON, SIDES, Comparison, compare, side_in_force
from retrieval_demo.embeddings import encode_once
from retrieval_demo.findings import Findings, hardware
from retrieval_demo.memory import available, method
from retrieval_demo.model import load_model, model_digest, save_model
from retrieval_demo.stages import (
    TRAINING_BATCH,
    TRAINING_BATCHES,
    Inputs,
    Reranking,
    Retrieval,
    Stage,
    Training,
    first_stage,
    queries_per_call,
)

CANDIDATES = 100
"""Documents per query that the first stage hands to ``rank.rerank``."""


def default_device() -> str:
    """Return ``"cuda"`` if there is a GPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def prepare(console: Console, collection: Collection, source: str | None, device: str, output: Path) -> Inputs:
    """Save the model, encode the collection with PyLate's own functions, find candidates and training pairs."""
    with side_in_force(OFF):
        folder = save_model(source, output / "model")
        model = load_model(folder, device)
        path, embeddings = encode_once(
            model, collection, model_digest(model), output, lambda title, total: progress(console, title, total)
        )
    lengths = [max(map(len, side)) for side in (embeddings.queries, embeddings.documents)]
    sizes = (len(embeddings.queries), lengths[0], len(embeddings.documents), lengths[1])
    per_call = queries_per_call(*sizes, available(device))
    if per_call < len(embeddings.queries):
        console.print(f"PyLate's grid does not fit in memory: both sides score {per_call} queries at a time.")
    return Inputs(
        model=folder,
        embeddings=path,
        device=device,
        document_ids=tuple(collection.document_ids),
        candidates=first_stage(collection.documents, collection.queries, CANDIDATES),
        pairs=training_pairs(collection),
        queries_per_call=per_call,
        source=source or "MiniLM, orthogonal head",
    )


def measure(console: Console, collection: Collection, inputs: Inputs) -> Findings:
    """Run every stage on both sides and compare what they found."""

    def both_sides(stage: type[Stage]) -> Comparison:
        with progress(console, f"{stage.title}, off and on", len(SIDES) * stage.repetitions) as advance:
            return compare(stage, inputs, advance)

    retrieval, reranking, training = both_sides(Retrieval), both_sides(Reranking), both_sides(Training)
    full = [Ranked.by_scores(collection.document_ids, retrieval.sides[side].results[-1]) for side in SIDES]
    ids = [[collection.document_ids[index] for index in chosen] for chosen in inputs.candidates]
    top = [Ranked.by_results(ids, reranking.sides[side].results[-1]) for side in SIDES]
    losses = {side: training.sides[side].results for side in SIDES}
    return Findings(
        settings={
            "collection": collection.name,
            "documents": len(collection.documents),
            "queries": len(collection.queries),
            "model": inputs.source,
            "device": inputs.device,
            "queries_per_call": inputs.queries_per_call,
            "candidates_per_query": len(ids[0]),
            "training_batches": TRAINING_BATCHES,
            "training_batch_size": TRAINING_BATCH,
        },
        hardware=hardware(inputs.device),
        memory_method=method(inputs.device),
        comparisons=[retrieval, reranking, training],
        rankings=[
            compare_rankings(retrieval.title, collection, *full),
            compare_rankings(reranking.title, collection, *top),
        ],
        losses=losses,
        largest_loss_difference=largest_difference(losses[OFF], losses[ON]),
    )


def training_pairs(collection: Collection) -> tuple[tuple[str, str], ...]:
    """Pair each query with its best document that has a text."""
    texts = dict(zip(collection.document_ids, collection.documents, strict=True))
    pairs = []
    for query_id, query in zip(collection.query_ids, collection.queries, strict=True):
        judged = {document: grade for document, grade in collection.judgments[query_id].items() if texts[document]}
        if judged:
            pairs.append((query, texts[max(judged, key=judged.__getitem__)]))
    return tuple(pairs)


@contextmanager
def progress(console: Console, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar for the time of a block, which tells how many of ``total`` were done."""
    columns = (TextColumn("{task.description:<28}"), BarColumn(36), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(title, total=total)
        yield lambda count: bars.advance(task, count)
