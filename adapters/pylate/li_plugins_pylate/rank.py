"""PyLate's reranking as packed MaxSim: all queries and candidates together, without padding; one short list padded."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from pylate.utils.tensor import convert_to_tensor
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from li_plugins.api import Decline
from li_plugins.ops import arguments, explain_maxsim, explain_maxsim_packed, maxsim, maxsim_packed, ragged
from li_plugins_pylate import _requests

if TYPE_CHECKING:
    from li_plugins.ops.arguments import Request

# By name: the package ``pylate.rank`` may hold a function where the module of that name is meant.
_rank: Any = import_module("pylate.rank.rank")

PADDED = 2**18
"""Most numbers of one query's candidates, padded, that are scored as PyLate pads them: packing takes longer then."""


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
    for request in _requests_of(reranking):
        answer = arguments.answered(request, maxsim_packed if is_packed(request) else maxsim)
        if isinstance(answer, Decline):
            return answer
        scores.append(answer.flatten())
        del request  # the next is made when the memory of this one is free
    if not scores:
        return []
    results = []
    joined = scores[0] if len(scores) == 1 else torch.cat(scores)
    for ids, query_scores in zip(reranking.ids, joined.cpu().split(reranking.counts), strict=True):
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
    request = next(_requests_of(reranking), None)
    if request is None:
        return "no query: nothing to compute"
    return arguments.answered(request, explain_maxsim_packed if is_packed(request) else explain_maxsim)


def is_packed(request: Request | Decline) -> bool:
    """Say whether a request is for ``maxsim_packed``."""
    return not isinstance(request, Decline) and "query_offsets" in request


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
        documents = [_detached(document) for document in documents]
        refusal = arguments.unlike("documents", documents) if documents else Decline("a query without documents")
        if refusal:
            return refusal
        longest = max(len(document) for document in documents)
        if longest == 0:
            return Decline("documents without tokens have no best token")
        candidates += [Candidate(len(queries), document, len(document) < longest) for document in documents]
        counts.append(len(documents))
        queries.append(_detached(query))
        ids.append(query_ids)
    if queries:
        # PyLate never compares one query's documents with another's; one launch for all of them has to.
        refusal = arguments.unlike("queries", queries) or arguments.unlike(
            "documents", [candidate.document for candidate in candidates]
        )
    return refusal or Reranking(ids, queries, candidates, counts, device)


def _detached(embedding: Any) -> Any:
    """Convert an embedding as PyLate does, without its history: a ranking has no gradient."""
    converted = convert_to_tensor(embedding)
    return converted.detach() if isinstance(converted, Tensor) and converted.requires_grad else converted


def _requests_of(reranking: Reranking) -> Iterator[Request | Decline]:
    """Yield one request for each run of candidates that fits a launch; their scores come in the candidates' order."""
    if not reranking.queries:
        return
    if len(reranking.queries) == 1:
        padded = _padded(reranking)
        if padded is not None:
            yield padded
            return
    sizes = [arguments.bytes_of(candidate.document) for candidate in reranking.candidates]
    device = reranking.queries[0].device if reranking.device is None else reranking.device
    for part in arguments.runs(sizes, ragged.bytes_per_launch(device)):
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


def _padded(reranking: Reranking) -> Request | Decline | None:
    """Return the request of one query with few candidates, padded to the longest; ``None``: there are more."""
    query, documents = reranking.queries[0], [candidate.document for candidate in reranking.candidates]
    longest = max(len(document) for document in documents)
    if len(documents) * longest * documents[0].shape[1] > PADDED:
        return None
    queries, padded = query[None], documents[0][None]
    if len(documents) > 1:
        padded = pad_sequence(documents, batch_first=True)
    device = query.device if reranking.device is None else reranking.device
    return _requests.dense(queries.to(device), padded.to(device), None, None, document_rank=3)
