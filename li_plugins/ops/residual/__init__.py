"""MaxSim of stored documents: straight from codes and residual bytes, or from the scores of centroids alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from li_plugins.errors import BadInput
from li_plugins.ops import checks, dispatch, forward_only
from li_plugins.ops.described import fields
from li_plugins.ops.residual.problem import CodeProblem, ResidualProblem, StoredProblem

__all__ = ["code_maxsim", "explain_code_maxsim", "explain_residual_maxsim", "residual_maxsim"]

Pairs = Sequence[Tensor]


def residual_maxsim(
    queries: Tensor,
    codes: Tensor,
    residuals: Tensor,
    centroids: Tensor,
    bucket_weights: Tensor,
    document_offsets: Tensor,
    *,
    nbits: int,
    pairs: Pairs | None = None,
    normalized: bool = True,
    least: float = -math.inf,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Score queries against documents that an index stores, without their embeddings in memory.

    Parameters
    ----------
    queries
        ``[A, Lq, d]``, float16, bfloat16, float32 or float64.
    codes, residuals, centroids, bucket_weights, nbits, normalized
        As in ``decompress``: the stored tokens of all documents, and the codec.
    document_offsets
        ``[B + 1]``, int64: where each document begins among the codes, and the end of the last.
    pairs
        ``(pair_queries, pair_documents)``, each ``[P]``, int64: the pairs to score; default: all.
    least
        The maximum of each query token is at least this; a document of length 0 has it for every token. colbert-ai has
        0 in its CPU code and -9999 on padded tensors.
    out_dtype
        Dtype of the scores; default: that of the queries. Rounded once, from float32 (float64 for float64 inputs).

    Returns
    -------
    Tensor
        ``[A, B]``, or ``[P]`` with pairs. No gradient flows.

    Raises
    ------
    BadInput
        When the arguments have no meaning together. Offsets and pairs are checked by value on the CPU only.
    """
    given = queries, codes, residuals, centroids, bucket_weights, document_offsets
    return _residual_op.once_valid(
        (*given, *_sides(pairs)),
        # which rows of two 16-bit dtypes are multiplied by as well
        (nbits, normalized, least, out_dtype, torch.backends.cuda.matmul.allow_tf32),
        lambda: fields(_residual(*given, nbits, pairs, normalized, least, out_dtype)),
    )


def explain_residual_maxsim(
    queries: Tensor,
    codes: Tensor,
    residuals: Tensor,
    centroids: Tensor,
    bucket_weights: Tensor,
    document_offsets: Tensor,
    *,
    nbits: int,
    pairs: Pairs | None = None,
    normalized: bool = True,
    least: float = -math.inf,
    out_dtype: torch.dtype | None = None,
) -> dispatch.Plan:
    """Return the plan of ``residual_maxsim`` for these arguments; raises as it does."""
    problem = _residual(
        queries, codes, residuals, centroids, bucket_weights, document_offsets, nbits, pairs, normalized, least,
        out_dtype,
    )  # fmt: skip
    return dispatch.explain("residual_maxsim", problem)


def code_maxsim(
    centroid_scores: Tensor,
    codes: Tensor,
    document_offsets: Tensor,
    *,
    pairs: Pairs | None = None,
    kept: Tensor | None = None,
    least: float = -math.inf,
) -> Tensor:
    """Score stored documents by the similarities of their centroids, for the stages that prune candidates.

    Parameters
    ----------
    centroid_scores
        ``[A, K, Lq]``, float16, bfloat16, float32 or float64: each query's similarities with the centroids.
    codes, document_offsets, pairs, least
        As in ``residual_maxsim``.
    kept
        ``[A, K]``, bool: which centroids count; default: all.

    Returns
    -------
    Tensor
        ``[A, B]``, or ``[P]`` with pairs; float32 (float64 for float64 scores). The maxima are added in the order of
        the query tokens, as colbert-ai's C++ does, so that equal documents have equal scores. No gradient flows.

    Raises
    ------
    BadInput
        When the arguments have no meaning together. Offsets and pairs are checked by value on the CPU only.
    """
    return _code_op.once_valid(
        (centroid_scores, codes, document_offsets, *_sides(pairs), kept),
        (least,),
        lambda: fields(_code(centroid_scores, codes, document_offsets, pairs, kept, least)),
    )


def explain_code_maxsim(
    centroid_scores: Tensor,
    codes: Tensor,
    document_offsets: Tensor,
    *,
    pairs: Pairs | None = None,
    kept: Tensor | None = None,
    least: float = -math.inf,
) -> dispatch.Plan:
    """Return the plan of ``code_maxsim`` for these arguments; raises as it does."""
    return dispatch.explain("code_maxsim", _code(centroid_scores, codes, document_offsets, pairs, kept, least))


def _residual(
    queries: Tensor,
    codes: Tensor,
    residuals: Tensor,
    centroids: Tensor,
    bucket_weights: Tensor,
    document_offsets: Tensor,
    nbits: Any,
    pairs: Pairs | None,
    normalized: bool,
    least: float,
    out_dtype: torch.dtype | None,
) -> ResidualProblem:
    checks.tensor("queries", queries, 3, checks.FLOATS)
    checks.stored(codes, residuals, centroids, bucket_weights, nbits, queries)
    checks.same_width("queries", queries.shape[2], "centroids", centroids.shape[1])
    if not isinstance(normalized, bool):
        raise BadInput("normalized is a bool", repr(normalized), "pass True or False")
    out_dtype = queries.dtype if out_dtype is None else out_dtype
    if out_dtype not in checks.FLOATS:
        raise BadInput("out_dtype is float16, bfloat16, float32 or float64", str(out_dtype), "pass one of these")
    return ResidualProblem(
        codes,
        document_offsets,
        *_documents(document_offsets, pairs, queries),
        checks.number("least", least),
        queries.detach(),
        residuals,
        centroids.detach(),
        bucket_weights.detach(),
        nbits,
        normalized,
        out_dtype,
    )


def _code(
    centroid_scores: Tensor,
    codes: Tensor,
    document_offsets: Tensor,
    pairs: Pairs | None,
    kept: Tensor | None,
    least: float,
) -> CodeProblem:
    checks.tensor("centroid_scores", centroid_scores, 3, checks.FLOATS)
    checks.tensor("codes", codes, 1, (torch.int32, torch.int64), centroid_scores)
    if kept is not None:
        checks.tensor("kept", kept, 2, (torch.bool,), centroid_scores)
        checks.size("kept", kept, centroid_scores.shape[0], "one row for each query")
        checks.same_width("kept", kept.shape[1], "centroid_scores", centroid_scores.shape[1])
    documents = _documents(document_offsets, pairs, centroid_scores)
    return CodeProblem(
        codes, document_offsets, *documents, checks.number("least", least), centroid_scores.detach(), kept
    )


def _documents(offsets: Tensor, pairs: Pairs | None, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
    checks.tensor("document_offsets", offsets, 1, (torch.int64,), like)
    checks.not_empty("document_offsets", offsets)
    if pairs is None:
        return None, None
    if not isinstance(pairs, (tuple, list)) or len(pairs) != 2:
        raise BadInput("pairs is (pair_queries, pair_documents)", type(pairs).__name__, "pass two int64 tensors [P]")
    for name, side in zip(("pairs[0]", "pairs[1]"), pairs, strict=True):
        checks.tensor(name, side, 1, (torch.int64,), like)
    checks.size("pairs[1]", pairs[1], pairs[0].shape[0], "one for each of pairs[0]")
    return pairs[0], pairs[1]


_REFUSED = object(), object()
"""What no recipe is for."""


def _sides(pairs: Any) -> tuple[Any, Any]:
    """Return both sides of pairs, or what has no recipe in the place of what is refused."""
    if pairs is None:
        return None, None
    if not isinstance(pairs, (tuple, list)) or len(pairs) != 2 or any(side is None for side in pairs):
        return _REFUSED
    return pairs[0], pairs[1]


def _check_values(problem: StoredProblem) -> None:
    """Check what is asked for, not the whole index: that would cost more than the scores of a few documents."""
    if problem.codes.device.type != "cpu":
        return
    offsets, documents = problem.document_offsets, problem.pair_documents
    if problem.pair_queries is not None and documents is not None:
        checks.values_below("pairs[0]", problem.pair_queries, problem.query_count)
        checks.values_below("pairs[1]", documents, offsets.shape[0] - 1)
    begins = offsets[:-1] if documents is None else offsets.index_select(0, documents)
    ends = offsets[1:] if documents is None else offsets.index_select(0, documents + 1)
    total = problem.codes.shape[0]
    if begins.numel() and (int(begins.amin()) < 0 or int(ends.amax()) > total or bool((ends < begins).any())):
        raise BadInput(
            f"document_offsets rise, from 0 to at most the number of codes, {total}",
            f"{int(begins.amin())} to {int(ends.amax())}{', with a descent' if bool((ends < begins).any()) else ''}",
            "take codes and document lengths from one index",
        )


def _scores(problem: Any) -> Tensor:
    return problem.queries.new_empty(problem.scores_shape, dtype=problem.out_dtype)


_STORED = "Tensor codes, Tensor document_offsets, Tensor? pair_queries, Tensor? pair_documents, float least"

_residual_op = forward_only.register(
    "residual_maxsim",
    f"({_STORED}, Tensor queries, Tensor residuals, Tensor centroids, Tensor bucket_weights, int nbits, "
    "bool normalized, ScalarType out_dtype) -> Tensor",
    ResidualProblem,
    _scores,
    check=_check_values,
)
_code_op = forward_only.register(
    "code_maxsim",
    f"({_STORED}, Tensor centroid_scores, Tensor? kept) -> Tensor",
    CodeProblem,
    _scores,
    check=_check_values,
)
