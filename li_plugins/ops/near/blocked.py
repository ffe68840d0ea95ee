"""The documents near queries in plain torch on any device, all lists at once."""

from __future__ import annotations

import torch
from torch import Tensor

from li_plugins.api import Support
from li_plugins.errors import BadInput
from li_plugins.ops import checks
from li_plugins.ops.near.lists import listed_near
from li_plugins.ops.near.problem import NearProblem


class Near:
    """Memory beyond inputs and outputs: some numbers for each document that is listed near a token."""

    def supports(self, problem: NearProblem) -> Support:
        """Serve everything."""
        return Support(True)

    def forward(self, problem: NearProblem) -> Tensor:
        """Return which documents are near."""
        is_near = problem.listed.new_zeros(problem.scores_shape, dtype=torch.bool)
        rows, owners = listed_near(problem.centroid_scores, problem.centroid_offsets, problem.ncells)
        if rows.device.type == "cpu" and rows.numel() and int(rows.amax()) >= problem.listed.shape[0]:
            raise BadInput(
                f"centroid_offsets end at most at the number of documents, {problem.listed.shape[0]}",
                f"{int(rows.amax()) + 1}",
                "take the lists and how long they are from one index",
            )
        listed = problem.listed.index_select(0, rows).long()
        checks.values_below("documents", listed, problem.document_count)
        is_near.view(-1)[owners * problem.document_count + listed] = True
        return is_near


NEAR = Near()
