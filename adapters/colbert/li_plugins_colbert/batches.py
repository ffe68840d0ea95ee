"""colbert-ai's ``search_all`` on a GPU: several queries at a time through each stage."""

from __future__ import annotations

from typing import Any

import torch
from colbert import searcher
from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import arguments
from li_plugins_colbert import candidates, ranking, residency, stages

MOST_BYTES = 1 << 29
"""How much memory the similarities of centroids, the marks of passages and the candidates may take: so many queries."""
CANDIDATE_BYTES = 64
"""A candidate's: whose it is, where it lies, its place among others and its score."""
MOST_QUERIES = 64


def search_all_q(
    self: Any, queries: Any, Q: Tensor, k: int, filter_fn: Any = None, qid_to_pids: Any = None
) -> Any | Decline:
    """Return the ranking of the best ``k`` passages of each of ``Q [A, Lq, dim]``, by the ids of ``queries``."""
    refusal = _one_by_one(self, queries, Q, filter_fn, qid_to_pids)
    if refusal:
        return refusal
    qids = list(queries.keys())
    rankings = []
    with searcher.tqdm(total=len(qids)) as progress, torch.inference_mode():
        # the first search of k passages says how those after it prune
        pids, _, scores = self.dense_search(Q[:1], k)
        rankings.append((pids, scores))
        progress.update()
        for some in Q[1:].split(_together(self, Q)):
            rankings.extend(_ranked(self.ranker, self.config, some, k))
            progress.update(len(some))
    data = {
        qid: list(zip(pids, range(1, k + 1), scores, strict=False))
        for qid, (pids, scores) in zip(qids, rankings, strict=True)
    }
    provenance = searcher.Provenance()
    provenance.source = "Searcher::search_all"
    provenance.queries = queries.provenance()
    provenance.config = self.config.export()
    provenance.k = k
    return searcher.Ranking(data=data, provenance=provenance)


def explain_search_all_q(
    self: Any, queries: Any, Q: Tensor, k: int, filter_fn: Any = None, qid_to_pids: Any = None
) -> object:
    """Say how many queries would be searched together, or why colbert-ai would search one after the other."""
    refusal = _one_by_one(self, queries, Q, filter_fn, qid_to_pids)
    return refusal or f"{_together(self, Q)} of {len(Q)} queries together; {residency.of(self.ranker).why}"


def _ranked(ranker: Any, config: Any, queries: Tensor, k: int) -> list[tuple[list[int], list[float]]]:
    """Return pids and scores of each of ``queries``, best first, as ``IndexScorer.rank`` for one of them."""
    stored, codec = residency.of(ranker), ranker.codec
    centroids = codec.centroids
    queries = queries.cuda().to(centroids)
    found = candidates.of_queries(stored, centroids, queries[:, : config.query_maxlen], config.ncells)
    pairs = stages.pruned(
        stored,
        found.centroid_scores,
        (found.queries, found.passages),
        config.centroid_score_threshold,
        config.ndocs,
    )
    scores = stages.scored(stored, codec, queries, pairs, torch.float32)
    chosen = stages.best(pairs[0], scores, k, len(queries), in_order=True)
    counts = torch.bincount(pairs[0][chosen], minlength=len(queries)).tolist()
    # rounded to the library's dtype after they are in order
    values = scores[chosen].to(centroids.dtype).tolist()
    pids = pairs[1][chosen].tolist()
    rankings, start = [], 0
    for count in counts:
        rankings.append((pids[start : start + count], values[start : start + count]))
        start += count
    return rankings


def _together(made: Any, queries: Tensor) -> int:
    """Return how many queries are searched at a time."""
    centroids, tokens, passages = made.ranker.codec.centroids, queries.shape[1], len(made.ranker.doclens)
    of_a_centroid = len(residency.of(made.ranker).cells.values) / max(1, len(centroids))
    most = min(passages, (made.config.ncells or 1) * tokens * of_a_centroid)
    each = len(centroids) * tokens * centroids.element_size() + passages + CANDIDATE_BYTES * most
    return max(1, min(MOST_QUERIES, int(MOST_BYTES // max(1, each))))


def _one_by_one(made: Any, asked: Any, queries: Any, filter_fn: Any, qid_to_pids: Any) -> Decline | None:
    if not isinstance(made, searcher.Searcher):
        return Decline(f"called on {type(made).__name__}, which is no Searcher")
    ranker = made.ranker
    if not getattr(ranker, "use_gpu", False):
        return Decline("no GPU: one query after the other keeps a CPU busy")
    if filter_fn is not None or qid_to_pids is not None:
        return Decline("a filter, or passages that are given: each query has its own")
    if type(queries) is not Tensor or queries.dim() != 3 or len(queries) < 2:
        return Decline("Q is no tensor of several queries [A, Lq, dim]")
    if len(queries) != len(asked.keys()):
        return Decline(f"Q has {len(queries)} rows for {len(asked.keys())} queries: colbert-ai has its own answer")
    for owner, name in ((made, "dense_search"), (ranker, "rank")):
        refusal = arguments.foreign(getattr(owner, name), name, "colbert")
        if refusal:
            return refusal
    return ranking.unranked(ranker, made.config, queries[:1], None, None)
