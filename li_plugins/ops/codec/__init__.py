"""The residual codec: embeddings as the nearest centroid and a few bits for what is left, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from li_plugins.ops import checks, dispatch, forward_only
from li_plugins.ops.codec.problem import BinarizeProblem, CompressProblem, DecompressProblem

__all__ = ["binarize", "compress", "decompress", "explain_binarize", "explain_compress", "explain_decompress"]


def compress(embeddings: Tensor, centroids: Tensor, cutoffs: Tensor, *, nbits: int) -> tuple[Tensor, Tensor]:
    """Store each embedding as its nearest centroid and the buckets of what is left.

    Parameters
    ----------
    embeddings
        ``[N, d]``, float16, bfloat16, float32 or float64.
    centroids
        ``[K, d]``, K >= 1, of any of these dtypes. What is left is ``embedding - centroid`` as torch subtracts them:
        float32 for float16 embeddings and float32 centroids, float16 if both are.
    cutoffs
        ``[2**nbits - 1]``, float32, rising: between the buckets.
    nbits
        1, 2, 4 or 8 bits for each dimension; ``d * nbits`` is a multiple of 8.

    Returns
    -------
    codes, residuals
        ``[N]`` int32 and ``[N, d * nbits / 8]`` uint8; see ``li_plugins.ops.codec.bits`` for the order of the bits.

    Raises
    ------
    BadInput
        When the arguments have no meaning together.
    """
    return _compress_op(*_compress_arguments(embeddings, centroids, cutoffs, nbits))


def explain_compress(embeddings: Tensor, centroids: Tensor, cutoffs: Tensor, *, nbits: int) -> dispatch.Plan:
    """Return the plan of ``compress`` for these arguments; raises as it does."""
    return dispatch.explain("compress", CompressProblem(*_compress_arguments(embeddings, centroids, cutoffs, nbits)))


def binarize(values: Tensor, cutoffs: Tensor, *, nbits: int) -> Tensor:
    """Pack the bucket of each value: the last step of ``compress``.

    Parameters
    ----------
    values
        ``[N, d]``, float16, bfloat16, float32 or float64; compared in float32.
    cutoffs, nbits
        As in ``compress``.

    Returns
    -------
    Tensor
        ``[N, d * nbits / 8]`` uint8.

    Raises
    ------
    BadInput
        When the arguments have no meaning together.
    """
    return _binarize_op(*_binarize_arguments(values, cutoffs, nbits))


def explain_binarize(values: Tensor, cutoffs: Tensor, *, nbits: int) -> dispatch.Plan:
    """Return the plan of ``binarize`` for these arguments; raises as it does."""
    return dispatch.explain("binarize", BinarizeProblem(*_binarize_arguments(values, cutoffs, nbits)))


def decompress(
    codes: Tensor, residuals: Tensor, centroids: Tensor, bucket_weights: Tensor, *, nbits: int, normalized: bool = True
) -> Tensor:
    """Make embeddings again of what ``compress`` stored.

    Parameters
    ----------
    codes
        ``[N]``, int32 or int64; read by value on the CPU only.
    residuals
        ``[N, d * nbits / 8]``, uint8.
    centroids, bucket_weights
        ``[K, d]`` and ``[2**nbits]``, of one floating dtype, which is that of the result.
    nbits
        As in ``compress``.
    normalized
        Whether each row is divided by its norm.

    Returns
    -------
    Tensor
        ``[N, d]``.

    Raises
    ------
    BadInput
        When the arguments have no meaning together.
    """
    return _decompress_op(*_decompress_arguments(codes, residuals, centroids, bucket_weights, nbits, normalized))


def explain_decompress(
    codes: Tensor, residuals: Tensor, centroids: Tensor, bucket_weights: Tensor, *, nbits: int, normalized: bool = True
) -> dispatch.Plan:
    """Return the plan of ``decompress`` for these arguments; raises as it does."""
    arguments = _decompress_arguments(codes, residuals, centroids, bucket_weights, nbits, normalized)
    return dispatch.explain("decompress", DecompressProblem(*arguments))


def _compress_arguments(embeddings: Tensor, centroids: Tensor, cutoffs: Tensor, nbits: Any) -> tuple[Any, ...]:
    checks.tensor("embeddings", embeddings, 2, checks.FLOATS)
    checks.tensor("centroids", centroids, 2, checks.FLOATS, embeddings)
    checks.same_width("embeddings", embeddings.shape[1], "centroids", centroids.shape[1])
    checks.not_empty("centroids", centroids)
    _check_cutoffs(cutoffs, nbits, embeddings)
    return embeddings.detach(), centroids.detach(), cutoffs, nbits


def _binarize_arguments(values: Tensor, cutoffs: Tensor, nbits: Any) -> tuple[Any, ...]:
    checks.tensor("values", values, 2, checks.FLOATS)
    _check_cutoffs(cutoffs, nbits, values)
    return values.detach(), cutoffs, nbits


def _check_cutoffs(cutoffs: Tensor, nbits: Any, rows: Tensor) -> None:
    checks.nbits(nbits)
    checks.bytes_per_row(rows.shape[1], nbits)
    checks.tensor("cutoffs", cutoffs, 1, (torch.float32,), rows)
    checks.size("cutoffs", cutoffs, 2**nbits - 1, f"between the buckets of {nbits} bits")


def _decompress_arguments(
    codes: Tensor, residuals: Tensor, centroids: Tensor, bucket_weights: Tensor, nbits: Any, normalized: bool
) -> tuple[Any, ...]:
    checks.stored(codes, residuals, centroids, bucket_weights, nbits)
    return codes, residuals, centroids.detach(), bucket_weights.detach(), nbits, normalized


def _check_codes(problem: DecompressProblem) -> None:
    checks.values_below("codes", problem.codes, problem.centroids.shape[0])


_compress_op = forward_only.register(
    "compress",
    "(Tensor embeddings, Tensor centroids, Tensor cutoffs, int nbits) -> (Tensor, Tensor)",
    CompressProblem,
    lambda problem: (
        problem.embeddings.new_empty(problem.embeddings.shape[0], dtype=torch.int32),
        problem.embeddings.new_empty(problem.scores_shape, dtype=torch.uint8),
    ),
)
_binarize_op = forward_only.register(
    "binarize",
    "(Tensor values, Tensor cutoffs, int nbits) -> Tensor",
    BinarizeProblem,
    lambda problem: problem.values.new_empty(problem.scores_shape, dtype=torch.uint8),
)
_decompress_op = forward_only.register(
    "decompress",
    "(Tensor codes, Tensor residuals, Tensor centroids, Tensor bucket_weights, int nbits, bool normalized) -> Tensor",
    DecompressProblem,
    lambda problem: problem.centroids.new_empty(problem.scores_shape),
    check=_check_codes,
)
