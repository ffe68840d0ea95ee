"""Smooth MaxSim as one reads it: the whole grid of similarities in plain torch, the oracle of every other kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from li_plugins.api import Support
from li_plugins.ops.maxsim.problem import Layout
from li_plugins.ops.smooth_maxsim.problem import SmoothProblem


class Reference:
    """Slow and obvious; its memory is a few times the grid, ``scores * Lq * Ld`` elements."""

    def supports(self, problem: SmoothProblem) -> Support:
        """Serve everything."""
        return Support(True)

    def forward(self, problem: SmoothProblem, want_winners: bool) -> tuple[Tensor, Tensor | None]:
        """Return the scores and, if wanted, the logarithms of the sums over document tokens."""
        sums = _scaled(problem).logsumexp(-1)
        scores = (problem.tau * sums).sum(-1).to(problem.out_dtype)
        return scores, problem.by_score(sums).contiguous() if want_winners else None

    def backward(
        self, problem: SmoothProblem, grad_scores: Tensor, winners: Tensor, need_queries: bool, need_documents: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients: each similarity gets its share in the sum."""
        queries, documents = (side.to(winners.dtype) for side in (problem.queries, problem.documents))
        shares = (_scaled(problem) - problem.by_score(winners)[..., None]).exp() * grad_scores.to(winners.dtype)[
            ..., None, None
        ]
        candidates = "bks" if problem.layout is Layout.CANDIDATES else "ks"
        grad_queries = grad_documents = None
        if need_queries:
            grad_queries = torch.einsum(f"bkns,{candidates}d->bnd", shares, documents).to(problem.queries.dtype)
        if need_documents:
            grad_documents = torch.einsum(f"bkns,bnd->{candidates}d", shares, queries).to(problem.documents.dtype)
        return grad_queries, grad_documents


KERNEL = Reference()


def _scaled(problem: SmoothProblem) -> Tensor:
    """Return all similarities over ``tau``, ``[A, B or K, Lq, Ld]``."""
    queries, documents = (side.to(problem.winners_dtype) for side in (problem.queries, problem.documents))
    return queries[:, None] @ documents.mT / problem.tau
