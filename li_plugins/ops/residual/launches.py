"""Which queries meet which stored documents, in runs whose tokens fit a block; no document is padded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from li_plugins.ops.residual.problem import StoredProblem
from li_plugins.ops.spans import rows_of


class Launch(NamedTuple):
    """Some documents, one after the other, for the same queries."""

    queries: slice
    where: tuple[slice, ...]
    """The scores of the launch, ``[n]`` or ``[queries, n]``, among all."""
    tokens: Tensor
    """``[t]`` int64: the stored tokens of the documents."""
    owners: Tensor
    """``[t]`` int64: the document of each token, counted from 0."""
    size: int
    """``n``, how many documents there are."""


def launches(problem: StoredProblem, limit: int) -> Iterator[Launch]:
    """Yield launches of at most ``limit`` tokens, or of one document; pairs are sorted by query."""
    if problem.pair_queries is None or problem.pair_documents is None:
        everyone = slice(0, problem.query_count)
        documents = torch.arange(problem.document_offsets.shape[0] - 1, device=problem.codes.device)
        for run, tokens, owners in _runs(problem.document_offsets, documents, limit):
            yield Launch(everyone, (everyone, run), tokens, owners, run.stop - run.start)
        return
    queries, sizes = torch.unique_consecutive(problem.pair_queries, return_counts=True)
    start = 0
    for query, size in zip(queries.tolist(), sizes.tolist(), strict=True):
        documents = problem.pair_documents[start : start + size]
        for run, tokens, owners in _runs(problem.document_offsets, documents, limit):
            where = slice(start + run.start, start + run.stop)
            yield Launch(slice(query, query + 1), (where,), tokens, owners, run.stop - run.start)
        start += size


def _runs(offsets: Tensor, documents: Tensor, limit: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield runs of documents with the stored tokens of each and whose they are."""
    begins = offsets.index_select(0, documents)
    lengths = offsets.index_select(0, documents + 1) - begins
    ends = lengths.cumsum(0).cpu()
    start = done = 0
    while start < len(documents):
        stop = max(start + 1, int(torch.searchsorted(ends, done + limit, right=True)))
        run, total = slice(start, stop), int(ends[stop - 1]) - done
        tokens, owners = rows_of(begins[run], lengths[run], total)
        yield run, tokens, owners
        start, done = stop, done + total
