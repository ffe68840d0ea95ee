"""colbert-ai's ranking for one query: on a GPU all stages of its search, with nothing between them on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from colbert.search.index_storage import IndexScorer
from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import arguments
from li_plugins_colbert import candidates, graphs, residency, search, stages

STEPS = ("retrieve", "generate_candidates", "score_pids")
"""What the library's ``rank`` calls."""
PRECISIONS = (
    "allow_fp16_reduced_precision_reduction",
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_accumulation",
)
"""Switches of torch that a product of 16-bit numbers depends on."""
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
            found = _on_gpu(self, config, Q.cuda())
            return found if found[0] else Decline("no candidates: colbert-ai's own error is the answer")
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


def _on_gpu(scorer: Any, config: Any, queries: Tensor) -> tuple[list[int], list[float]]:
    """Return passages and scores, none where there are no candidates; by graphs where these may be used."""
    stored, codec = residency.of(scorer), scorer.codec
    here = stored.device.index == torch.cuda.current_device() if graphs.are_used() else False
    if stored.searches is None or not here:
        return _found(stored, codec, config, queries, _launched)
    # all that its launches follow from; where the index lies is the same for all of its searches
    settings = config.query_maxlen, config.ncells, config.centroid_score_threshold, config.ndocs, codec.nbits
    read = [
        (part.data_ptr(), part.dtype, part.device, part.shape, part.stride())
        for part in (codec.centroids, codec.bucket_weights)
    ]
    products = (
        arguments.autocast_dtype(stored.device),
        torch.are_deterministic_algorithms_enabled(),
        *[getattr(torch.backends.cuda.matmul, name, None) for name in PRECISIONS],
    )
    with graphs.lock:
        kind = stored.searches.kind(queries.shape, queries.dtype, queries.device, settings, *read, products)
        return _found(stored, codec, config, queries, kind.run)


def _launched(part: str, function: Callable[..., Any], *inputs: Tensor) -> Any:
    """Launch a part of a search as it is."""
    return function(*inputs)


def _found(
    stored: residency.Stored, codec: Any, config: Any, queries: Tensor, run: Callable[..., Any]
) -> tuple[list[int], list[float]]:
    """Return passages and scores, the best first; ``run`` does both parts of the search whose launches are the same."""
    centroids, count = codec.centroids, config.ndocs

    def near(queries: Tensor) -> tuple[Tensor, ...]:
        queries = queries.to(centroids)
        scores = candidates.similarities(centroids, queries[:, : config.query_maxlen])
        is_kept = scores.amax(-1) >= config.centroid_score_threshold
        return queries, scores, is_kept, candidates.near(stored, scores, config.ncells)

    def ranked(queries: Tensor, scores: Tensor, passages: Tensor) -> tuple[Tensor, Tensor]:
        pairs = stages.left(stored, scores, (torch.zeros_like(passages), passages), count // 4)
        values, order = stages.scored(stored, codec, queries, pairs, centroids.dtype).sort(descending=True)
        return pairs[1].index_select(0, order), values

    queries, scores, is_kept, is_near = run("near", near, queries)
    found = candidates.listed(is_near, scores)
    _, passages = stages.left(stored, scores, (found.queries, found.passages), count, is_kept)
    if not len(passages):
        return [], []
    passages, values = (run if len(passages) == count else _launched)("ranked", ranked, queries, scores, passages)
    return passages.tolist(), values.tolist()


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
