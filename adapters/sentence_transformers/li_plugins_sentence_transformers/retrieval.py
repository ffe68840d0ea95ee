"""sentence-transformers' XTR scores: what each query token retrieves of the whole batch, without the grid."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers.util.tensor import _convert_to_tensor
from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import XtrRule, arguments, explain_xtr_maxsim, supports_xtr_maxsim, xtr_maxsim
from li_plugins_sentence_transformers import _requests

if TYPE_CHECKING:
    from li_plugins.ops.arguments import Request

_xtr: Any = sys.modules["sentence_transformers.multi_vector_encoder.scoring.xtr"]
"""Where ``xtr_kd_scores`` looks up ``xtr_scores``."""


def xtr_scores(
    queries_embeddings: list | np.ndarray | torch.Tensor,
    documents_embeddings: list | np.ndarray | torch.Tensor,
    queries_mask: torch.Tensor | None = None,
    documents_mask: torch.Tensor | None = None,
    top_k: int = 256,
    chunk_elements: int | None = None,
) -> Tensor | Decline:
    """Score every query against every group's documents: ``[Q, Lq, d]`` and ``[D, N, Ld, d]`` to ``[Q, D * N]``."""
    return _scored(
        _groups(queries_embeddings, documents_embeddings, queries_mask, documents_mask, top_k, chunk_elements)
    )


def explain_xtr_scores(
    queries_embeddings: list | np.ndarray | torch.Tensor,
    documents_embeddings: list | np.ndarray | torch.Tensor,
    queries_mask: torch.Tensor | None = None,
    documents_mask: torch.Tensor | None = None,
    top_k: int = 256,
    chunk_elements: int | None = None,
) -> object:
    """Say which kernel ``xtr_scores`` would use, or why the library's own code would run."""
    request = _groups(queries_embeddings, documents_embeddings, queries_mask, documents_mask, top_k, chunk_elements)
    return arguments.answered(request, explain_xtr_maxsim)


def xtr_kd_scores(
    queries_embeddings: list | np.ndarray | torch.Tensor,
    documents_embeddings: list | np.ndarray | torch.Tensor,
    queries_mask: torch.Tensor | None = None,
    documents_mask: torch.Tensor | None = None,
    top_k: int = 256,
    chunk_elements: int | None = None,
) -> Tensor | Decline:
    """Score each query against its own candidates, ``[Q, N]``; it retrieves from those of all queries."""
    return _scored(
        _candidates(queries_embeddings, documents_embeddings, queries_mask, documents_mask, top_k, chunk_elements)
    )


def explain_xtr_kd_scores(
    queries_embeddings: list | np.ndarray | torch.Tensor,
    documents_embeddings: list | np.ndarray | torch.Tensor,
    queries_mask: torch.Tensor | None = None,
    documents_mask: torch.Tensor | None = None,
    top_k: int = 256,
    chunk_elements: int | None = None,
) -> object:
    """Say which kernel ``xtr_kd_scores`` would use, or why the library's own code would run."""
    request = _candidates(queries_embeddings, documents_embeddings, queries_mask, documents_mask, top_k, chunk_elements)
    return arguments.answered(request, explain_xtr_maxsim)


def _scored(request: Request | Decline) -> Tensor | Decline:
    if isinstance(request, Decline):
        return request
    return _requests.filled(xtr_maxsim(**request), _requests.without_tokens(request["document_mask"]))


def _groups(
    queries: Any, documents: Any, queries_mask: Any, documents_mask: Any, top_k: Any, chunk_elements: Any
) -> Request | Decline:
    """Flatten the groups: column ``d * N + n`` is document ``n`` of group ``d``, as the library arranges them."""
    return _request(queries, documents, queries_mask, documents_mask, top_k, chunk_elements, document_rank=3)


def _candidates(
    queries: Any, documents: Any, queries_mask: Any, documents_mask: Any, top_k: Any, chunk_elements: Any
) -> Request | Decline:
    refusal = arguments.foreign(_xtr.xtr_scores, "xtr_scores", "sentence_transformers")
    if refusal:
        return refusal
    documents = _convert_to_tensor(documents)  # before the queries: of two sides that fail, the library names this one
    if documents.ndim != 4:
        return Decline(f"documents of rank {documents.ndim}: needs candidates of each query")
    return _request(queries, documents, queries_mask, documents_mask, top_k, chunk_elements, document_rank=4)


def _request(
    queries: Any,
    documents: Any,
    queries_mask: Any,
    documents_mask: Any,
    top_k: Any,
    chunk_elements: Any,
    *,
    document_rank: int,
) -> Request | Decline:
    refusal = arguments.unlike_positive("top_k", top_k)
    if refusal:
        return refusal
    if chunk_elements is not None and not isinstance(chunk_elements, (int, torch.SymInt)):
        return Decline(f"chunk_elements is {chunk_elements!r}: needs an int")
    queries, documents = _floating(queries), _floating(documents)
    for side, embeddings, rank in (("queries", queries, 3), ("documents", documents, 4)):
        if type(embeddings) not in arguments.PLAIN_TENSORS or embeddings.layout is not torch.strided:
            return Decline(f"{side} are no plain dense tensor")
        if embeddings.ndim != rank:
            return Decline(f"{side} of rank {embeddings.ndim}: needs rank {rank}")
    if 0 in documents.shape[:3]:
        return Decline(f"documents of shape {tuple(documents.shape)}: no token to retrieve")
    for name, mask in (("queries_mask", queries_mask), ("documents_mask", documents_mask)):
        if mask is not None and type(mask) not in arguments.PLAIN_TENSORS:
            return Decline(f"{name} of type {type(mask).__name__}: needs a plain tensor")
    if documents_mask is None:
        documents_mask = _requests.zero_row_mask(documents)
    elif documents_mask.shape != documents.shape[:3]:
        return Decline(f"documents_mask of shape {tuple(documents_mask.shape)} for {tuple(documents.shape)}")
    if queries_mask is None:
        queries_mask = _requests.zero_row_mask(queries).bool()
    if document_rank == 3:
        documents, documents_mask = documents.flatten(0, 1), documents_mask.flatten(0, 1)
    request = _requests.dense(queries, documents, queries_mask, documents_mask, document_rank=document_rank)
    if isinstance(request, Decline):
        return request
    pool = documents.shape[:-1].numel()
    retrieval: Request = {**request, "k": min(top_k, pool), "xtr_rule": XtrRule.RETRIEVED}
    return arguments.supported(retrieval, supports_xtr_maxsim)


def _floating(embeddings: Any) -> Any:
    """Return what the library multiplies: integers as float32."""
    embeddings = _convert_to_tensor(embeddings)
    if isinstance(embeddings, Tensor) and not (embeddings.is_floating_point() or embeddings.is_complex()):
        return embeddings.float()
    return embeddings
