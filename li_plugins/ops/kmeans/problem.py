"""The problems of k-means after validation: which centroid is nearest, and what each cluster adds up to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from li_plugins.ops.described import Described


def accumulation(*tensors: Tensor) -> torch.dtype:
    """Return the dtype of products and sums: float32, or float64 where an input has it."""
    return torch.float64 if any(tensor.dtype is torch.float64 for tensor in tensors) else torch.float32


@dataclass(frozen=True, slots=True, eq=False)
class AssignProblem(Described):
    """Find for each of ``rows [N, d]`` the nearest of ``centroids [K, d]``, both of any floating dtype, K >= 1.

    The nearest has the greatest dot product ``x . c`` or, with ``by_distance``, the greatest ``x . c - |c|^2 / 2``,
    which is the smallest distance. Results: codes ``[N]`` int32, the first of equal ones; that greatest value ``[N]``
    in the dtype of accumulation.
    """

    rows: Tensor
    centroids: Tensor
    by_distance: bool

    @property
    def queries(self) -> Tensor:
        """The rows."""
        return self.rows

    @property
    def documents(self) -> Tensor:
        """The centroids."""
        return self.centroids

    @property
    def scores_shape(self) -> tuple[int, ...]:
        """Shape of the codes."""
        return (self.rows.shape[0],)


@dataclass(frozen=True, slots=True, eq=False)
class SumsProblem(Described):
    """Add up the ``rows [N, d]`` of each cluster; ``codes [N]`` int32 or int64 say whose each is.

    Results: sums ``[clusters, d]`` in the dtype of accumulation, the rows of a cluster added in a fixed order; sizes
    ``[clusters]`` int64.
    """

    rows: Tensor
    codes: Tensor
    clusters: int

    @property
    def queries(self) -> Tensor:
        """The rows."""
        return self.rows

    @property
    def documents(self) -> Tensor:
        """The codes."""
        return self.codes

    @property
    def scores_shape(self) -> tuple[int, ...]:
        """Shape of the sums."""
        return self.clusters, self.rows.shape[1]
