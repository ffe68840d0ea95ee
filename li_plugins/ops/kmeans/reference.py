"""Assignment and update of k-means as one reads them, the oracle of every other kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from li_plugins.api import Support
from li_plugins.ops.kmeans.problem import AssignProblem, SumsProblem, accumulation


class Assign:
    """The whole matrix of similarities, ``N * K`` elements."""

    def supports(self, problem: AssignProblem) -> Support:
        """Serve everything."""
        return Support(True)

    def forward(self, problem: AssignProblem) -> tuple[Tensor, Tensor]:
        """Return the codes and the greatest similarities."""
        dtype = accumulation(problem.rows, problem.centroids)
        rows, centroids = problem.rows.to(dtype), problem.centroids.to(dtype)
        similarities = rows @ centroids.T
        if problem.by_distance:
            similarities = similarities - centroids.square().sum(1) / 2
        best, codes = similarities.max(1)
        return codes.int(), best


class Sums:
    """One row after the other."""

    def supports(self, problem: SumsProblem) -> Support:
        """Serve everything."""
        return Support(True)

    def forward(self, problem: SumsProblem) -> tuple[Tensor, Tensor]:
        """Return the sums and sizes of the clusters."""
        rows, codes = problem.rows.to(accumulation(problem.rows)), problem.codes.long()
        sums = rows.new_zeros(problem.scores_shape).index_add_(0, codes, rows)
        return sums, torch.bincount(codes, minlength=problem.clusters)


ASSIGN, SUMS = Assign(), Sums()
