"""colbert-ai's ranking for one query: on a GPU all stages of its search, with nothing between them on the host."""

from __future__ import annotations

from typing import Any

import torch
from colbert.search.index_storage import IndexScorer
from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import arguments
from li_plugins_colbert import candidates, residency, search, stages

STEPS = ("retrieve", "generate_candidates", "score_pids")
"""What the library's ``rank`` calls."""
_LISTED = torch.zeros(1, dtype=torch.int32)
"""Passages such as those that are found."""


def rank(
    self: Any, config: Any, Q: Tensor, filter_fn: Any = None, pids: Any = None
) -> tuple[list[int], list[float]] | Decline:
    """Return the passages for a query ``[1, Lq, dim]`` that pruning leaves, and their scores, the best first."""
    refusal = unranked(self, config, Q, filter_fn, pids)
    if refusal:
        return refusal
    with torch.inference_mode():
        if self.use_gpu:
            centroids = self.codec.centroids
            (_, passages), scores = searched(self, config, Q.cuda().to(centroids), centroids.dtype)
            if not len(scores):
                return Decline("no candidates: colbert-ai's own error is the answer")
        else:
            passages, centroid_scores = self.retrieve(config, Q)
            scores, passages = self.score_pids(config, Q, passages, centroid_scores)
        values, order = scores.sort(descending=True)
        return passages.index_select(0, order).tolist(), values.tolist()


def explain_rank(self: Any, config: Any, Q: Tensor, filter_fn: Any = None, pids: Any = None) -> object:
    """Say where the stages would run, or why colbert-ai's own code would call them."""
    refusal = unranked(self, config, Q, filter_fn, pids)
    if refusal or not self.use_gpu:
        return refusal or "generate_candidates and score_pids, one after the other"
    return f"all stages at once; {residency.of(self).why}"


def searched(scorer: Any, config: Any, queries: Tensor, out_dtype: torch.dtype) -> tuple[stages.Pairs, Tensor]:
    """Return the pairs of ``queries [A, Lq, dim]`` and passages that pruning leaves, and their scores ``[P]``.

    The queries are where the centroids are, and have their dtype.
    """
    stored, codec = residency.of(scorer), scorer.codec
    found = candidates.of_queries(stored, codec.centroids, queries[:, : config.query_maxlen], config.ncells)
    pairs = stages.pruned(
        stored,
        found.centroid_scores,
        (found.queries, found.passages),
        config.centroid_score_threshold,
        config.ndocs,
    )
    return pairs, stages.scored(stored, codec, queries, pairs, out_dtype)


def unranked(scorer: Any, config: Any, queries: Any, filter_fn: Any, pids: Any) -> Decline | None:
    """Decline what is not ranked in one go; its steps may be served one by one."""
    if not isinstance(scorer, IndexScorer):
        return Decline(f"called on {type(scorer).__name__}, which is no IndexScorer")
    if filter_fn is not None or pids is not None:
        return Decline("a filter, or passages that are given: they come between the stages")
    if not scorer.use_gpu:
        return None
    for step in STEPS:
        refusal = arguments.foreign(getattr(scorer, step), step, "colbert")
        if refusal:
            return refusal
    return candidates.ungenerated(scorer, queries) or search.unsearched(scorer, config, queries, _LISTED)
