"""One XTR problem after validation: what every kernel receives, and what scores and gradients have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from li_plugins.ops.masks import MaskRule
from li_plugins.ops.maxsim.kept import compute_dtype
from li_plugins.ops.maxsim.problem import Problem


@dataclass(frozen=True, slots=True, eq=False)
class XtrProblem(Problem):
    """A dense ``Problem`` without lengths, whose maxima are those of the ``k`` best tokens of all documents.

    ``rule`` is NONE, EXCLUDE (a masked token that is retrieved counts for nothing) or FILL (it counts with that value).

    Winners have one number more for each score, the last: how many query tokens count for what the sum is divided by.
    """

    k: int = 1
    xtr_rule: str = "RETRIEVED"
    """Name of the ``XtrRule``."""
    least_count: float = 1.0
    """Its own."""

    @property
    def pool(self) -> int:
        """How many document tokens there are to retrieve, masked ones included."""
        return self.documents.shape[:-1].numel()

    @property
    def columns(self) -> int:
        """How many scores a query has."""
        return self.scores_shape[-1]

    @property
    def winners_shape(self) -> tuple[int, ...]:
        """Shape of the winners."""
        shape = self.scores_shape
        return *(reversed(shape) if self.is_cross else shape), self.max_query_length + 1

    @property
    def winners_dtype(self) -> torch.dtype:
        """Dtype of the winners."""
        longest = max(self.max_query_length, self.max_document_length)
        return torch.int16 if longest <= torch.iinfo(torch.int16).max else torch.int32

    def keep(self) -> Tensor | None:
        """Return which tokens of the pool the mask keeps, bool ``[pool]``; ``None``: all."""
        return None if self.document_mask is None else self.document_mask.reshape(-1) != 0

    @property
    def fill(self) -> float:
        """What a masked token is compared as."""
        return self.rule.fill if self.rule.name == "FILL" else -torch.inf

    def finished(self, best: Tensor, is_found: Tensor, queries: slice) -> tuple[Tensor, Tensor]:
        """Return the scores and the counts of some queries, ``[queries, columns]`` each; counts are int64.

        Parameters
        ----------
        best
            ``[queries, Lq, columns]``: the retrieved similarity of each query token and document.
        is_found
            Bool, the same shape: whether a token of the document was retrieved.
        """
        weights = self.query_weights
        if weights is not None:
            weights = weights[queries].unsqueeze(-1)
            best = best * weights.to(best.dtype)
        if self.xtr_rule == "POSITIVE":
            counts = (best > 0).sum(1)
        else:
            counts = (is_found if weights is None else is_found & (weights != 0)).sum(1)
        scores = best.sum(1) / self.divisors(counts, best.dtype)
        if self.rule.name == "EXCLUDE" and self.document_mask is not None:
            is_empty = ~(self.document_mask != 0).any(-1)
            is_empty = is_empty if self.is_cross else is_empty[queries]
            scores = scores.masked_fill(is_empty, self.rule.empty_score)
        return scores.to(self.out_dtype), counts

    def divisors(self, counts: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what sums are divided by."""
        return counts.to(dtype).clamp(min=self.least_count)

    def winning(self, winners: Tensor, grad_scores: Tensor) -> tuple[Problem, Tensor, Tensor]:
        """Return the MaxSim problem that has the same gradients, with its winners and the gradient of its scores."""
        problem = Problem(
            layout=self.layout,
            queries=self.queries,
            documents=self.documents,
            rule=MaskRule.NONE,
            out_dtype=compute_dtype(self.queries.dtype),
            max_query_length=self.max_query_length,
            max_document_length=self.max_document_length,
            query_weights=self.query_weights,
        )
        counts = self.by_score(winners[..., -1])
        grad_sums = grad_scores.to(problem.out_dtype) / self.divisors(counts, problem.out_dtype)
        return problem, winners[..., :-1].to(problem.winners_dtype).contiguous(), grad_sums
