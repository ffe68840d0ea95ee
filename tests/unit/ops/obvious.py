"""MaxSim as its definition reads, pair by pair, for the public functions' arguments: autograd does the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from li_plugins.ops import MaskRule

RULES = [MaskRule.NONE, MaskRule.ZERO, MaskRule.EXCLUDE, MaskRule.FILL(-9999.0), MaskRule.FILL(0.25)]


def pair(
    query: Tensor, document: Tensor, weights: Tensor | None, mask: Tensor | None, floor: bool, rule: MaskRule
) -> Tensor:
    """Return the score of one query ``[Lq, d]`` and one document ``[Ld, d]``."""
    if document.shape[0] == 0:
        return query.new_tensor(rule.empty_score)
    weights = torch.ones_like(query[:, 0]) if weights is None else weights.to(query)
    similarities = query @ document.T
    if mask is not None and rule.name == "ZERO":
        similarities = similarities * mask.to(query)
    if mask is not None and rule.name == "EXCLUDE":
        similarities = similarities[:, mask != 0]
    if mask is not None and rule.name == "FILL":
        similarities = torch.where(mask != 0, similarities, rule.fill)
    if similarities.shape[1] == 0:
        return query.new_tensor(rule.empty_score)
    if rule.name == "ZERO":
        similarities = similarities * weights[:, None]
    if floor:
        similarities = torch.cat([similarities, torch.zeros_like(similarities[:, :1])], dim=1)
    best = similarities.max(dim=1).values
    return (best if rule.name == "ZERO" else best * weights).sum()


def maxsim(
    queries: Tensor,
    documents: Tensor,
    *,
    query_weights: Tensor | None = None,
    document_mask: Tensor | None = None,
    document_lengths: Tensor | None = None,
    mask_rule: MaskRule = MaskRule.NONE,
) -> Tensor:
    """Score ``[A, Lq, d]`` against ``[B, Ld, d]`` or ``[A, K, Ld, d]``."""

    def score(a: int, *b: int) -> Tensor:
        end = documents.shape[-2] if document_lengths is None else int(document_lengths[b])
        return pair(
            queries[a],
            documents[b][:end],
            None if query_weights is None else query_weights[a],
            None if document_mask is None else document_mask[b][:end],
            False,
            mask_rule,
        )

    rows, columns = queries.shape[0], documents.shape[-3]
    if documents.dim() == 3:
        return grid(queries, rows, columns, lambda a, b: score(a, b))
    return grid(queries, rows, columns, lambda a, k: score(a, a, k))


def maxsim_packed(
    queries: Tensor,
    documents: Tensor,
    query_offsets: Tensor,
    document_offsets: Tensor,
    *,
    pairs: tuple[Tensor, Tensor] | None = None,
    query_weights: Tensor | None = None,
    document_mask: Tensor | None = None,
    floor: Tensor | None = None,
    mask_rule: MaskRule = MaskRule.NONE,
    **_: Any,
) -> Tensor:
    """Score ragged queries against ragged documents."""

    def score(a: int, b: int, floored: bool) -> Tensor:
        query = slice(int(query_offsets[a]), int(query_offsets[a + 1]))
        document = slice(int(document_offsets[b]), int(document_offsets[b + 1]))
        return pair(
            queries[query],
            documents[document],
            None if query_weights is None else query_weights[query],
            None if document_mask is None else document_mask[document],
            floored,
            mask_rule,
        )

    if pairs is None:
        count = len(query_offsets) - 1, len(document_offsets) - 1
        return grid(queries, *count, lambda a, b: score(a, b, floor is not None and bool(floor[b])))
    scores = [
        score(int(a), int(b), floor is not None and bool(floor[p])) for p, (a, b) in enumerate(zip(*pairs, strict=True))
    ]
    return torch.stack(scores) if scores else queries.new_zeros(0)


def grid(like: Tensor, rows: int, columns: int, score: Callable[[int, int], Tensor]) -> Tensor:
    """Return the scores of all pairs, ``[rows, columns]``, in the dtype of ``like``."""
    scores = [score(a, b) for a in range(rows) for b in range(columns)]
    return torch.stack(scores).view(rows, columns) if scores else like.new_zeros(rows, columns)
