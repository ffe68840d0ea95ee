"""colbert-ai's ranking for one query: on a GPU all stages of its search, with nothing between them on the host."""

from __future__ import annotations

from itertools import compress
from typing import Any

import torch
from colbert.search.index_storage import IndexScorer
from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import arguments
from li_plugins_colbert import candidates, graphs, residency, search, stages
from li_plugins_colbert.extensions import explain_load_for_index_scorer

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

Ranking = tuple[list[int], list[float]]
"""Passages and their scores, the best first."""


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
    if refusal:
        return refusal
    if not self.use_gpu:
        called = explain_load_for_index_scorer(type(self), use_gpu=False)
        return f"generate_candidates and score_pids, one after the other; {called}"
    return f"all stages at once; {residency.of(self).why}"


def _on_gpu(scorer: Any, config: Any, queries: Tensor) -> Ranking:
    """Return passages and scores, none where there are no candidates; by graphs where these may be used."""
    stored, codec = residency.of(scorer), scorer.codec
    here = stored.device.index == torch.cuda.current_device() if graphs.are_used() else False
    if stored.searches is None or not here:
        return _launched(stored, codec, config, queries)[0]
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
        return _found(stored, codec, config, queries, kind)


def _found(stored: residency.Stored, codec: Any, config: Any, queries: Tensor, kind: graphs.Kind) -> Ranking:
    """Return passages and scores by the graph of a kind, which has room for as many candidates as have come."""
    if kind.room:
        room = max(min(kind.room, len(stored.offsets) - 1), config.ndocs)
        numbers = kind.run(lambda queries: _launched_in_room(stored, codec, config, queries, room), queries).tolist()
        count = int(numbers[0])
        if count <= room:
            return _read(numbers[1:], count)
    found, count = _launched(stored, codec, config, queries)
    kind.make_room(count)
    return found


def _launched(stored: residency.Stored, codec: Any, config: Any, queries: Tensor) -> tuple[Ranking, int]:
    """Launch a search part by part, since how many candidates there are is waited for: its ranking, and that number.

    Equal scores are in the order of the passages.
    """
    queries, scores, is_near = _near(stored, codec, config, queries)
    found = candidates.listed(is_near, scores)
    pairs = found.queries, found.passages
    count = len(found.passages)
    if not count:
        return ([], []), 0
    asked, passages = stages.pruned(stored, scores, pairs, config.centroid_score_threshold, config.ndocs)
    passages = passages.sort().values
    values = stages.scored(stored, codec, queries, (asked, passages), codec.centroids.dtype)
    values, order = values.sort(descending=True, stable=True)
    return (passages.index_select(0, order).tolist(), values.tolist()), count


def _launched_in_room(stored: residency.Stored, codec: Any, config: Any, queries: Tensor, room: int) -> Tensor:
    """Launch the same without a wait: float64 ``[1 + 3 n]``, for ``_read``, after how many candidates there are.

    The ranking is worth nothing where they are more than ``room``, which is ``ndocs`` at least.
    """
    queries, scores, is_near = _near(stored, codec, config, queries)
    is_kept = scores.amax(-1) >= config.centroid_score_threshold
    passages, is_there, count = candidates.in_room(is_near, room)
    for most, near in ((config.ndocs, is_kept), (config.ndocs // 4, None)):
        passages, is_there = stages.left_in_room(stored, scores, passages, is_there, most, near)
    passages, order = passages.sort()
    is_there = is_there.index_select(0, order)
    pairs = torch.zeros_like(passages), passages
    values = stages.scored(stored, codec, queries, pairs, codec.centroids.dtype)
    values, order = values.masked_fill(~is_there, -torch.inf).sort(descending=True, stable=True)
    # together, since each copy to the host is a wait; passages of an index are far fewer than 2**53
    columns = is_there.index_select(0, order), passages.index_select(0, order), values
    return torch.cat([count.double(), *[column.double() for column in columns]])


def _read(numbers: list[float], count: int) -> Ranking:
    """Return passages and scores from three columns: whether a row is there, its passage, its score."""
    rows = len(numbers) // 3
    is_there, passages, scores = numbers[:rows], numbers[rows : 2 * rows], numbers[2 * rows :]
    if count < rows:
        passages, scores = ([*compress(column, is_there)] for column in (passages, scores))
    return [int(passage) for passage in passages], scores


def _near(stored: residency.Stored, codec: Any, config: Any, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries in the centroids' dtype, their scores, and which passages are near."""
    queries = queries.to(codec.centroids)
    scores = candidates.similarities(codec.centroids, queries[:, : config.query_maxlen])
    return queries, scores, candidates.near(stored, scores, config.ncells)


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
