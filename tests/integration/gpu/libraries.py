"""MaxSim as the libraries compute it: einsum in the inputs' dtype, with torch's own autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from li_plugins.ops.maxsim.problem import Layout, Problem


def einsum_scores(problem: Problem, queries: Tensor, documents: Tensor) -> Tensor:
    """Return the scores of a dense problem under NONE or ZERO, as PyLate and colpali-engine compute them."""
    equation = "ash,bth->abst" if problem.layout is Layout.CROSS else "ash,abth->abst"
    grid = torch.einsum(equation, queries, documents)
    if problem.query_weights is not None:
        grid = grid * problem.query_weights[:, None, :, None].to(grid.dtype)
    if problem.document_mask is not None:
        mask = problem.document_mask if problem.layout is Layout.CANDIDATES else problem.document_mask[None]
        grid = grid * mask[:, :, None, :].to(grid.dtype)
    return grid.max(-1).values.sum(-1)


def einsum_step(problem: Problem, grad_scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores and both gradients."""
    queries, documents = (side.detach().requires_grad_() for side in (problem.queries, problem.documents))
    scores = einsum_scores(problem, queries, documents)
    scores.backward(grad_scores.to(scores))
    return scores.detach(), queries.grad, documents.grad
