"""Assignment and update of k-means in blocks of bounded size, in plain torch on any device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from li_plugins.api import Support
from li_plugins.ops.kmeans.problem import AssignProblem, SumsProblem, accumulation

TILE = {"cpu": (1024, 2048), "cuda": (8192, 4096)}
"""Most rows and centroids whose similarities are in memory at a time, by device: 8 MiB, which a CPU's cache may hold
until their maxima are found, and 128 MiB in float32."""
SUMMED_ROWS = 2**17
"""Most rows that are cast and added up at a time."""


class Assign:
    """Memory beyond inputs and outputs: one tile, and the centroids in the dtype of accumulation."""

    def supports(self, problem: AssignProblem) -> Support:
        """Serve everything."""
        return Support(True)

    def forward(self, problem: AssignProblem) -> tuple[Tensor, Tensor]:
        """Return the codes and the greatest similarities."""
        rows, dtype = problem.rows, accumulation(problem.rows, problem.centroids)
        codes = rows.new_empty(rows.shape[0], dtype=torch.int32)
        best = rows.new_empty(rows.shape[0], dtype=dtype)
        nearest = Nearest(problem.centroids, dtype, problem.by_distance)
        for start in range(0, rows.shape[0], nearest.rows_at_once):
            block = slice(start, start + nearest.rows_at_once)
            codes[block], best[block] = nearest(rows[block])
        return codes, best


class Nearest:
    """Finds the nearest centroids of a block of rows; it keeps what blocks share."""

    def __init__(self, centroids: Tensor, dtype: torch.dtype, by_distance: bool) -> None:
        self.rows_at_once, self._centroids_at_once = TILE.get(centroids.device.type, TILE["cpu"])
        self._centroids = centroids.to(dtype)
        self._half_squares = self._centroids.square().sum(1).div_(2) if by_distance else None
        self._memory = self._centroids.new_empty(self.rows_at_once * min(self._centroids_at_once, len(centroids)))

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes ``[n]`` int32 and greatest similarities ``[n]`` of at most ``rows_at_once`` rows ``[n, d]``."""
        rows = rows.to(self._centroids.dtype)
        codes = rows.new_empty(0, dtype=torch.int64)
        best = rows.new_empty(0)
        for start in range(0, len(self._centroids), self._centroids_at_once):
            centroids = self._centroids[start : start + self._centroids_at_once]
            tile = self._memory[: len(rows) * len(centroids)].view(len(rows), len(centroids))
            torch.mm(rows, centroids.T, out=tile)
            if self._half_squares is not None:
                tile -= self._half_squares[start : start + len(centroids)]
            found, where = tile.max(1)
            if start == 0:
                best, codes = found, where
                continue
            # equal ones stay with the first; a NaN, once met, is the greatest, as torch has it
            is_better = (found > best) | (found.isnan() & ~best.isnan())
            best = torch.where(is_better, found, best)
            codes = torch.where(is_better, where + start, codes)
        return codes.int(), best


class Sums:
    """Memory beyond inputs and outputs: a block of rows in the dtype of accumulation, and another set of sums."""

    def supports(self, problem: SumsProblem) -> Support:
        """Serve everything."""
        return Support(True)

    def forward(self, problem: SumsProblem) -> tuple[Tensor, Tensor]:
        """Return the sums and sizes of the clusters."""
        rows, clusters = problem.rows, problem.clusters
        sums = rows.new_zeros(problem.scores_shape, dtype=accumulation(rows))
        sizes = torch.zeros(clusters, dtype=torch.int64, device=rows.device)
        for start in range(0, rows.shape[0], SUMMED_ROWS):
            block = slice(start, start + SUMMED_ROWS)
            # Each cluster is a bag of its rows in their order: the same sum on every run, on the GPU too.
            codes, order = problem.codes[block].sort(stable=True)
            counts = torch.bincount(codes, minlength=clusters)
            sums += embedding_bag(order, rows[block].to(sums.dtype), counts.cumsum(0) - counts, mode="sum")
            sizes += counts
        return sums, sizes


ASSIGN, SUMS = Assign(), Sums()
