"""Scores of documents for queries."""

from __future__ import annotations

import torch
from torch import Tensor


def score(queries: Tensor, documents: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return how well each document answers each query.

    Parameters
    ----------
    queries
        ``[A, Lq, d]``
    documents
        ``[B, Ld, d]``
    mask
        ``[B, Ld]``, true for the tokens that count.

    Returns
    -------
    Tensor
        ``[A, B]``
    """
    similarities = torch.einsum("ash,bth->abst", queries, documents)
    if mask is not None:
        similarities = similarities.masked_fill(~mask[None, :, None, :], -9999.0)
    return similarities.max(dim=-1).values.sum(dim=-1)
