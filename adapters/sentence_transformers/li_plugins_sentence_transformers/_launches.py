"""How a call over whole collections becomes launches: padded batches in one, ragged lists in runs without padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers.util import similarity as _similarity
from sentence_transformers.util.tensor import _convert_to_tensor
from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import arguments, explain_maxsim, explain_maxsim_packed, maxsim, maxsim_packed
from li_plugins.ops.arguments import Ragged, Request
from li_plugins_sentence_transformers import _lists, _requests


class Launch(NamedTuple):
    """One call of an operation."""

    operation: Callable[..., Tensor]
    explain: Callable[..., Any]
    request: Request
    without_tokens: Tensor | None
    """Bool: which documents are empty; ``None`` where none can be."""

    def scores(self) -> Tensor:
        """Return ``[A, B]``, ``[A, K]``, or ``[A]`` for pairs."""
        return _requests.filled(self.operation(**self.request), self.without_tokens)


class Flat(NamedTuple):
    """One side of a launch: texts one after the other."""

    ragged: Ragged
    factors: Tensor | None = None
    """``[total length]``: the mask of a padded batch."""

    def to(self, device: torch.device) -> Flat:
        """Return the same on a device."""
        if self.ragged.tokens.device == device:
            return self
        tokens, offsets = self.ragged.tokens.to(device), self.ragged.offsets.to(device)
        factors = None if self.factors is None else self.factors.to(device)
        return Flat(self.ragged._replace(tokens=tokens, offsets=offsets), factors)


Launches = Iterator[Launch | Decline]
"""Launches of the documents in their order, or a ``Decline`` in place of the first."""


def cross(a: Any, b: Any, a_mask: Any, b_mask: Any, chunk_elements: int | None, device: Any) -> Launches:
    """Yield launches of all queries with all documents; the arguments are those of the library's ``maxsim``."""
    sides = _sides("_maxsim_score_documents", a, b, a_mask, b_mask, chunk_elements, device)
    if isinstance(sides, Decline):
        yield sides
        return
    a, a_mask, b, b_mask, where = sides
    if isinstance(a, list) or isinstance(b, list):
        yield from _ragged(a, b, a_mask, b_mask, chunk_elements, where)
    else:
        yield padded(a, b, a_mask, b_mask, where, document_rank=3)


def pairwise(a: Any, b: Any, a_mask: Any, b_mask: Any, chunk_elements: int | None, device: Any) -> Launches:
    """Yield launches of the first query with the first document and so on, as ``maxsim_pairwise`` takes them."""
    sides = _sides("_maxsim_score_pairs", a, b, a_mask, b_mask, chunk_elements, device)
    if isinstance(sides, Decline):
        yield sides
        return
    a, a_mask, b, b_mask, where = sides
    if len(a) != len(b):
        yield Decline(f"{len(a)} queries and {len(b)} documents are no pairs")
    elif isinstance(a, list) and isinstance(b, list):
        yield from _ragged_pairs(a, b, a_mask, b_mask, chunk_elements, where)
    elif isinstance(a, list) or isinstance(b, list):
        yield Decline("pairs of a list and a padded batch: the library pads the list")
    else:
        yield padded(a, b.unsqueeze(1), a_mask, _requests.one_candidate(b_mask), where, document_rank=4)


def padded(
    a: Tensor, b: Tensor, a_mask: Any, b_mask: Any, where: torch.device, *, document_rank: int
) -> Launch | Decline:
    """Return the launch of padded batches; without a mask, zero rows are padding, as in the library."""
    refusal = _unlaunchable("queries", a, a_mask, 3) or _unlaunchable("documents", b, b_mask, document_rank)
    if refusal:
        return refusal
    if (a.device, b.device) != (where, where):
        return Decline(f"embeddings on {a.device} and {b.device}: the library moves them to {where} chunk by chunk")
    b_mask = _requests.zero_row_mask(b) if b_mask is None else b_mask
    a_mask = _requests.zero_row_mask(a) if a_mask is None else a_mask
    request = _requests.dense(a, b, a_mask, b_mask, document_rank=document_rank)
    if isinstance(request, Decline):
        return request
    return Launch(maxsim, explain_maxsim, request, _requests.without_tokens(b_mask))


def joined(launches: Launches, device: torch.device) -> Tensor | Decline:
    """Run launches and return their scores, side by side, on a device."""
    scores = []
    for launch in launches:
        if isinstance(launch, Decline):
            return launch
        scores.append(launch.scores().to(device))
        del launch  # the next one is made when the memory of this one is free
    return scores[0] if len(scores) == 1 else torch.cat(scores, dim=-1)


def explained(launches: Launches) -> object:
    """Return the plan of the first launch, or why there is none."""
    first = next(launches)
    return first if isinstance(first, Decline) else first.explain(**first.request)


def normalized(scores: Tensor, a: Any, a_mask: Tensor | None) -> Tensor:
    """Return MeanMaxSim: each score divided by the number of its query's tokens."""
    counts = _similarity._query_token_counts(*_batch(a, a_mask)).to(device=scores.device, dtype=scores.dtype)
    return scores / (counts if scores.ndim == 1 else counts.unsqueeze(1))


def home(a: Any, b: Any) -> torch.device:
    """Return where scores belong: on the documents' device, or the queries' where the documents have none."""
    return _similarity._embeddings_device(b) or _similarity._embeddings_device(a) or torch.device("cpu")


def _ragged(a: Any, b: Any, a_mask: Any, b_mask: Any, chunk_elements: int | None, where: torch.device) -> Launches:
    documents = _lists.texts("documents", b, b_mask) if isinstance(b, list) else _flat("documents", b, b_mask)
    if isinstance(documents, Decline):
        yield documents
        return
    texts = _lists.texts("queries", a, a_mask) if isinstance(a, list) else _flat("queries", a, a_mask)
    if isinstance(texts, Decline):
        yield texts
        return
    queries = texts.to(where) if isinstance(texts, Flat) else Flat(arguments.concatenated(texts, where))
    limit = _lists.elements(chunk_elements, queries.ragged.tokens.numel(), where)
    if isinstance(limit, Decline):
        yield limit
    elif isinstance(documents, Flat):
        yield _packed(queries, documents)
    else:
        for run in arguments.runs([text.numel() for text in documents], limit):
            yield _packed(queries, Flat(arguments.concatenated(documents[run], where)))


def _ragged_pairs(
    a: list[Any], b: list[Any], a_mask: Any, b_mask: Any, chunk_elements: int | None, where: torch.device
) -> Launches:
    queries, documents = _lists.texts("queries", a, a_mask), _lists.texts("documents", b, b_mask)
    if isinstance(queries, Decline):
        yield queries
        return
    if isinstance(documents, Decline):
        yield documents
        return
    limit = _lists.elements(chunk_elements, 0, where)
    if isinstance(limit, Decline):
        yield limit
        return
    sizes = [query.numel() + document.numel() for query, document in zip(queries, documents, strict=True)]
    for run in arguments.runs(sizes, limit):
        # no name holds on to them: the next are made when their memory is free
        yield _packed(
            *(Flat(arguments.concatenated(side[run], where)) for side in (queries, documents)), is_pairwise=True
        )


def _packed(queries: Flat, documents: Flat, *, is_pairwise: bool = False) -> Launch | Decline:
    request = _requests.packed(
        queries.ragged,
        documents.ragged,
        query_weights=queries.factors,
        document_mask=documents.factors,
        is_pairwise=is_pairwise,
    )
    if isinstance(request, Decline):
        return request
    if documents.factors is not None:
        is_empty = _requests.without_tokens(documents.factors.view(-1, documents.ragged.longest))
    else:
        is_empty = documents.ragged.offsets.diff() == 0 if documents.ragged.shortest == 0 else None
    return Launch(maxsim_packed, explain_maxsim_packed, request, is_empty)


def _flat(side: str, embeddings: Tensor, mask: Tensor | None) -> Flat | Decline:
    """Return a padded batch as texts one after the other; without a mask, zero rows are padding."""
    refusal = _unlaunchable(side, embeddings, mask, 3)
    if refusal:
        return refusal
    count, length, _ = embeddings.shape
    if length == 0:
        return Decline(f"{side} without tokens")
    offsets = torch.arange(count + 1, device=embeddings.device) * length
    ragged = Ragged(embeddings.flatten(0, 1), offsets, length, length)
    if mask is None:
        mask = _requests.zero_row_mask(embeddings)
        if mask.device.type == "cpu" and bool(mask.all()):  # as a list of the same texts; a GPU is not waited for
            return Flat(ragged)
    factors = arguments.factors(f"the {side}' mask", mask, embeddings)
    if isinstance(factors, Decline) or factors is None:
        return factors or Decline(f"{side} without a mask")
    return Flat(ragged, factors.flatten())


def _sides(
    leaf: str, a: Any, b: Any, a_mask: Any, b_mask: Any, chunk_elements: Any, device: Any
) -> tuple[Any, Any, Any, Any, torch.device] | Decline:
    """Return queries and documents, each with its mask, as ``_batch`` does, and where to compute.

    ``leaf`` names the library's function whose place the launches take.
    """
    refusal = (
        arguments.foreign(getattr(_similarity, leaf), leaf, "sentence_transformers")
        or _unreadable("queries", a, a_mask)
        or _unreadable("documents", b, b_mask)
    )
    if refusal is None and not isinstance(chunk_elements, (int, float, torch.SymInt, type(None))):
        refusal = Decline(f"chunk_elements is {chunk_elements!r}: the library's own error is the answer")
    if refusal:
        return refusal
    where = home(a, b) if device is None else torch.device(device)
    return *_batch(a, a_mask), *_batch(b, b_mask), where


def _unreadable(side: str, embeddings: Any, mask: Any) -> Decline | None:
    """Decline what is no batch, and what is empty: the library answers without scoring."""
    if not isinstance(embeddings, (list, np.ndarray, Tensor)):
        return Decline(f"{side} of type {type(embeddings).__name__}: needs a list, an array or a tensor")
    if not isinstance(embeddings, list) and embeddings.ndim < 2:
        return Decline(f"{side} of rank {embeddings.ndim}")
    if len(embeddings) == 0:
        return Decline(f"no {side}: nothing to score")
    if mask is not None and type(mask) not in arguments.PLAIN_TENSORS:
        return Decline(f"the {side}' mask of type {type(mask).__name__}: needs a plain tensor")
    return None


def _unlaunchable(side: str, embeddings: Tensor, mask: Tensor | None, rank: int) -> Decline | None:
    """Decline what the library would convert, and what it would raise an error for."""
    if type(embeddings) not in arguments.PLAIN_TENSORS or embeddings.layout is not torch.strided:
        return Decline(f"{side} are no plain dense tensor")
    if embeddings.ndim != rank or not embeddings.is_floating_point():
        return Decline(f"{side} of rank {embeddings.ndim} and dtype {embeddings.dtype}: needs a floating rank {rank}")
    if mask is not None and mask.shape[-1:] != embeddings.shape[-2:-1]:
        return Decline(f"{side}' mask of shape {tuple(mask.shape)} for embeddings of {tuple(embeddings.shape)}")
    return None


def _batch(embeddings: Any, mask: Any) -> tuple[Any, Any]:
    """Return one side as a list or a tensor; a single text becomes a batch of one."""
    embeddings, mask = _similarity._batch_singular_input(embeddings, mask)
    return (embeddings if isinstance(embeddings, list) else _convert_to_tensor(embeddings)), mask
