"""One side's work in a process of its own: build an index, search indexes, and tell how long each stage took."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from retrieval_demo.memory import watch_peak

LOADING, OPENING, SEARCHING = "import, C++ extensions", "open the index", "search"
BUILDING = {
    "setup": "encode the sample",
    "train": "train centroids",
    "index": "encode and compress",
    "finalize": "invert the file",
}
"""Stages of a build by the method of colbert-ai's ``CollectionIndexer`` that does them."""
STAGES = (LOADING, *BUILDING.values(), OPENING, SEARCHING)
EXPERIMENT = "demo"

Ranking = tuple[list[int], list[float]]
"""Documents by their place in the collection, best first, and their scores."""


@dataclass(frozen=True)
class Job:
    """What a process is asked for."""

    patched: bool
    root: Path
    checkpoint: Path
    documents: list[str]
    queries: list[str]
    depth: int
    build: str
    """Name of the index to build; nothing is built without one."""
    search: list[str]
    """Names of the indexes to search."""


@dataclass
class Done:
    """What a process found."""

    seconds: dict[str, float] = field(default_factory=dict)
    """By stage; those of all searches are those of the first index."""
    peak_bytes: int | None = None
    """Of building, above what was in use before."""
    query_seconds: list[float] = field(default_factory=list)
    rankings: dict[str, list[Ranking]] = field(default_factory=dict)
    """By index, one for each query."""
    calls: dict[str, int] = field(default_factory=dict)
    """Calls that li-plugins answered, by target."""
    declined: dict[str, str] = field(default_factory=dict)
    """Reasons for calls that fell back to the library, by target."""


def work(job: Job, to: Connection, log: Path) -> None:
    """Do a job; send ``("stage", title)``, ``("step", done, of)``, and ``("done", Done)`` or ``("failed", text)``.

    Everything that the library prints goes to the log.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        to.send(("done", _Side(job, to.send).run()))
    except Exception as error:  # whatever it is, the parent shows it and points at the log
        import traceback

        traceback.print_exc()
        to.send(("failed", f"{type(error).__name__}: {error}"))
    finally:
        sys.stdout.flush()
        to.close()


class _Side:
    def __init__(self, job: Job, tell: Callable[[tuple[Any, ...]], None]) -> None:
        self.job, self.tell, self.done = job, tell, Done()

    def run(self) -> Done:
        started = time.perf_counter()
        with self.stage(LOADING):
            self.load()
        if self.job.build:
            self.build()
        for number, name in enumerate(self.job.search):
            self.search(name, timed=number == 0)
            if number == 0:
                self.done.seconds["everything"] = time.perf_counter() - started
        if self.job.patched:
            self.count()
        return self.done

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        self.tell(("stage", title))
        started = time.perf_counter()
        yield
        self.done.seconds[title] = time.perf_counter() - started

    def load(self) -> None:
        if self.job.patched:
            import li_plugins

            li_plugins.enable("colbert", strict=True)
        from colbert.modeling.colbert import ColBERT
        from colbert.search.index_storage import IndexScorer
        from colbert.search.strided_tensor import StridedTensor

        for owner in (ColBERT, IndexScorer, StridedTensor):
            owner.try_load_torch_extensions(False)

    def settings(self) -> Any:
        from colbert.infra import ColBERTConfig
        from retrieval_demo.model import DOCUMENT_LENGTH

        from indexed_search.checkpoint import QUERY_LENGTH

        return ColBERTConfig(
            nbits=2,
            doc_maxlen=DOCUMENT_LENGTH,
            query_maxlen=QUERY_LENGTH,
            root=str(self.job.root),
            experiment=EXPERIMENT,
            avoid_fork_if_possible=True,
        )

    @contextmanager
    def context(self) -> Iterator[None]:
        from colbert.infra import Run, RunConfig

        settings = RunConfig(nranks=1, root=str(self.job.root), experiment=EXPERIMENT, avoid_fork_if_possible=True)
        with Run().context(settings):
            yield

    def build(self) -> None:
        from colbert import Indexer
        from colbert.indexing.collection_indexer import CollectionIndexer

        for name, title in BUILDING.items():
            setattr(CollectionIndexer, name, self.timed(getattr(CollectionIndexer, name), title))
        with self.context(), watch_peak("cpu") as peak:
            indexer = Indexer(checkpoint=str(self.job.checkpoint), config=self.settings(), verbose=0)
            indexer.index(self.job.build, self.job.documents, overwrite="force_silent_overwrite")
        self.done.peak_bytes = peak.bytes

    def timed(self, method: Callable[..., Any], title: str) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            with self.stage(title):
                return method(*arguments, **keywords)

        return wrapped

    def search(self, name: str, timed: bool) -> None:
        import torch
        from colbert import Searcher

        started = time.perf_counter()
        self.tell(("stage", OPENING))
        with self.context():
            searcher = Searcher(
                index=name,
                checkpoint=str(self.job.checkpoint),
                collection=self.job.documents,
                config=self.settings(),
                verbose=0,
            )
        opened = time.perf_counter()
        self.tell(("stage", SEARCHING))
        rankings, seconds = [], []
        with torch.inference_mode():
            for number, query in enumerate(self.job.queries):
                before = time.perf_counter()
                documents, _, scores = searcher.search(query, k=self.job.depth)
                seconds.append(time.perf_counter() - before)
                rankings.append((list(documents), list(scores)))
                self.tell(("step", number + 1, len(self.job.queries)))
        self.done.rankings[name] = rankings
        if timed:
            self.done.seconds |= {OPENING: opened - started, SEARCHING: sum(seconds)}
            self.done.query_seconds = seconds

    def count(self) -> None:
        import li_plugins

        for row in li_plugins.status().rows:
            if row.adapter == "colbert" and row.calls:
                self.done.calls[row.target] = row.calls - row.declines
            if row.adapter == "colbert" and row.declines:
                self.done.declined[row.target] = row.reason
