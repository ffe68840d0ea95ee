"""Smooth MaxSim on CUDA through Triton: which problems it serves, and its launches."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from li_plugins.api import Support
from li_plugins.ops import recipes
from li_plugins.ops.launch import Launcher
from li_plugins.ops.maxsim import triton_programs
from li_plugins.ops.maxsim.triton_arguments import (
    INTERPRETED,
    card_of,
    counts,
    document_strides,
    precision,
    query_strides,
    rounded,
    rows,
    sizes_of,
    stored,
)
from li_plugins.ops.maxsim.triton_device import on, support
from li_plugins.ops.maxsim.triton_halves import halves
from li_plugins.ops.maxsim.tuning import Forward, built_in_forward
from li_plugins.ops.maxsim.tuning_sizes import Sizes, power_of_two
from li_plugins.ops.smooth_maxsim import tuning
from li_plugins.ops.smooth_maxsim.problem import SmoothProblem
from li_plugins.ops.smooth_maxsim.triton_backward import (
    GROUP,
    smooth_maxsim_document_gradient,
    smooth_maxsim_query_gradient,
)
from li_plugins.ops.smooth_maxsim.triton_forward import smooth_maxsim_forward

LARGEST_SHARE = 2.0**14
"""Of the shares in fp16, whose gradients are scaled: far from its largest number, and farther from its smallest."""

SMALLEST_SCORE = 2.0**-112
"""Of gradients of scores that shares are scaled by: divided by ``LARGEST_SHARE`` it is a normal number yet."""

SMALLEST_FACTOR = 2.0**-100
"""Of rows in halves that shares are scaled by: what is divided by it stays in fp32's range."""

_LACKS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}
"""Bits of fp32's precision that a dtype lacks."""

_launch_forward = Launcher(smooth_maxsim_forward)
_launch_query_gradient = Launcher(smooth_maxsim_query_gradient)
_launch_document_gradient = Launcher(smooth_maxsim_document_gradient)


class _Multiplied(NamedTuple):
    """The embeddings as the kernels multiply them: their rows, or the halves of these and their factors."""

    queries: Tensor
    documents: Tensor
    query_factors: Tensor | None = None
    document_factors: Tensor | None = None


class TritonSmoothMaxSim:
    """The kernel object that the registry loads."""

    def supports(self, problem: SmoothProblem) -> Support:
        """Serve what MaxSim's kernels serve."""
        return support(problem)

    def forward(self, problem: SmoothProblem, want_winners: bool) -> tuple[Tensor, Tensor | None]:
        """Return the scores and, if wanted, the logarithms of the sums over document tokens."""
        sizes = sizes_of(problem)
        chosen = built_in_forward(sizes, card_of(problem.queries.device))
        with on(problem.queries.device):
            sums = None
            if want_winners:
                sums = recipes.empty(problem.winners_shape, problem.winners_dtype, problem.queries.device)
            scores = triton_programs.scores(
                problem, sizes, chosen.blocks, lambda memory: _score(problem, sizes, chosen, memory, sums)
            )
        return scores, sums

    def backward(
        self, problem: SmoothProblem, grad_scores: Tensor, winners: Tensor, need_queries: bool, need_documents: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients that are needed, each computed for itself."""
        grad_scores, sums = grad_scores.contiguous(), winners.contiguous()
        sizes = sizes_of(problem)
        with on(grad_scores.device):
            multiplied = _multiplied(problem.queries.flatten(0, 1), problem.documents, sizes)
            return (
                _query_gradient(problem, sizes, multiplied, grad_scores, sums) if need_queries else None,
                _document_gradient(problem, sizes, multiplied, grad_scores, sums) if need_documents else None,
            )


KERNEL = TritonSmoothMaxSim()


def _score(problem: SmoothProblem, sizes: Sizes, chosen: Forward, scores: Tensor, sums: Tensor | None) -> None:
    queries, documents, query_factors, document_factors = _multiplied(problem.queries, problem.documents, sizes)
    for programs, first_item in triton_programs.launches(sizes, chosen, sizes.queries):
        _launch_forward(
            (programs, 1, 1),
            (queries, documents, query_factors, document_factors, scores, sums),
            (*query_strides(queries), *document_strides(documents)),
            (
                sizes.queries,
                sizes.documents,
                chosen.documents,
                sizes.query_length,
                sizes.document_length,
                first_item,
                sizes.queries * sizes.documents,
            ),
            (_scale(problem), problem.tau * math.log(2)),
            (sizes.layout, sizes.width, *chosen.blocks, precision(sizes.element_size), INTERPRETED),
            chosen.options,
        )


def _multiplied(queries: Tensor, documents: Tensor, sizes: Sizes) -> _Multiplied:
    if not sizes.is_halved:
        return _Multiplied(rows(queries), rows(documents))
    width = power_of_two(sizes.width, 16)
    queries, query_factors = halves(queries, width)
    documents, document_factors = halves(documents, width)
    return _Multiplied(queries, documents, query_factors, document_factors)


def _query_gradient(
    problem: SmoothProblem, sizes: Sizes, multiplied: _Multiplied, grad_scores: Tensor, sums: Tensor
) -> Tensor:
    is_cross = sizes.layout == "CROSS"
    owned = sizes.query_length * (sizes.queries if is_cross else 1)
    chosen = tuning.gradient(sizes, owned, sizes.document_length)
    tiles = -(-owned // chosen.blocks.ROWS) * (1 if is_cross else sizes.queries)
    met = multiplied.document_factors
    if met is not None:
        met = met.view(1 if is_cross else sizes.queries, sizes.documents, sizes.document_length)
    grad_scores, factors = _in_range(problem, grad_scores, 1, met)
    return _added_up(
        problem,
        problem.queries,
        _launch_query_gradient,
        multiplied,
        sizes,
        chosen,
        tiles,
        sizes.documents,
        grad_scores,
        factors,
        sums,
    )


def _document_gradient(
    problem: SmoothProblem, sizes: Sizes, multiplied: _Multiplied, grad_scores: Tensor, sums: Tensor
) -> Tensor:
    is_cross = sizes.layout == "CROSS"
    visited = sizes.query_length * (sizes.queries if is_cross else 1)
    chosen = tuning.gradient(sizes, sizes.document_length, visited)
    _, document_count = counts(problem)
    tiles = document_count * -(-sizes.document_length // chosen.blocks.ROWS)
    groups = -(-visited // (GROUP * chosen.blocks.COLUMNS))
    met = multiplied.query_factors
    if met is not None:
        met = met.view(sizes.queries, 1, sizes.query_length)
    grad_scores, factors = _in_range(problem, grad_scores, 0 if is_cross else None, met)
    return _added_up(
        problem,
        problem.documents,
        _launch_document_gradient,
        multiplied,
        sizes,
        chosen,
        tiles,
        groups,
        grad_scores,
        factors,
        sums,
    )


def _added_up(
    problem: SmoothProblem,
    embeddings: Tensor,
    launch: Launcher,
    multiplied: _Multiplied,
    sizes: Sizes,
    chosen: tuning.Gradient,
    tiles: int,
    visits: int,
    grad_scores: Tensor,
    factors: Tensor | None,
    sums: Tensor,
) -> Tensor:
    """Return a gradient like ``embeddings``, of ``tiles`` tiles each of which makes ``visits`` visits."""
    if not embeddings.numel() or not visits:
        return torch.zeros(embeddings.shape, dtype=embeddings.dtype, device=embeddings.device)
    programs = tiles * tuning.dimension_blocks(sizes.width, chosen.blocks)
    parts, each = tuning.parts(programs, visits, card_of(embeddings.device))
    shape, dtype = embeddings.shape, stored(embeddings.dtype)
    if parts > 1:
        shape, dtype = torch.Size((parts, *shape)), torch.float32
    gradient = recipes.empty(shape, dtype, embeddings.device)
    launch(
        (parts * programs, 1, 1),
        (*multiplied, sums, grad_scores, factors, gradient),
        (multiplied.queries.stride(0), *document_strides(multiplied.documents)),
        (sizes.queries, sizes.documents, sizes.query_length, sizes.document_length, tiles, visits, each),
        (_scale(problem),),
        (
            sizes.layout,
            sizes.width,
            *chosen.blocks,
            _LACKS[problem.queries.dtype],
            precision(sizes.element_size),
            INTERPRETED,
        ),
        chosen.options,
    )
    return rounded(gradient.sum(0) if parts > 1 else gradient, embeddings.dtype)


def _in_range(
    problem: SmoothProblem, grad_scores: Tensor, dim: int | None, met: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the fp32 gradients of scores, so that shares fit fp16, and by what to multiply in the end, if any.

    ``dim`` of the scores meets in one sum; ``None``: each score is one of its own. ``met`` are the factors of the
    rows that are multiplied with the shares, ``[A, 1, Lq]``, ``[1, B, Ld]`` or ``[A, K, Ld]``.
    """
    grad_scores = grad_scores.float()
    if (problem.queries.dtype is not torch.float16 and met is None) or not grad_scores.numel():
        return grad_scores, None
    largest: Any = grad_scores.abs()
    if met is not None:
        largest = largest * met.amax(-1).clamp_min(SMALLEST_FACTOR)
    if dim is not None:
        largest = largest.amax(dim, keepdim=True)
    factors = torch.where(largest > 0, largest, 1.0).clamp_min(SMALLEST_SCORE) / LARGEST_SHARE
    return grad_scores / factors, factors.flatten()


def _scale(problem: SmoothProblem) -> float:
    """Return what turns a similarity into the exponent of a power of two."""
    return 1 / (math.log(2) * problem.tau)
