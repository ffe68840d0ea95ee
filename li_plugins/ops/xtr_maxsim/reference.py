"""XTR as one reads it: the whole grid of similarities in plain torch, the oracle of every other kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from li_plugins.api import Support
from li_plugins.ops.maxsim import reference as maxsim
from li_plugins.ops.maxsim.kept import compute_dtype
from li_plugins.ops.xtr_maxsim.problem import XtrProblem


class Reference:
    """Slow and obvious; its memory is a few times the grid, ``A * Lq * pool`` elements."""

    def supports(self, problem: XtrProblem) -> Support:
        """Serve everything."""
        return Support(True)

    def forward(self, problem: XtrProblem, want_winners: bool) -> tuple[Tensor, Tensor | None]:
        """Return the scores and, if wanted, the winning document token of every query token, and the counts."""
        dtype = compute_dtype(problem.queries.dtype)
        pool = problem.documents.flatten(0, -2).to(dtype)
        similarities = problem.queries.to(dtype) @ pool.T  # [A, Lq, pool]
        keep = problem.keep()
        if keep is None:
            keep = torch.ones(problem.pool, dtype=torch.bool, device=pool.device)
        similarities = similarities.masked_fill(~keep, problem.fill)
        is_retrieved = torch.zeros_like(similarities, dtype=torch.bool)
        is_retrieved.scatter_(-1, similarities.topk(problem.k).indices, True)
        if problem.rule.name == "EXCLUDE":
            is_retrieved &= keep

        similarities, is_retrieved, keep = (
            _own(problem, tokens) for tokens in (similarities, is_retrieved, keep.expand_as(similarities))
        )
        is_positive = problem.xtr_rule == "POSITIVE"
        lost = 0.0 if is_positive else -torch.inf
        best, winners = maxsim.first_maximum(similarities.where(is_retrieved, lost))
        is_found = is_retrieved.any(-1)
        if not is_positive:
            best = best.where(is_found, 0)
        scores, counts = problem.finished(best, is_found, slice(None))
        if not want_winners:
            return scores, None
        passes = (is_retrieved & keep).gather(-1, winners[..., None])[..., 0]
        found = torch.cat([winners.where(passes, -1), counts[:, None]], dim=1)  # [A, Lq + 1, columns]
        return scores, problem.by_score(found.mT).to(problem.winners_dtype).contiguous()

    def backward(
        self, problem: XtrProblem, grad_scores: Tensor, winners: Tensor, need_queries: bool, need_documents: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients: each sum's goes to its winning similarities alone."""
        winning, winners, grad_sums = problem.winning(winners, grad_scores)
        return maxsim.KERNEL.backward(winning, grad_sums, winners, need_queries, need_documents)


KERNEL = Reference()


def _own(problem: XtrProblem, tokens: Tensor) -> Tensor:
    """Return ``[A, Lq, pool]`` as ``[A, Lq, columns, Ld]``: of each query's own documents, where it has its own."""
    if problem.is_cross:
        return tokens.unflatten(-1, problem.documents.shape[:-1])
    tokens = tokens.unflatten(-1, problem.documents.shape[:-1])  # [A, Lq, A, K, Ld]
    return tokens.diagonal(dim1=0, dim2=2).movedim(-1, 0)
