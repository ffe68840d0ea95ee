"""The stages of colbert-ai's search on a GPU: candidates pruned by their centroids, then scored by what is stored.

For any number of queries at a time. The library prunes by sums that are rounded to float16, equal ones in no order;
here sums are float32, so that what is kept is among what the library may keep.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from li_plugins.ops import code_maxsim, explain_residual_maxsim, residual_maxsim
from li_plugins_colbert.operations import MASKED
from li_plugins_colbert.residency import Stored

Pairs = tuple[Tensor, Tensor]
"""Queries and passages, ``[P]`` int64 each, sorted by query."""


def pruned(stored: Stored, centroid_scores: Tensor, pairs: Pairs, threshold: float, ndocs: int) -> Pairs:
    """Return the ``ndocs // 4`` best passages of each query by all centroids, among the ``ndocs`` best by near ones.

    ``centroid_scores [A, K, Lq]``; a centroid is near a query where one of its scores is at least ``threshold``.
    """
    if len(pairs[0]) > ndocs:
        pairs = left(stored, centroid_scores, pairs, ndocs, centroid_scores.amax(-1) >= threshold)
    return left(stored, centroid_scores, pairs, ndocs // 4)


def left(stored: Stored, centroid_scores: Tensor, pairs: Pairs, count: int, near: Tensor | None = None) -> Pairs:
    """Return the ``count`` best passages of each query by the centroids that are ``near [A, K]``, or by all."""
    queries, passages = pairs
    if len(queries) <= count:
        return pairs  # none is left out, whatever they score
    scores = []
    for run in stored.runs(passages, residuals=False):
        codes, _, offsets, documents = stored.tokens(passages[run], residuals=False)
        pairs_of_run = queries[run], documents
        scores.append(code_maxsim(centroid_scores, codes, offsets, pairs=pairs_of_run, kept=near, least=MASKED))
    chosen = best(queries, _joined(scores), count, len(centroid_scores), in_order=False)
    # those of one query are all the same
    queries = queries[: len(chosen)] if len(centroid_scores) == 1 else queries.index_select(0, chosen)
    return queries, passages.index_select(0, chosen)


def left_in_room(
    stored: Stored, centroid_scores: Tensor, passages: Tensor, is_there: Tensor, count: int, near: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return who is ``left`` of one query's ``passages [room]``, those there before any other, and who of them is."""
    codes, _, offsets, documents = stored.tokens(passages, residuals=False)
    pairs = torch.zeros_like(passages), documents
    scores = code_maxsim(centroid_scores, codes, offsets, pairs=pairs, kept=near, least=MASKED)
    chosen = scores.masked_fill(~is_there, -torch.inf).topk(count, sorted=False).indices
    return passages.index_select(0, chosen), is_there.index_select(0, chosen)


def scored(stored: Stored, codec: Any, queries: Tensor, pairs: Pairs, out_dtype: torch.dtype) -> Tensor:
    """Return the scores ``[P]`` of pairs of ``queries [A, Lq, dim]`` and passages by their stored embeddings."""
    runs = stored.runs(pairs[1], residuals=True)
    return _joined(
        [residual_maxsim(**_request(stored, codec, queries, (pairs[0][run], pairs[1][run]), out_dtype)) for run in runs]
    )


def explain_scored(stored: Stored, codec: Any, queries: Tensor, pairs: Pairs, out_dtype: torch.dtype) -> str:
    """Say which kernel would score, and where what is stored lies."""
    return f"{stored.why}; {explain_residual_maxsim(**_request(stored, codec, queries, pairs, out_dtype))}"


def best(queries: Tensor, scores: Tensor, count: int, queried: int, *, in_order: bool) -> Tensor:
    """Return where the ``count`` best scores of each query are, or all it has; sorted by query.

    Parameters
    ----------
    queries, scores
        ``[P]``; the queries ascend, below ``queried``.
    in_order
        Whether the best of each query come first; else they are in any order.
    """
    if queried == 1:
        return scores.topk(min(count, len(scores)), sorted=in_order).indices
    bounds = torch.searchsorted(queries, torch.arange(queried + 1, device=queries.device))
    begins, counts = bounds[:-1], bounds.diff()
    widest = int(counts.amax())
    places = torch.arange(len(queries), device=queries.device) - begins.index_select(0, queries)
    padded = scores.new_full((queried, widest), -torch.inf)
    padded.view(-1)[queries * widest + places] = scores
    found = padded.topk(min(count, widest), sorted=in_order).indices
    return (begins[:, None] + found)[found < counts[:, None]]


def _joined(scores: list[Tensor]) -> Tensor:
    return scores[0] if len(scores) == 1 else torch.cat(scores)


def _request(stored: Stored, codec: Any, queries: Tensor, pairs: Pairs, out_dtype: torch.dtype) -> dict[str, Any]:
    codes, residuals, offsets, documents = stored.tokens(pairs[1], residuals=True)
    return {
        "queries": queries.to(codec.centroids),
        "codes": codes,
        "residuals": residuals,
        "centroids": codec.centroids,
        "bucket_weights": codec.bucket_weights,
        "document_offsets": offsets,
        "nbits": codec.nbits,
        "pairs": (pairs[0], documents),
        # the library pads here, and what it pads has this similarity
        "least": MASKED,
        "out_dtype": out_dtype,
    }
