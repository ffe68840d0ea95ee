"""The best documents first."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from toycolbert.scoring import score


class Ranker:
    """Ranks documents; holds the score function as a default argument, as libraries do."""

    def __init__(self, score: Callable[..., Tensor] = score) -> None:
        self.score = score

    def rank(self, queries: Tensor, documents: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the indices of the documents, the best first, ``[A, B]``."""
        return self.score(queries, documents, mask).argsort(dim=1, descending=True)
