"""PyLate's scores through MaxSim: one launch, no grid of similarities."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pylate.utils.tensor import convert_to_tensor
from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import arguments, explain_maxsim, explain_maxsim_packed, maxsim, maxsim_packed
from li_plugins_pylate import _requests

if TYPE_CHECKING:
    from li_plugins.ops.arguments import Request

_colbert: Any = sys.modules.get("pylate.scores.colbert")
"""Where ``ColBERTScores`` looks up ``colbert_scores``; absent before 1.5, as the class is."""


def colbert_scores(
    queries_embeddings: list | np.ndarray | Tensor,
    documents_embeddings: list | np.ndarray | Tensor,
    queries_mask: Tensor | None = None,
    documents_mask: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | Decline:
    """Score every query against every document: ``[A, Lq, d]`` and ``[B, Ld, d]`` to ``[A, B]``."""
    request = _cross(queries_embeddings, documents_embeddings, queries_mask, documents_mask, backend)
    return arguments.answered(request, maxsim)


def explain_colbert_scores(
    queries_embeddings: list | np.ndarray | Tensor,
    documents_embeddings: list | np.ndarray | Tensor,
    queries_mask: Tensor | None = None,
    documents_mask: Tensor | None = None,
    backend: str | None = None,
) -> object:
    """Say which kernel ``colbert_scores`` would use, or why PyLate's own code would run."""
    request = _cross(queries_embeddings, documents_embeddings, queries_mask, documents_mask, backend)
    return arguments.answered(request, explain_maxsim)


def colbert_kd_scores(
    queries_embeddings: list | np.ndarray | Tensor,
    documents_embeddings: list | np.ndarray | Tensor,
    queries_mask: Tensor = None,
    documents_mask: Tensor = None,
    backend: str | None = None,
) -> Tensor | Decline:
    """Score each query against its own candidates: ``[A, Lq, d]`` and ``[A, K, Ld, d]`` to ``[A, K]``."""
    request = _candidates(queries_embeddings, documents_embeddings, queries_mask, documents_mask, backend)
    return arguments.answered(request, maxsim)


def explain_colbert_kd_scores(
    queries_embeddings: list | np.ndarray | Tensor,
    documents_embeddings: list | np.ndarray | Tensor,
    queries_mask: Tensor = None,
    documents_mask: Tensor = None,
    backend: str | None = None,
) -> object:
    """Say which kernel ``colbert_kd_scores`` would use, or why PyLate's own code would run."""
    request = _candidates(queries_embeddings, documents_embeddings, queries_mask, documents_mask, backend)
    return arguments.answered(request, explain_maxsim)


def colbert_scores_pairwise(
    queries_embeddings: Tensor,
    documents_embeddings: Tensor,
    backend: str | None = None,
) -> Tensor | Decline:
    """Score the first query against the first document and so on: padded batches or ragged lists to ``[n]``."""
    request = _pairs(queries_embeddings, documents_embeddings, backend)
    return arguments.answered(request, maxsim_packed)


def explain_colbert_scores_pairwise(
    queries_embeddings: Tensor,
    documents_embeddings: Tensor,
    backend: str | None = None,
) -> object:
    """Say which kernel ``colbert_scores_pairwise`` would use, or why PyLate's own code would run."""
    request = _pairs(queries_embeddings, documents_embeddings, backend)
    return arguments.answered(request, explain_maxsim_packed)


def call_colbert_scores(
    self: object,
    queries_embeddings: list | np.ndarray | Tensor,
    documents_embeddings: list | np.ndarray | Tensor,
    queries_mask: Tensor | None = None,
    documents_mask: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | Decline:
    """Run ``ColBERTScores()(...)``: ``[A, Lq, d]`` and ``[D, N, Ld, d]`` to ``[A, D * N]`` in one launch."""
    request = _groups(queries_embeddings, documents_embeddings, queries_mask, documents_mask, backend)
    return arguments.answered(request, maxsim)


def explain_call_colbert_scores(
    self: object,
    queries_embeddings: list | np.ndarray | Tensor,
    documents_embeddings: list | np.ndarray | Tensor,
    queries_mask: Tensor | None = None,
    documents_mask: Tensor | None = None,
    backend: str | None = None,
) -> object:
    """Say which kernel ``ColBERTScores()(...)`` would use, or why PyLate's own code would run."""
    request = _groups(queries_embeddings, documents_embeddings, queries_mask, documents_mask, backend)
    return arguments.answered(request, explain_maxsim)


def _cross(queries: Any, documents: Any, queries_mask: Any, documents_mask: Any, backend: Any) -> Request | Decline:
    return _requests.named_backend(backend) or _requests.dense(
        queries, documents, queries_mask, documents_mask, document_rank=3
    )


def _candidates(
    queries: Any, documents: Any, queries_mask: Any, documents_mask: Any, backend: Any
) -> Request | Decline:
    return _requests.named_backend(backend) or _requests.dense(
        queries, documents, queries_mask, documents_mask, document_rank=4
    )


def _groups(queries: Any, documents: Any, queries_mask: Any, documents_mask: Any, backend: Any) -> Request | Decline:
    """Flatten the groups: column ``d * N + k`` is document ``k`` of group ``d``, as PyLate arranges them."""
    refusal = arguments.foreign(_colbert.colbert_scores, "colbert_scores", "pylate")
    if refusal:
        return refusal
    documents = convert_to_tensor(documents)
    if type(documents) not in arguments.PLAIN_TENSORS or documents.ndim != 4:
        return Decline("documents of ColBERTScores are no plain tensor of rank 4")
    if 0 in documents.shape[:2]:
        return Decline(f"documents of shape {tuple(documents.shape)}: no columns to arrange")
    if documents_mask is not None:
        # PyLate takes a column of this mask before it converts the mask, so that a list is its error to raise.
        if isinstance(documents_mask, list):
            return Decline("documents_mask is a list")
        documents_mask = convert_to_tensor(_requests.ascending(documents_mask))
        if type(documents_mask) not in arguments.PLAIN_TENSORS or documents_mask.shape[:2] != documents.shape[:2]:
            return Decline("documents_mask is no plain tensor with one entry for each document")
        documents_mask = documents_mask.flatten(0, 1)
    return _cross(queries, documents.flatten(0, 1), queries_mask, documents_mask, backend)


def _pairs(queries: Any, documents: Any, backend: Any) -> Request | Decline:
    refusal = _requests.named_backend(backend) or _requests.unreadable(queries, documents)
    if refusal:
        return refusal
    count = min(len(queries), len(documents))
    if count == 0:
        return Decline("no pairs: PyLate has nothing to stack")
    packed_queries = _requests.ragged("queries", queries[:count])
    if isinstance(packed_queries, Decline):
        return packed_queries
    packed_documents = _requests.ragged("documents", documents[:count])
    if isinstance(packed_documents, Decline):
        return packed_documents
    if packed_documents.shortest == 0:
        return Decline("a document without tokens has no best token")
    everyone = torch.arange(count, device=packed_queries.tokens.device)
    return _requests.packed(packed_queries, packed_documents, (everyone, everyone))
