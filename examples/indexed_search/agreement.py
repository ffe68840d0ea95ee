"""Whether two searchers found the same in one index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retrieval_demo.collection import Collection
from retrieval_demo.quality import ndcg, recall

from indexed_search.worker import Ranking

TIE = 1e-4
"""Two documents whose scores differ by no more are tied: sums of float32 in another order."""
NDCG_DEPTH, RECALL_DEPTH = 10, 100


@dataclass(frozen=True)
class Agreement:
    """How far apart two rankings of the same queries are."""

    largest_score_difference: float
    """Between the scores at one place."""
    largest_swap: float
    """Between the scores of documents that stand in each other's place; infinite where one side lacks a document whose
    score is no tie with the other's last."""

    @property
    def same(self) -> bool:
        """Whether only ties changed places."""
        return self.largest_score_difference <= TIE and self.largest_swap <= TIE


def compare(found: Sequence[Ranking], expected: Sequence[Ranking]) -> Agreement:
    """Compare the rankings of two searchers, query by query."""
    difference = swap = 0.0
    for (documents, scores), (theirs, their_scores) in zip(found, expected, strict=True):
        if len(documents) != len(theirs):
            return Agreement(float("inf"), float("inf"))
        places = dict(zip(documents, scores, strict=True))
        last = scores[-1] if scores else 0.0
        for place, document in enumerate(theirs):
            difference = max(difference, abs(scores[place] - their_scores[place]))
            if document != documents[place]:
                # One that this side cut off at the end has at most the score of its last.
                swap = max(swap, abs(scores[place] - places.get(document, last)))
    return Agreement(difference, swap)


def quality(collection: Collection, rankings: Sequence[Ranking]) -> tuple[float, float]:
    """Return nDCG@10 and Recall@100, the means over all queries."""
    gains, shares = [], []
    for query, (documents, _) in zip(collection.query_ids, rankings, strict=True):
        names = [collection.document_ids[document] for document in documents]
        gains.append(ndcg(names, collection.judgments[query], NDCG_DEPTH))
        shares.append(recall(names, collection.judgments[query], RECALL_DEPTH))
    return sum(gains) / len(gains), sum(shares) / len(shares)
