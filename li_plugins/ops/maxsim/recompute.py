"""Gradients without kept winners: those of some documents, or queries, at a time are looked for again.

What the backward keeps grows with ``A * B * Lq`` where every query meets every document. Above a limit nothing is kept:
the documents' gradient takes some documents at a time and the queries' some queries, each complete when its group is
done, so that the result is the same to the bit. Each gradient costs one more forward.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from li_plugins.ops.autograd import Operation
from li_plugins.ops.maxsim.problem import Layout, Problem

DEFAULT_MIB = 8192


def _most_winners() -> float:
    given = os.environ.get("LI_PLUGINS_WINNERS", "").strip()
    try:
        return float(given or DEFAULT_MIB) * 2**20
    except ValueError:
        warnings.warn(
            f"LI_PLUGINS_WINNERS is a number of MiB; found {given!r}; {DEFAULT_MIB} is in force",
            RuntimeWarning,
            stacklevel=2,
        )
        return DEFAULT_MIB * 2**20


MOST_WINNERS = _most_winners()
"""Bytes that kept winners may take."""


def keeps_winners(problem: Problem) -> bool:
    """Tell whether winners are kept for the backward: where they are few, and where they cannot be taken in groups."""
    return problem.layout is not Layout.CROSS or _bytes(problem) <= MOST_WINNERS


def gradients(
    operation: Operation, problem: Problem, grad_scores: Tensor, need_queries: bool, need_documents: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients that are needed."""
    grad_queries = torch.empty_like(problem.queries) if need_queries else None
    grad_documents = torch.empty_like(problem.documents) if need_documents else None
    if grad_queries is not None:
        for these in _groups(problem, problem.queries.shape[0]):
            weights = problem.query_weights
            part = replace(
                problem, queries=problem.queries[these], query_weights=None if weights is None else weights[these]
            )
            grad_queries[these] = _gradient(operation, part, grad_scores[these], True)
    if grad_documents is not None:
        for these in _groups(problem, problem.documents.shape[0]):
            mask, lengths = problem.document_mask, problem.document_lengths
            part = replace(
                problem,
                documents=problem.documents[these],
                document_mask=None if mask is None else mask[these],
                document_lengths=None if lengths is None else lengths[these],
            )
            grad_documents[these] = _gradient(operation, part, grad_scores[:, these], False)
    return grad_queries, grad_documents


def _gradient(operation: Operation, part: Problem, grad_scores: Tensor, of_queries: bool) -> Tensor:
    _, winners = operation.run_forward(part, True)
    assert winners is not None
    found = operation.run_backward(part, grad_scores, winners, of_queries, not of_queries)
    gradient = found[0] if of_queries else found[1]
    assert gradient is not None
    return gradient


def _bytes(problem: Problem) -> int:
    return torch.Size(problem.winners_shape).numel() * problem.winners_dtype.itemsize


def _groups(problem: Problem, count: int) -> Iterator[slice]:
    """Yield runs of items whose winners take a quarter of what may be kept."""
    step = max(1, int(count * MOST_WINNERS / 4 / max(_bytes(problem), 1)))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
