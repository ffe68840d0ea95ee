"""What sentence-transformers' losses call: groups of documents, or candidates of each query, in one launch for all."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers.util import similarity as _similarity
from sentence_transformers.util.tensor import _convert_to_tensor

from li_plugins.api import Decline
from li_plugins.ops import arguments
from li_plugins_sentence_transformers import _launches

if TYPE_CHECKING:
    from li_plugins_sentence_transformers._launches import Launch

_colbert: Any = sys.modules["sentence_transformers.multi_vector_encoder.scoring.colbert"]
"""Where the originals look up ``maxsim`` and ``maxsim_pairwise``."""


def colbert_scores(
    queries_embeddings: list | np.ndarray | torch.Tensor,
    documents_embeddings: list | np.ndarray | torch.Tensor,
    queries_mask: torch.Tensor | None = None,
    documents_mask: torch.Tensor | None = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
) -> torch.Tensor | Decline:
    """Score every query against every group's documents: ``[Q, Lq, d]`` and ``[D, N, Ld, d]`` to ``[Q, D * N]``."""
    queries_embeddings = _convert_to_tensor(queries_embeddings)  # of a list the mean would count zero rows too
    launch = _groups(queries_embeddings, documents_embeddings, queries_mask, documents_mask)
    if isinstance(launch, Decline):
        return launch
    scores = launch.scores()
    return _launches.normalized(scores, queries_embeddings, queries_mask) if length_normalize else scores


def explain_colbert_scores(
    queries_embeddings: list | np.ndarray | torch.Tensor,
    documents_embeddings: list | np.ndarray | torch.Tensor,
    queries_mask: torch.Tensor | None = None,
    documents_mask: torch.Tensor | None = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
) -> object:
    """Say which kernel ``colbert_scores`` would use, or why the library's own code would run."""
    launch = _groups(queries_embeddings, documents_embeddings, queries_mask, documents_mask)
    return launch if isinstance(launch, Decline) else launch.explain(**launch.request)


def colbert_kd_scores(
    queries_embeddings: list | np.ndarray | torch.Tensor,
    documents_embeddings: list | np.ndarray | torch.Tensor,
    queries_mask: torch.Tensor | None = None,
    documents_mask: torch.Tensor | None = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
) -> torch.Tensor | Decline:
    """Score each query against its own candidates: ``[Q, Lq, d]`` and ``[Q, N, Ld, d]`` to ``[Q, N]``."""
    queries_embeddings = _convert_to_tensor(queries_embeddings)  # of a list the mean would count zero rows too
    launch = _candidates(queries_embeddings, documents_embeddings, queries_mask, documents_mask)
    if isinstance(launch, Decline):
        return launch
    scores = launch.scores()
    return _launches.normalized(scores, queries_embeddings, queries_mask) if length_normalize else scores


def explain_colbert_kd_scores(
    queries_embeddings: list | np.ndarray | torch.Tensor,
    documents_embeddings: list | np.ndarray | torch.Tensor,
    queries_mask: torch.Tensor | None = None,
    documents_mask: torch.Tensor | None = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
) -> object:
    """Say which kernel ``colbert_kd_scores`` would use, or why the library's own code would run."""
    launch = _candidates(queries_embeddings, documents_embeddings, queries_mask, documents_mask)
    return launch if isinstance(launch, Decline) else launch.explain(**launch.request)


def _groups(queries: Any, documents: Any, queries_mask: Any, documents_mask: Any) -> Launch | Decline:
    """Flatten the groups: column ``d * N + n`` is document ``n`` of group ``d``, as the library arranges them."""
    refusal = (
        arguments.foreign(_colbert.maxsim, "maxsim", "sentence_transformers")
        or arguments.foreign(_similarity._maxsim_score_documents, "_maxsim_score_documents", "sentence_transformers")
        or _unmasked(queries_mask, documents_mask)
    )
    if refusal:
        return refusal
    queries, documents = _convert_to_tensor(queries), _convert_to_tensor(documents)
    if documents.ndim != 4 or 0 in documents.shape[:2] or queries.shape[:1] == (0,):
        return Decline(f"queries {tuple(queries.shape)}, documents {tuple(documents.shape)}: needs groups of documents")
    if documents.layout is not torch.strided:
        return Decline(f"documents of layout {documents.layout}: needs a dense tensor")
    if documents_mask is not None:
        if documents_mask.shape != documents.shape[:3]:
            return Decline(f"documents_mask of shape {tuple(documents_mask.shape)} for {tuple(documents.shape)}")
        documents_mask = documents_mask.flatten(0, 1)
    return _launches.padded(
        queries, documents.flatten(0, 1), queries_mask, documents_mask, documents.device, document_rank=3
    )


def _candidates(queries: Any, documents: Any, queries_mask: Any, documents_mask: Any) -> Launch | Decline:
    refusal = (
        arguments.foreign(_colbert.maxsim_pairwise, "maxsim_pairwise", "sentence_transformers")
        or arguments.foreign(_similarity._maxsim_score_pairs, "_maxsim_score_pairs", "sentence_transformers")
        or _unmasked(queries_mask, documents_mask)
    )
    if refusal:
        return refusal
    queries, documents = _convert_to_tensor(queries), _convert_to_tensor(documents)
    if documents.ndim != 4 or 0 in documents.shape[:2]:
        return Decline(f"documents of shape {tuple(documents.shape)}: needs candidates of each query")
    if documents_mask is not None and documents_mask.shape[1:2] != documents.shape[1:2]:
        return Decline(f"documents_mask of shape {tuple(documents_mask.shape)} for {tuple(documents.shape)}")
    return _launches.padded(queries, documents, queries_mask, documents_mask, documents.device, document_rank=4)


def _unmasked(queries_mask: Any, documents_mask: Any) -> Decline | None:
    for name, mask in (("queries_mask", queries_mask), ("documents_mask", documents_mask)):
        if mask is not None and type(mask) not in arguments.PLAIN_TENSORS:
            return Decline(f"{name} of type {type(mask).__name__}: needs a plain tensor")
    return None
