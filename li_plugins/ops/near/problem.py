"""The problem of finding the documents near queries after validation; tensors share one device."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from li_plugins.ops.described import Described


@dataclass(frozen=True, slots=True, eq=False)
class NearProblem(Described):
    """Which of ``document_count`` documents are listed by the ``ncells`` nearest centroids of a query's tokens.

    ``centroid_scores [A, K, Lq]``; centroid ``k`` lists ``listed`` from ``centroid_offsets[k]`` to
    ``centroid_offsets[k + 1]`` (``[M]`` int32 or int64, ``[K + 1]`` int64).
    """

    centroid_scores: Tensor
    listed: Tensor
    centroid_offsets: Tensor
    ncells: int
    document_count: int

    @property
    def queries(self) -> Tensor:
        """The scores of the centroids."""
        return self.centroid_scores

    @property
    def documents(self) -> Tensor:
        """What the centroids list."""
        return self.listed

    @property
    def scores_shape(self) -> tuple[int, ...]:
        """Shape of the result, ``[A, B]``."""
        return self.centroid_scores.shape[0], self.document_count
