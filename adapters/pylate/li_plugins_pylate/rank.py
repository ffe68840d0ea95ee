"""PyLate's reranking as packed MaxSim: all queries and candidates together, without padding."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from pylate.utils.tensor import convert_to_tensor
from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import arguments, explain_maxsim_packed, maxsim_packed
from li_plugins_pylate import _requests

if TYPE_CHECKING:
    from li_plugins.ops.arguments import Request

# By name: the package ``pylate.rank`` may hold a function where the module of that name is meant.
_rank: Any = import_module("pylate.rank.rank")

BYTES_PER_LAUNCH = 8 * 2**20
"""Document embeddings that one launch takes; bounds the copy that puts them one after the other.

Small enough for the C library to keep the memory for the next launch: what it maps anew costs a page fault per page.
"""


class Candidate(NamedTuple):
    """One document to score against one query."""

    query: int
    document: Tensor
    """``[length, d]``"""
    shorter: bool
    """Whether PyLate pads it to the longest candidate of its query: zero rows, which a query token may prefer."""


class Reranking(NamedTuple):
    """What ``rerank`` was asked for, converted."""

    ids: list[Any]
    """Per query, the ids of its documents."""
    queries: list[Tensor]
    """``[length, d]`` each."""
    candidates: list[Candidate]
    """Query after query."""
    counts: list[int]
    """Candidates per query."""
    device: Any
    """Where to compute, ``None`` for where the queries are."""


def rerank(
    documents_ids: list[list[int | str]],
    queries_embeddings: list[list[float | int] | np.ndarray | Tensor],
    documents_embeddings: list[list[float | int] | np.ndarray | Tensor],
    device: str | None = None,
) -> list[list[dict[str, Any]]] | Decline:
    """Sort each query's documents by score: ``[[{"id": ..., "score": ...}, ...], ...]``, the best first."""
    reranking = _prepared(documents_ids, queries_embeddings, documents_embeddings, device)
    if isinstance(reranking, Decline):
        return reranking
    scores = []
    with torch.no_grad():
        for request in _requests_of(reranking):
            if isinstance(request, Decline):
                return request
            scores.append(maxsim_packed(**request))
    if not scores:
        return []
    results = []
    for ids, query_scores in zip(reranking.ids, torch.cat(scores).cpu().split(reranking.counts), strict=True):
        best, order = torch.sort(query_scores, descending=True)
        results.append(
            [{"id": ids[index], "score": score} for index, score in zip(order.tolist(), best.tolist(), strict=True)]
        )
    return results


def explain_rerank(
    documents_ids: list[list[int | str]],
    queries_embeddings: list[list[float | int] | np.ndarray | Tensor],
    documents_embeddings: list[list[float | int] | np.ndarray | Tensor],
    device: str | None = None,
) -> object:
    """Say which kernel ``rerank`` would use, or why PyLate's own code would run."""
    reranking = _prepared(documents_ids, queries_embeddings, documents_embeddings, device)
    if isinstance(reranking, Decline):
        return reranking
    with torch.no_grad():
        request = next(_requests_of(reranking), None)
    if request is None:
        return "no query: nothing to compute"
    return request if isinstance(request, Decline) else explain_maxsim_packed(**request)


def _prepared(
    documents_ids: Any, queries_embeddings: Any, documents_embeddings: Any, device: Any
) -> Reranking | Decline:
    refusal = (
        _requests.named_backend(None)
        or arguments.foreign(_rank.colbert_scores, "colbert_scores", "pylate")
        or _requests.unreadable(documents_ids, queries_embeddings, documents_embeddings)
    )
    if refusal:
        return refusal
    ids: list[Any] = []
    queries: list[Tensor] = []
    candidates: list[Candidate] = []
    counts: list[int] = []
    # PyLate pairs the three as far as the shortest goes.
    for query, query_ids, documents in zip(
        _rank.reshape_embeddings(queries_embeddings),
        documents_ids,
        _rank.reshape_embeddings(documents_embeddings),
        strict=False,
    ):
        refusal = _requests.unreadable(documents)
        if refusal:
            return refusal
        documents = [convert_to_tensor(document) for document in documents]
        refusal = arguments.unlike("documents", documents) if documents else Decline("a query without documents")
        if refusal:
            return refusal
        longest = max(len(document) for document in documents)
        if longest == 0:
            return Decline("documents without tokens have no best token")
        candidates += [Candidate(len(queries), document, len(document) < longest) for document in documents]
        counts.append(len(documents))
        queries.append(convert_to_tensor(query))
        ids.append(query_ids)
    if queries:
        # PyLate never compares one query's documents with another's; one launch for all of them has to.
        refusal = arguments.unlike("queries", queries) or arguments.unlike(
            "documents", [candidate.document for candidate in candidates]
        )
    return refusal or Reranking(ids, queries, candidates, counts, device)


def _requests_of(reranking: Reranking) -> Iterator[Request | Decline]:
    """Yield one request for each run of candidates that fits a launch; their scores come in the candidates' order."""
    sizes = [arguments.bytes_of(candidate.document) for candidate in reranking.candidates]
    for part in arguments.runs(sizes, BYTES_PER_LAUNCH):
        run = reranking.candidates[part]
        first, last = run[0].query, run[-1].query
        queries = arguments.concatenated(reranking.queries[first : last + 1], reranking.device)
        device = queries.tokens.device
        yield _requests.packed(
            queries,
            arguments.concatenated([candidate.document for candidate in run], device),
            pairs=(
                torch.tensor([candidate.query - first for candidate in run], device=device),
                torch.arange(len(run), device=device),
            ),
            floor=torch.tensor([candidate.shorter for candidate in run], device=device),
        )
