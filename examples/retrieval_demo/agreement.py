"""Whether both sides found the same: rankings, scores, losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrieval_demo.collection import Collection
from retrieval_demo.quality import ndcg, recall

NDCG_DEPTH, RECALL_DEPTH = 10, 100
TIE = 1e-5
"""Two documents whose scores differ by no more are tied."""
SCORE_LIMIT = 1e-3
LOSS_LIMIT = 1e-3


@dataclass(frozen=True)
class Ranked:
    """Rankings of several queries.

    ``ids[q][c]`` names the document of column ``c``, ``scores [queries, columns]`` has its score, and
    ``order [queries, columns]`` lists the columns best first.
    """

    ids: Sequence[Sequence[str]]
    scores: Tensor
    order: Tensor

    @classmethod
    def by_scores(cls, ids: Sequence[str], scores: Tensor) -> Ranked:
        """Rank the same documents for every query by a matrix of scores."""
        scores = scores.detach().cpu().double()
        return cls([ids] * len(scores), scores, scores.sort(descending=True, stable=True).indices)

    @classmethod
    def by_results(cls, ids: Sequence[Sequence[str]], results: Sequence[Sequence[Mapping[str, Any]]]) -> Ranked:
        """Take over the order of ``rank.rerank``; a candidate that it lost has NaN for a score."""
        scores = torch.full((len(ids), len(ids[0])), float("nan"), dtype=torch.float64)
        order = torch.zeros(scores.shape, dtype=torch.int64)
        for query, (candidates, ranked) in enumerate(zip(ids, results, strict=True)):
            columns = {document: column for column, document in enumerate(candidates)}
            for place, result in enumerate(ranked):
                order[query, place] = columns[result["id"]]
                scores[query, columns[result["id"]]] = result["score"]
        return cls(ids, scores, order)

    def first(self, query: int, depth: int) -> list[str]:
        """Return the ids of a query's best documents."""
        return [self.ids[query][column] for column in self.order[query, :depth].tolist()]


@dataclass(frozen=True)
class RankingAgreement:
    """Quality of both sides' rankings (off, on), and how far they are apart."""

    title: str
    ndcg: tuple[float, float]
    recall: tuple[float, float]
    largest_swap: float
    """Largest difference, by the first side's scores, between two documents that changed places; 0 when none did."""
    largest_score_difference: float

    @property
    def same_ranking(self) -> bool:
        """Whether only tied documents changed places."""
        return self.largest_swap <= TIE

    @property
    def same_scores(self) -> bool:
        """Whether the scores agree within the limit; NaN does not."""
        return self.largest_score_difference <= SCORE_LIMIT


def compare_rankings(title: str, collection: Collection, off: Ranked, on: Ranked) -> RankingAgreement:
    """Compare two rankings of the same documents for all queries of a collection."""
    return RankingAgreement(
        title=title,
        ndcg=(_mean(ndcg, collection, off, NDCG_DEPTH), _mean(ndcg, collection, on, NDCG_DEPTH)),
        recall=(_mean(recall, collection, off, RECALL_DEPTH), _mean(recall, collection, on, RECALL_DEPTH)),
        largest_swap=worst_inversion(on.order, off.scores),
        largest_score_difference=(off.scores - on.scores).abs().max().item(),
    )


def worst_inversion(order: Tensor, scores: Tensor) -> float:
    """How far rankings are from being sorted by somebody else's scores.

    Parameters
    ----------
    order
        Columns ``[queries, columns]``, best first.
    scores
        The other side's scores ``[queries, columns]``.

    Returns
    -------
    float
        The largest amount by which a later document outscores an earlier one: 0 when every ranking is sorted by
        ``scores``, the gap of the tie when only tied documents changed places, NaN when a score is.
    """
    ranked = scores.gather(1, order)
    rises = ranked - ranked.cummin(dim=1).values
    return rises.max().item()


def largest_difference(one: Sequence[float], other: Sequence[float]) -> float:
    """Largest absolute difference between two series; NaN when one of the numbers is."""
    return (torch.tensor(one, dtype=torch.float64) - torch.tensor(other, dtype=torch.float64)).abs().max().item()


def _mean(
    metric: Callable[[Sequence[str], Mapping[str, int], int], float], collection: Collection, ranked: Ranked, depth: int
) -> float:
    """Mean of a metric over the queries."""
    values = [
        metric(ranked.first(index, depth), collection.judgments[query], depth)
        for index, query in enumerate(collection.query_ids)
    ]
    return sum(values) / len(values)
