"""colbert-ai's sample, from which centroids are trained: kept for the index, which may be of the same passages."""

from __future__ import annotations

from typing import Any

from li_plugins.api import Decline
from li_plugins_colbert import passages
from li_plugins_colbert.collection import unlike_indexer


def sample_embeddings(self: Any, sampled_pids: set[int], *, original: Any = None) -> float | Decline:
    """Encode and save the sample as the library does, while its encoder keeps what it encodes."""
    refusal = unlike_indexer(self)
    if refusal:
        return refusal
    setattr(self.encoder, passages.KEEPS, True)
    try:
        length: float = original(self, sampled_pids)
    finally:
        delattr(self.encoder, passages.KEEPS)
    return length


def explain_sample_embeddings(self: Any, sampled_pids: set[int]) -> object:
    """Say what becomes of the sample."""
    return unlike_indexer(self) or f"the library's own; up to {passages.MOST_PASSAGES} passages are kept for the index"
