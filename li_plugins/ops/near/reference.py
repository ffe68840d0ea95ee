"""The documents near queries as one reads it, token by token, the oracle of every other kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from li_plugins.api import Support
from li_plugins.ops.near.problem import NearProblem


class Near:
    """One query token after the other."""

    def supports(self, problem: NearProblem) -> Support:
        """Serve everything."""
        return Support(True)

    def forward(self, problem: NearProblem) -> Tensor:
        """Return which documents are near."""
        offsets = problem.centroid_offsets.tolist()
        is_near = problem.listed.new_zeros(problem.scores_shape, dtype=torch.bool)
        for query, scores in enumerate(problem.centroid_scores):
            for of_token in scores.T:
                for centroid in of_token.argsort(descending=True, stable=True)[: problem.ncells].tolist():
                    is_near[query, problem.listed[offsets[centroid] : offsets[centroid + 1]].long()] = True
        return is_near


NEAR = Near()
