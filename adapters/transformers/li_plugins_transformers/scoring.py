"""``score_retrieval`` of transformers' processors as packed MaxSim: no passage is padded, memory is bounded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import ragged
from li_plugins.ops.arguments import Request


def score_retrieval(
    self: object,
    query_embeddings: Tensor | list[Tensor],
    passage_embeddings: Tensor | list[Tensor],
    batch_size: int = 128,
    output_dtype: torch.dtype | None = None,
    output_device: torch.device | str = "cpu",
) -> Tensor | Decline:
    """Score every query against every passage: ``[queries, passages]``, rounded once, to ``output_dtype``.

    ``batch_size`` does not bound memory here. It says which passages the library pads together, and a padded passage
    scores at least 0 for each query token.
    """
    scores = ragged.scores(_launches(query_embeddings, passage_embeddings, batch_size, output_dtype))
    return scores if isinstance(scores, Decline) else scores.to(output_device)


def explain_score_retrieval(
    self: object,
    query_embeddings: Tensor | list[Tensor],
    passage_embeddings: Tensor | list[Tensor],
    batch_size: int = 128,
    output_dtype: torch.dtype | None = None,
    output_device: torch.device | str = "cpu",
) -> object:
    """Say which kernel ``score_retrieval`` would use, or why the library's own code would run."""
    return ragged.explained(_launches(query_embeddings, passage_embeddings, batch_size, output_dtype))


def _launches(queries: Any, passages: Any, batch_size: Any, output_dtype: Any) -> Iterator[Request | Decline]:
    if all(isinstance(texts, (list, tuple, Tensor)) and len(texts) for texts in (queries, passages)):
        # As the library reads them, before autocast lowers anything.
        of_queries, of_passages = (getattr(texts[0], "dtype", None) for texts in (queries, passages))
        if of_queries is not of_passages:
            return iter(
                [Decline(f"queries of {of_queries}, passages of {of_passages}: the library raises its own error")]
            )
        output_dtype = output_dtype or of_queries
    return ragged.requests(queries, passages, batch_size=batch_size, out_dtype=output_dtype)
