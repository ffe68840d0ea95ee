"""Scores of stored documents on CUDA through Triton: which problems are served, and the launches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from li_plugins.api import Support
from li_plugins.ops import recipes
from li_plugins.ops.codec.norms import LEAST_NORMS
from li_plugins.ops.launch import Launcher
from li_plugins.ops.maxsim.triton_arguments import (
    INTERPRETED,
    card_of,
    plain,
    precision,
    query_strides,
    rounded,
    rows,
    stored,
)
from li_plugins.ops.maxsim.triton_device import decoder_support, on, support
from li_plugins.ops.maxsim.triton_programs import MAX_PROGRAMS
from li_plugins.ops.maxsim.tuning_sizes import power_of_two
from li_plugins.ops.residual import triton_tuning as tuning
from li_plugins.ops.residual.problem import CodeProblem, ResidualProblem
from li_plugins.ops.residual.triton_code import code_maxsim_forward
from li_plugins.ops.residual.triton_many import residual_maxsim_many
from li_plugins.ops.residual.triton_residual import residual_maxsim_forward

_launch_residual = Launcher(residual_maxsim_forward)
_launch_many = Launcher(residual_maxsim_many)
_launch_code = Launcher(code_maxsim_forward)


class Residual:
    """The kernel object of ``residual_maxsim`` that the registry loads; it allocates the scores.

    For many queries and documents also a scratch, of the size of the card's L2 cache.
    """

    def supports(self, problem: ResidualProblem) -> Support:
        """Serve queries and centroids of fp16, bf16 and fp32, of 8 to 256 dimensions."""
        served = decoder_support(problem)
        if not served:
            return served
        dtype, width = problem.centroids.dtype, problem.centroids.shape[1]
        if dtype not in LEAST_NORMS:
            return Support(False, f"centroids of {dtype}: it decodes into float16, bfloat16 and float32")
        widest = tuning.WIDEST_IN_FP32 if _in_fp32(problem) else tuning.WIDEST
        if width % 8 or not 0 < width <= widest:
            dtypes = f"{problem.token_queries.dtype} and {dtype}"
            return Support(False, f"{width} dimensions: of {dtypes} it decodes multiples of 8, up to {widest}")
        return Support(True)

    def forward(self, problem: ResidualProblem) -> Tensor:
        """Return the scores."""
        queries, centroids, residuals = rows(problem.token_queries), rows(problem.centroids), rows(problem.residuals)
        count, length, width = queries.shape
        documents, pair_queries = problem.document_offsets.shape[0] - 1, problem.pair_queries
        in_fp32, device = _in_fp32(problem), queries.device
        card = card_of(device)
        given = (
            queries,
            plain(problem.codes),
            residuals,
            centroids,
            plain(problem.bucket_weights),
            plain(problem.document_offsets),
        )
        strides, byte_stride = (*query_strides(queries), centroids.stride(0)), residuals.stride(0)
        floats = problem.least, LEAST_NORMS[centroids.dtype]
        block_d = power_of_two(width, 16)
        forms = width, problem.nbits, problem.normalized, block_d, _in_words(residuals, problem.nbits)
        many = None
        if pair_queries is None:
            many = tuning.many(count, length, documents, problem.codes.shape[0], width, in_fp32, card)
        with on(device):
            scores = recipes.empty(problem.scores_shape, stored(problem.out_dtype), device)
            if many is not None:
                shape = many.programs, many.blocks.CAPACITY, block_d
                scratch = recipes.empty(shape, stored(centroids.dtype), device)
                taken = recipes.zeros((1,), torch.int32, device)
                _launch_many(
                    (many.programs, 1, 1),
                    (*given, scratch, taken, scores),
                    strides,
                    (byte_stride, documents, many.documents, count, length),
                    floats,
                    (*forms, *many.blocks, INTERPRETED),
                    many.options,
                )
            else:
                meeting = count if pair_queries is None else 1
                chosen = tuning.residual(meeting, length, documents, width, in_fp32, card)
                tensors = *given, plain(pair_queries), plain(problem.pair_documents), scores
                constants = *forms, *chosen.blocks, in_fp32, precision(4 if in_fp32 else 2), INTERPRETED
                for programs, first in _launches(pair_queries, count, documents, chosen):
                    _launch_residual(
                        (programs, 1, 1),
                        tensors,
                        strides,
                        (byte_stride, documents, chosen.documents, count, length, first),
                        floats,
                        constants,
                        chosen.options,
                    )
        return rounded(scores, problem.out_dtype)


class Code:
    """The kernel object of ``code_maxsim`` that the registry loads; it allocates nothing but the scores."""

    def supports(self, problem: CodeProblem) -> Support:
        """Serve scores of fp16, bf16 and fp32."""
        return support(problem)

    def forward(self, problem: CodeProblem) -> Tensor:
        """Return the scores."""
        centroid_scores = rows(problem.centroid_scores)
        kept = None if problem.kept is None else rows(problem.kept).view(torch.uint8)
        documents, length = problem.document_offsets.shape[0] - 1, centroid_scores.shape[2]
        blocks = tuning.code(length)
        with on(centroid_scores.device):
            scores = recipes.empty(problem.scores_shape, problem.out_dtype, centroid_scores.device)
            tensors = (
                centroid_scores,
                kept,
                plain(problem.codes),
                plain(problem.document_offsets),
                plain(problem.pair_queries),
                plain(problem.pair_documents),
                scores,
            )
            for first in range(0, scores.numel(), MAX_PROGRAMS):
                _launch_code(
                    (min(scores.numel() - first, MAX_PROGRAMS), 1, 1),
                    tensors,
                    (*query_strides(centroid_scores), 0 if kept is None else kept.stride(0)),
                    (documents, length, first),
                    (problem.least,),
                    (*blocks, length % blocks.COLUMNS == 0, INTERPRETED),
                    tuning.CODE_OPTIONS,
                )
        return scores


RESIDUAL, CODE = Residual(), Code()


def _launches(pairs: Tensor | None, queries: int, documents: int, chosen: tuning.Residual) -> Iterator[tuple[int, int]]:
    """Yield each launch's number of programs and its first pair, or its first document."""
    inner, outer, step = 1, documents, 1
    if pairs is not None:
        outer = pairs.shape[0]
    else:
        inner = -(-queries // chosen.blocks.SLOTS)
        outer, step = -(-documents // chosen.documents), chosen.documents
    at_once = max(1, MAX_PROGRAMS // max(inner, 1))
    for first in range(0, outer if inner else 0, at_once):
        yield min(outer - first, at_once) * inner, first * step


def _in_fp32(problem: ResidualProblem) -> bool:
    """Tell whether products are those of fp32 numbers."""
    dtype = problem.token_queries.dtype
    return dtype is torch.float32 or dtype is not problem.centroids.dtype


def _in_words(residuals: Tensor, nbits: int) -> bool:
    """Tell whether the bytes of 8 dimensions lie where they can be read as one number."""
    return (residuals.data_ptr() | residuals.stride(0)) % nbits == 0
