"""MaxSim on CUDA through Triton: which problems it serves, and the launch of the forward."""

from __future__ import annotations

import torch
from torch import Tensor

from li_plugins.api import Support
from li_plugins.ops import _compat, recipes
from li_plugins.ops.launch import Launcher, Options
from li_plugins.ops.maxsim import triton_programs, tuning, tuning_rows, tuning_text
from li_plugins.ops.maxsim.problem import Problem
from li_plugins.ops.maxsim.triton_arguments import (
    INTERPRETED,
    card_of,
    counts,
    document_strides,
    plain,
    precision,
    query_strides,
    rows,
    sizes_of,
)
from li_plugins.ops.maxsim.triton_device import on, support
from li_plugins.ops.maxsim.triton_forward import maxsim_forward
from li_plugins.ops.maxsim.triton_gradients import document_gradient, query_gradient
from li_plugins.ops.maxsim.triton_halves import halves
from li_plugins.ops.maxsim.triton_kept import KEPT_FIELDS, maxsim_kept
from li_plugins.ops.maxsim.tuning_sizes import Sizes

_launch_forward = Launcher(maxsim_forward)
_launch_kept = Launcher(maxsim_kept)


class TritonMaxSim:
    """The kernel object that the registry loads."""

    def supports(self, problem: Problem) -> Support:
        """Serve fp16, bf16 and fp32 on CUDA devices of compute capability 8.0 and later, NVIDIA's only."""
        return support(problem)

    def forward(self, problem: Problem, want_winners: bool) -> tuple[Tensor, Tensor | None]:
        """Return the scores and, if wanted, the winning document token of every query token."""
        try:
            return self._forward(problem, want_winners)
        except Exception as error:  # a stored row that cannot be built must not cost the kernel: built-in blocks follow
            if not _compat.is_compile_failure(error) or not tuning_rows.distrust(f"{type(error).__name__}: {error}"):
                raise
        return self._forward(problem, want_winners)

    def _forward(self, problem: Problem, want_winners: bool) -> tuple[Tensor, Tensor | None]:
        sizes = sizes_of(problem)
        chosen = tuning.forward(sizes, want_winners, card_of(problem.queries.device))
        with on(problem.queries.device):
            winners = _memory_of_winners(problem) if want_winners else None
            scores = triton_programs.scores(
                problem, sizes, chosen.blocks, lambda memory: _launch(problem, sizes, chosen, memory, winners)
            )
        return scores, winners

    def describe(self, problem: Problem, phase: str) -> tuple[str, ...]:
        """Return how the launches of a phase are cut."""
        return tuning_text.described(sizes_of(problem), card_of(problem.queries.device), phase)

    def backward(
        self, problem: Problem, grad_scores: Tensor, winners: Tensor, need_queries: bool, need_documents: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients that are needed, each computed for itself."""
        try:
            return self._backward(problem, grad_scores, winners, need_queries, need_documents)
        except Exception as error:  # as above
            if not _compat.is_compile_failure(error) or not tuning_rows.distrust(f"{type(error).__name__}: {error}"):
                raise
        return self._backward(problem, grad_scores, winners, need_queries, need_documents)

    def _backward(
        self, problem: Problem, grad_scores: Tensor, winners: Tensor, need_queries: bool, need_documents: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        grad_scores, winners = grad_scores.contiguous(), winners.contiguous()
        with on(grad_scores.device):
            return (
                query_gradient(problem, grad_scores, winners) if need_queries else None,
                document_gradient(problem, grad_scores, winners) if need_documents else None,
            )


KERNEL = TritonMaxSim()


def _launch(problem: Problem, sizes: Sizes, chosen: tuning.Forward, scores: Tensor, winners: Tensor | None) -> None:
    queries, documents, query_factors, document_factors = problem.queries, problem.documents, None, None
    if sizes.is_halved:
        width = chosen.blocks.NEAR + chosen.blocks.FAR
        queries, query_factors = halves(queries, width)
        documents, document_factors = halves(documents, width)
    queries, documents = rows(queries), rows(documents)
    items = sizes.queries if problem.pair_queries is None else problem.pair_queries.shape[0]
    document_mask, lengths = plain(problem.document_mask), plain(problem.document_lengths)
    document_offsets = plain(problem.document_offsets)
    kept = None if document_mask is None else _kept(problem, document_mask, lengths, document_offsets)
    per_query = problem.scores_shape[-1]
    score_count = per_query if sizes.layout == "PAIRS" else items * per_query
    for programs, first_item in triton_programs.launches(sizes, chosen, items):
        _launch_forward(
            (programs, 1, 1),
            (
                queries,
                documents,
                query_factors,
                document_factors,
                plain(problem.query_weights),
                document_mask,
                kept,
                lengths,
                plain(problem.query_offsets),
                document_offsets,
                plain(problem.pair_queries),
                plain(problem.pair_documents),
                plain(problem.floor),
                scores,
                winners,
            ),
            (*query_strides(queries), *document_strides(documents)),
            (
                sizes.queries,
                per_query,
                chosen.documents,
                problem.max_query_length,
                problem.max_document_length,
                first_item,
                score_count,
            ),
            (problem.rule.fill, problem.rule.empty_score),
            (problem.rule.name, sizes.layout, sizes.width, *chosen.blocks, precision(sizes.element_size), INTERPRETED),
            chosen.options,
        )


def _kept(problem: Problem, document_mask: Tensor, lengths: Tensor | None, offsets: Tensor | None) -> Tensor:
    """Return which part of each document its mask leaves to look at, ``[documents, KEPT_FIELDS]``."""
    _, document_count = counts(problem)
    kept = recipes.empty((document_count, KEPT_FIELDS), torch.int32, document_mask.device)
    if document_count:
        _launch_kept(
            (document_count, 1, 1),
            (document_mask, lengths, offsets, kept),
            (),
            (problem.max_document_length,),
            (),
            (problem.rule.name == "ZERO", 256, INTERPRETED),
            Options(num_warps=1, num_stages=1),
        )
    return kept


def _memory_of_winners(problem: Problem) -> Tensor:
    """Return memory for winners; ragged queries leave entries to nobody, and two runs must agree on those too."""
    shape, dtype = problem.winners_shape, problem.winners_dtype
    if problem.query_offsets is None:
        return recipes.empty(shape, dtype, problem.queries.device)
    return recipes.full(shape, -1, dtype, problem.queries.device)
