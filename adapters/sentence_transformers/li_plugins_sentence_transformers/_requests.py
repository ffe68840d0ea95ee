"""What sentence-transformers' tensors mean to MaxSim: masks, dtypes and the fill, shared by every replacement."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers.util import similarity as _similarity
from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import MaskRule, arguments, supports_maxsim, supports_maxsim_packed
from li_plugins.ops.arguments import Ragged, Request


def dense(
    queries: Any, documents: Any, query_weights: Any, document_mask: Any, *, document_rank: int
) -> Request | Decline:
    """Return the ``maxsim`` of padded batches.

    Parameters
    ----------
    queries, documents
        ``[A, Lq, d]`` against ``[B, Ld, d]`` or, at a ``document_rank`` of 4, ``[A, K, Ld, d]``.
    query_weights, document_mask
        The shapes above without ``d``, where a dimension of size 1 stands for all, or ``None``. The weights multiply
        the best similarities; a document token whose mask is 0 does not exist.
    """
    multiplied = arguments.padded(queries, documents, document_rank=document_rank)
    if isinstance(multiplied, Decline):
        return multiplied
    queries, documents = multiplied
    query_weights = arguments.factors("the queries' mask", query_weights, queries)
    if isinstance(query_weights, Decline):
        return query_weights
    document_mask = arguments.factors("the documents' mask", document_mask, documents)
    if isinstance(document_mask, Decline):
        return document_mask
    out_dtype = score_dtype(queries, query_weights)
    if isinstance(out_dtype, Decline):
        return out_dtype
    request = {
        "queries": queries,
        "documents": documents,
        "query_weights": query_weights,
        "document_mask": document_mask,
        "mask_rule": MaskRule.EXCLUDE,
        "out_dtype": out_dtype,
    }
    return arguments.supported(request, supports_maxsim)


def packed(
    queries: Ragged,
    documents: Ragged,
    *,
    query_weights: Tensor | None = None,
    document_mask: Tensor | None = None,
    is_pairwise: bool = False,
) -> Request | Decline:
    """Return the ``maxsim_packed`` of ragged texts, all with all, or the first with the first and so on.

    Parameters
    ----------
    query_weights, document_mask
        ``[total length of the queries]`` and ``[total length of the documents]``, as in ``dense``.
    """
    multiplied = arguments.as_multiplied(queries.tokens, documents.tokens, query_rank=2, document_rank=2)
    if isinstance(multiplied, Decline):
        return multiplied
    out_dtype = score_dtype(multiplied[0], multiplied[0] if query_weights is None else query_weights)
    if isinstance(out_dtype, Decline):
        return out_dtype
    everyone = torch.arange(len(queries.offsets) - 1, device=queries.offsets.device) if is_pairwise else None
    request: Request = {
        "queries": multiplied[0],
        "documents": multiplied[1],
        "query_offsets": queries.offsets,
        "document_offsets": documents.offsets,
        "pairs": None if everyone is None else (everyone, everyone),
        "query_weights": query_weights,
        "document_mask": document_mask,
        "mask_rule": MaskRule.EXCLUDE,
        "out_dtype": out_dtype,
        "max_query_length": queries.longest,
        "max_document_length": documents.longest,
    }
    return arguments.supported(request, supports_maxsim_packed)


def score_dtype(queries: Tensor, query_weights: Tensor | None) -> torch.dtype | Decline:
    """Return the dtype of the library's scores: float32 maxima times weights."""
    dtype = torch.float32 if query_weights is None else torch.promote_types(torch.float32, query_weights.dtype)
    if dtype is torch.float64 and queries.dtype is not torch.float64:
        return Decline(f"a float64 mask makes the library sum in float64 what {queries.dtype} embeddings gave")
    return dtype


def filled(scores: Tensor, is_empty: Tensor | None) -> Tensor:
    """Let the library warn of documents without a token, as it does on the CPU only; the kernels filled their scores.

    Parameters
    ----------
    is_empty
        Bool, broadcast against the scores; ``None``: no document can be.
    """
    if is_empty is None or scores.device.type != "cpu":
        return scores
    return _similarity._fill_empty_document_scores(scores, is_empty)


def without_tokens(document_mask: Tensor | None) -> Tensor | None:
    """Return which documents have no unmasked token: the shape of the mask without its last dimension."""
    return None if document_mask is None else ~document_mask.bool().any(dim=-1)


def zero_row_mask(padded: Tensor) -> Tensor:
    """Return the library's mask of a batch without one: 0 for rows of zeros, else 1, in the dtype of the batch.

    In fewer passes for the CPU, where the library's ``any`` takes half as long as the product. NaN is no zero.
    """
    if padded.device.type != "cpu" or padded.dtype not in (torch.float32, torch.float64) or 0 in padded.shape:
        return _similarity._zero_row_mask(padded)
    rows = padded.detach()
    return ((rows.amax(dim=-1) != 0) | (rows.amin(dim=-1) != 0)).to(padded.dtype)


def one_candidate(document_mask: Tensor | None) -> Tensor | None:
    """Return the mask of documents ``[B, Ld]`` as that of one candidate for each query, ``[B, 1, Ld]``."""
    return None if document_mask is None else document_mask.unsqueeze(1)
