"""The lists of the nearest centroids: which entries of an inverted file are a query's."""

from __future__ import annotations

from torch import Tensor

from li_plugins.ops.spans import rows_of


def listed_near(centroid_scores: Tensor, centroid_offsets: Tensor, ncells: int) -> tuple[Tensor, Tensor]:
    """Return where the lists of the nearest centroids have entries, and the query of each: ``[n]`` int64 each."""
    nearest = centroid_scores.topk(ncells, dim=1, sorted=False).indices
    centroids = nearest.view(-1)
    begins = centroid_offsets.index_select(0, centroids)
    rows, owners = rows_of(begins, centroid_offsets.index_select(0, centroids + 1) - begins)
    return rows, owners.div(max(1, ncells * centroid_scores.shape[2]), rounding_mode="floor")
