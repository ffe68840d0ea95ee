"""How good a ranking is, by graded judgments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import log2


def ndcg(ranking: Sequence[str], judgments: Mapping[str, int], depth: int) -> float:
    """Normalised discounted cumulative gain of the first ``depth`` documents, between 0 and 1.

    The gain is the grade itself and the discount ``log2(rank + 1)``, as trec_eval and BEIR compute it.
    """
    gained = _discounted(judgments.get(document, 0) for document in ranking[:depth])
    return gained / _discounted(sorted(judgments.values(), reverse=True)[:depth])


def recall(ranking: Sequence[str], judgments: Mapping[str, int], depth: int) -> float:
    """Share of the relevant documents that are among the first ``depth``."""
    return sum(document in judgments for document in ranking[:depth]) / len(judgments)


def _discounted(gains: Iterable[int]) -> float:
    """Sum of the gains, each divided by the logarithm of its place."""
    return sum(gain / log2(place + 1) for place, gain in enumerate(gains, start=1))
