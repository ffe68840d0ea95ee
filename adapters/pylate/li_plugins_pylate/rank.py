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
    from li_plugins_pylate._requests import Request

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


class Group(NamedTuple):
    """Some of the queries that ``rerank`` was given, converted."""

    ids: list[Any]
    """Per query, the ids of its documents."""
    queries: list[Tensor]
    """``[length, d]`` each."""
    candidates: list[Candidate]
    """Query after query."""
    counts: list[int]
    """Candidates per query."""


def rerank(
    documents_ids: list[list[int | str]],
    queries_embeddings: list[list[float | int] | np.ndarray | Tensor],
    documents_embeddings: list[list[float | int] | np.ndarray | Tensor],
    device: str | None = None,
) -> list[list[dict[str, Any]]] | Decline:
    """Sort each query's documents by score: ``[[{"id": ..., "score": ...}, ...], ...]``, the best first."""
    results = []
    for group in _groups(documents_ids, queries_embeddings, documents_embeddings):
        if isinstance(group, Decline):
            return group
        scores = []
        with torch.no_grad():
            for request in _requests_of(group, device):
                if isinstance(request, Decline):
                    return request
                scores.append(maxsim_packed(**request))
        for ids, query_scores in zip(group.ids, torch.cat(scores).cpu().split(group.counts), strict=True):
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
    first: object = "no query: nothing to compute"
    for number, group in enumerate(_groups(documents_ids, queries_embeddings, documents_embeddings)):
        if isinstance(group, Decline):
            return group
        with torch.no_grad():
            for request in _requests_of(group, device):
                if isinstance(request, Decline):
                    return request
                if number == 0:
                    first = explain_maxsim_packed(**request)
    return first


def _groups(documents_ids: Any, queries_embeddings: Any, documents_embeddings: Any) -> Iterator[Group | Decline]:
    """Yield as many queries at a time as fill a launch, or one that fills more."""
    refusal = (
        _requests.named_backend(None)
        or arguments.foreign(_rank.colbert_scores, "colbert_scores", "pylate")
        or _requests.unreadable(documents_ids, queries_embeddings, documents_embeddings)
    )
    if refusal:
        yield refusal
        return
    group, size = Group([], [], [], []), 0
    # PyLate pairs the three as far as the shortest goes.
    for query, query_ids, documents in zip(
        _rank.reshape_embeddings(queries_embeddings),
        documents_ids,
        _rank.reshape_embeddings(documents_embeddings),
        strict=False,
    ):
        tensors = _tensors(documents)
        if isinstance(tensors, Decline):
            yield tensors
            return
        addition = sum(map(arguments.bytes_of, tensors))
        if group.ids and size + addition > BYTES_PER_LAUNCH:
            yield _alike(group)
            group, size = Group([], [], [], []), 0
        longest = max(map(len, tensors))
        group.candidates.extend(Candidate(len(group.ids), tensor, len(tensor) < longest) for tensor in tensors)
        group.counts.append(len(tensors))
        group.queries.append(convert_to_tensor(query))
        group.ids.append(query_ids)
        size += addition
    if group.ids:
        yield _alike(group)


def _tensors(documents: Any) -> list[Tensor] | Decline:
    """Return the documents of one query; at least one has a token."""
    refusal = _requests.unreadable(documents)
    if refusal:
        return refusal
    tensors = [convert_to_tensor(document) for document in documents]
    refusal = arguments.unlike("documents", tensors) if tensors else Decline("a query without documents")
    if refusal:
        return refusal
    return tensors if any(map(len, tensors)) else Decline("documents without tokens have no best token")


def _alike(group: Group) -> Group | Decline:
    """Return the group, if one launch can take it: PyLate never compares one query's documents with another's."""
    documents = [candidate.document for candidate in group.candidates]
    return arguments.unlike("queries", group.queries) or arguments.unlike("documents", documents) or group


def _requests_of(group: Group, device: Any) -> Iterator[Request | Decline]:
    """Yield one request for each run of candidates that fits a launch; their scores come in the candidates' order."""
    sizes = [arguments.bytes_of(candidate.document) for candidate in group.candidates]
    for part in arguments.runs(sizes, BYTES_PER_LAUNCH):
        run = group.candidates[part]
        first, last = run[0].query, run[-1].query
        queries = arguments.concatenated(group.queries[first : last + 1], device)
        where = queries.tokens.device
        yield _requests.packed(
            queries,
            arguments.concatenated([candidate.document for candidate in run], where),
            pairs=(
                torch.tensor([candidate.query - first for candidate in run], device=where),
                torch.arange(len(run), device=where),
            ),
            floor=torch.tensor([candidate.shorter for candidate in run], device=where),
        )
