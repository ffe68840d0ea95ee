"""PyLate's XTR scores: what each query token retrieves of the whole batch, without the grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import MaskRule, XtrRule, arguments, explain_xtr_maxsim, xtr_maxsim

if TYPE_CHECKING:
    from li_plugins.ops.arguments import Request


def score(
    self: Any, queries_embeddings: Any, documents_embeddings: Any, queries_mask: Any, documents_mask: Any
) -> Tensor | Decline:
    """Score every query against every group's documents: ``[Q, Lq, d]`` and ``[D, N, Ld, d]`` to ``[Q, D * N]``.

    ``XTRKDScores`` takes each query's own documents out of these scores.
    """
    request = _request(self, queries_embeddings, documents_embeddings, queries_mask, documents_mask)
    return arguments.answered(request, xtr_maxsim)


def explain_score(
    self: Any, queries_embeddings: Any, documents_embeddings: Any, queries_mask: Any, documents_mask: Any
) -> object:
    """Say which kernel ``score`` would use, or why PyLate's own code would run."""
    request = _request(self, queries_embeddings, documents_embeddings, queries_mask, documents_mask)
    return arguments.answered(request, explain_xtr_maxsim)


def _request(instance: Any, queries: Any, documents: Any, queries_mask: Any, documents_mask: Any) -> Request | Decline:
    k, chunk = getattr(instance, "k", None), getattr(instance, "document_chunk_size", None)
    refusal = arguments.unlike_positive("k", k) or (
        chunk is not None and arguments.unlike_positive("document_chunk_size", chunk)
    )
    if refusal:
        return refusal
    if type(documents) not in arguments.PLAIN_TENSORS or documents.ndim != 4:
        return Decline("documents of XTRScores are no plain tensor of rank 4")
    if 0 in documents.shape[:3]:
        return Decline(f"documents of shape {tuple(documents.shape)}: no token to retrieve")
    pool = documents.shape[:3].numel()
    if k > pool:
        return Decline(f"k is {k}, more than the {pool} document tokens")
    if documents_mask is not None:
        if type(documents_mask) not in arguments.PLAIN_TENSORS or documents_mask.shape != documents.shape[:3]:
            return Decline("documents_mask is no plain tensor with one entry for each document token")
        documents_mask = documents_mask.flatten(0, 1)
    multiplied = arguments.padded(queries, documents.flatten(0, 1), document_rank=3)
    if isinstance(multiplied, Decline):
        return multiplied
    queries, documents = multiplied
    query_weights = arguments.factors("queries_mask", queries_mask, queries)
    if isinstance(query_weights, Decline):
        return query_weights
    document_mask = arguments.factors("documents_mask", documents_mask, documents)
    if isinstance(document_mask, Decline):
        return document_mask
    if arguments.score_dtype(queries, query_weights) is torch.float64 and queries.dtype is not torch.float64:
        return Decline(f"a float64 mask makes PyLate sum in float64 what {queries.dtype} embeddings gave")
    return {
        "queries": queries,
        "documents": documents,
        "k": k,
        "xtr_rule": XtrRule.POSITIVE,
        "query_weights": query_weights,
        "document_mask": document_mask,
        "mask_rule": MaskRule.FILL(torch.finfo(queries.dtype).min),
        "out_dtype": torch.float32,
    }
