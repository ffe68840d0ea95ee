"""The documents near a query: those that have a token of one of the centroids nearest to a query token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from li_plugins.errors import BadInput
from li_plugins.ops import checks, dispatch, forward_only
from li_plugins.ops.described import fields
from li_plugins.ops.near.problem import NearProblem

__all__ = ["explain_near_documents", "near_documents"]


def near_documents(
    centroid_scores: Tensor, documents: Tensor, centroid_offsets: Tensor, *, ncells: int, document_count: int
) -> Tensor:
    """Say which documents are near each query, by the inverted file of an index.

    Parameters
    ----------
    centroid_scores
        ``[A, K, Lq]``, float16, bfloat16, float32 or float64: each query's similarities with the centroids.
    documents
        ``[M]``, int32 or int64, below ``document_count``: those of each centroid, one centroid after the other.
    centroid_offsets
        ``[K + 1]``, int64: where each centroid's documents begin, and the end of the last; ``documents`` may go on.
    ncells
        How many centroids are near a query token, its greatest similarities; NaN is greater than all numbers. Of equal
        ones any may be taken.
    document_count
        ``B``, how many documents there are.

    Returns
    -------
    Tensor
        ``[A, B]``, bool. No gradient flows.

    Raises
    ------
    BadInput
        When the arguments have no meaning together. Documents and offsets are checked by value on the CPU only, of
        the centroids that are looked up.
    """
    return _near_op.once_valid(
        (centroid_scores, documents, centroid_offsets),
        (ncells, document_count),
        lambda: fields(_problem(centroid_scores, documents, centroid_offsets, ncells, document_count)),
    )


def explain_near_documents(
    centroid_scores: Tensor, documents: Tensor, centroid_offsets: Tensor, *, ncells: int, document_count: int
) -> dispatch.Plan:
    """Return the plan of ``near_documents`` for these arguments; raises as it does."""
    problem = _problem(centroid_scores, documents, centroid_offsets, ncells, document_count)
    return dispatch.explain("near_documents", problem)


def _problem(
    centroid_scores: Tensor, documents: Tensor, centroid_offsets: Tensor, ncells: Any, document_count: Any
) -> NearProblem:
    checks.tensor("centroid_scores", centroid_scores, 3, checks.FLOATS)
    checks.tensor("documents", documents, 1, (torch.int32, torch.int64), centroid_scores)
    checks.tensor("centroid_offsets", centroid_offsets, 1, (torch.int64,), centroid_scores)
    centroids = centroid_scores.shape[1]
    checks.size("centroid_offsets", centroid_offsets, centroids + 1, "one for each centroid and the end of the last")
    if not isinstance(ncells, int) or isinstance(ncells, bool) or not 1 <= ncells <= centroids:
        raise BadInput(f"ncells is 1 to {centroids}, the number of centroids", repr(ncells), "pass another")
    if not isinstance(document_count, int) or isinstance(document_count, bool) or document_count < 0:
        raise BadInput("document_count is an int, 0 or more", repr(document_count), "pass the index's")
    return NearProblem(centroid_scores.detach(), documents, centroid_offsets, ncells, document_count)


def _empty(problem: NearProblem) -> Tensor:
    return problem.centroid_scores.new_empty(problem.scores_shape, dtype=torch.bool)


_near_op = forward_only.register(
    "near_documents",
    "(Tensor centroid_scores, Tensor documents, Tensor centroid_offsets, int ncells, int document_count) -> Tensor",
    NearProblem,
    _empty,
)
