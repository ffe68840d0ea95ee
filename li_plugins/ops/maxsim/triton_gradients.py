"""The launches of MaxSim's backward: each gradient by itself, the documents' by one of two ways."""

from __future__ import annotations

import torch
from torch import Tensor

from li_plugins.ops import recipes
from li_plugins.ops.launch import Launcher
from li_plugins.ops.maxsim import tuning
from li_plugins.ops.maxsim.problem import Problem
from li_plugins.ops.maxsim.triton_arguments import (
    INTERPRETED,
    card_of,
    counts,
    document_strides,
    plain,
    precision,
    query_strides,
    rounded,
    rows,
    sizes_of,
    stored,
)
from li_plugins.ops.maxsim.triton_backward import (
    maxsim_candidate_gradient,
    maxsim_document_gradient,
    maxsim_query_gradient,
)
from li_plugins.ops.maxsim.triton_sorted import (
    CHUNK,
    maxsim_count_winners,
    maxsim_sort_winners,
    maxsim_sorted_gradient,
)
from li_plugins.ops.maxsim.tuning_sizes import Sizes

LEAST_ORDER = 2**22
"""Bytes of sorted winners that may always be in memory at a time."""

_PIECES = {torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
"""Numbers of a dtype whose sum is as precise as fp32."""

_EXACT_IN_16_BITS = (torch.bool, torch.uint8, torch.int8)

_launch_query_gradient = Launcher(maxsim_query_gradient)
_launch_document_gradient = Launcher(maxsim_document_gradient)
_launch_candidate_gradient = Launcher(maxsim_candidate_gradient)
_launch_count = Launcher(maxsim_count_winners)
_launch_sort = Launcher(maxsim_sort_winners)
_launch_sorted_gradient = Launcher(maxsim_sorted_gradient)


def query_gradient(problem: Problem, grad_scores: Tensor, winners: Tensor) -> Tensor:
    """Return the gradient of the queries."""
    documents = rows(problem.documents)
    gradient = _gradient_of(problem.queries, zeros=problem.query_offsets is not None)
    sizes = sizes_of(problem)
    *blocks, options = chosen = tuning.query_gradient(sizes, card_of(problem.queries.device))
    programs = sizes.queries * -(-sizes.query_length // chosen.ROWS) * -(-sizes.width // chosen.BLOCK_D)
    order, segments = _visiting_order(problem.pair_queries, sizes.queries)
    if programs and gradient.numel():
        _launch_query_gradient(
            (programs, 1, 1),
            (
                documents,
                plain(problem.query_weights),
                plain(problem.document_mask) if problem.rule.name == "ZERO" else None,
                plain(problem.query_offsets),
                plain(problem.document_offsets),
                order,
                segments,
                plain(problem.pair_documents),
                grad_scores,
                winners,
                gradient,
            ),
            document_strides(documents),
            (sizes.queries, grad_scores.shape[-1], problem.max_query_length, problem.max_document_length),
            (),
            (sizes.layout, sizes.width, *blocks, INTERPRETED),
            options,
        )
    return rounded(gradient, problem.queries.dtype)


def document_gradient(problem: Problem, grad_scores: Tensor, winners: Tensor) -> Tensor:
    """Return the gradient of the documents."""
    sizes = sizes_of(problem)
    is_chosen = sizes.layout == "CANDIDATES" and 2 * sizes.query_length <= sizes.document_length
    is_alone = is_chosen and 0 < sizes.query_length <= tuning.document_gradient(sizes).QUERY_TOKENS
    gradient = _gradient_of(
        problem.documents, zeros=(is_chosen and not is_alone) or problem.document_offsets is not None
    )
    if gradient.numel():
        sorting = tuning.sorting(sizes)
        if is_chosen:
            _of_chosen(problem, sizes, is_alone, grad_scores, winners, gradient)
        elif sorting is None:
            _by_product(problem, sizes, grad_scores, winners, gradient)
        else:
            _by_sorting(problem, sizes, sorting, grad_scores, winners, gradient)
    return rounded(gradient, problem.documents.dtype)


def _by_product(problem: Problem, sizes: Sizes, grad_scores: Tensor, winners: Tensor, gradient: Tensor) -> None:
    queries = rows(problem.queries)
    query_count, document_count = counts(problem)
    *blocks, options = chosen = tuning.document_gradient(sizes)
    programs = document_count * -(-sizes.document_length // chosen.BLOCK_N) * -(-sizes.width // chosen.BLOCK_D)
    order, segments = _visiting_order(problem.pair_documents, document_count)
    exact = _are_exact_in_16_bits(problem.query_weights)
    _launch_document_gradient(
        (programs, 1, 1),
        (
            queries,
            plain(problem.query_weights),
            plain(problem.document_mask) if problem.rule.name == "ZERO" else None,
            plain(problem.document_lengths),
            plain(problem.query_offsets),
            plain(problem.document_offsets),
            order,
            segments,
            plain(problem.pair_queries),
            grad_scores,
            winners,
            gradient,
        ),
        query_strides(queries),
        (query_count, grad_scores.shape[-1], problem.max_query_length, problem.max_document_length),
        (),
        (sizes.layout, sizes.width, *blocks, exact, precision(sizes.element_size), INTERPRETED),
        options,
    )


def _of_chosen(
    problem: Problem, sizes: Sizes, is_alone: bool, grad_scores: Tensor, winners: Tensor, gradient: Tensor
) -> None:
    queries = rows(problem.queries)
    _, document_count = counts(problem)
    *_, options = chosen = tuning.document_gradient(sizes)
    exact = _are_exact_in_16_bits(problem.query_weights)
    blocks = -(-sizes.query_length // chosen.QUERY_TOKENS) * -(-sizes.width // chosen.BLOCK_D)
    exactness = (exact, precision(sizes.element_size), INTERPRETED)
    cut = (sizes.width, chosen.QUERY_TOKENS, chosen.BLOCK_D, is_alone, *exactness)
    if blocks:
        _launch_candidate_gradient(
            (document_count * blocks, 1, 1),
            (
                queries,
                plain(problem.query_weights),
                plain(problem.document_mask) if problem.rule.name == "ZERO" else None,
                grad_scores,
                winners,
                gradient,
            ),
            query_strides(queries),
            (sizes.queries, sizes.documents, sizes.query_length, sizes.document_length),
            (),
            cut,
            options,
        )


def _are_exact_in_16_bits(weights: Tensor | None) -> bool:
    return weights is None or weights.dtype in _EXACT_IN_16_BITS


def _by_sorting(
    problem: Problem,
    sizes: Sizes,
    sorting: tuning.Sorting,
    grad_scores: Tensor,
    winners: Tensor,
    gradient: Tensor,
) -> None:
    queries = rows(problem.queries)
    adding = tuning.sorted_gradient(sizes, card_of(problem.queries.device))
    slots = sizes.queries * sizes.query_length
    chunks = -(-slots // CHUNK)
    # sorted winners take less memory than the winners do, so documents go in groups of one size
    budget = max(LEAST_ORDER, winners.numel() * winners.element_size() * 3 // 4)
    dtype = torch.int16 if slots <= 2**16 else torch.int32
    groups = -(-sizes.documents * (dtype.itemsize * slots + 4 * sorting.BINS * chunks) // budget)
    together = -(-sizes.documents // groups)
    order = recipes.empty((together, slots), dtype, gradient.device)
    ends = recipes.empty((together, sorting.BINS * chunks), torch.int32, gradient.device)
    blocks = -(-sizes.document_length // sorting.BIN) * -(-sizes.width // adding.BLOCK_D)
    weights = problem.query_weights
    is_exact = grad_scores.dtype is queries.dtype and (weights is None or weights.dtype is torch.bool)
    pieces = 1 if is_exact else _PIECES[queries.dtype]
    met = (sizes.queries, grad_scores.shape[-1], problem.max_query_length, problem.max_document_length)
    cut = (sorting.BIN, sorting.BINS)
    strides = (*query_strides(queries), slots)
    added = (
        queries,
        plain(weights),
        plain(problem.document_mask) if problem.rule.name == "ZERO" else None,
        plain(problem.query_offsets),
        plain(problem.document_offsets),
        grad_scores,
        winners,
        ends,
        order,
        gradient,
    )
    add_cut = (sizes.width, *cut, adding.ENTRIES, adding.BLOCK_D, pieces, precision(sizes.element_size), INTERPRETED)
    for first in range(0, sizes.documents, together):
        count = min(together, sizes.documents - first)
        numbers = (chunks, first, *met)
        grid = (count, chunks, 1)
        _launch_count(grid, (grad_scores, winners, ends), (slots,), numbers, (), cut, sorting.options)
        recipes.in_place(Tensor.cumsum_, ends if count == together else ends[:count], 1)
        _launch_sort(grid, (grad_scores, winners, ends, order), (slots,), numbers, (), cut, sorting.options)
        grid = (count * blocks, 1, 1)
        _launch_sorted_gradient(grid, added, strides, numbers, (), add_cut, adding.options)


def _visiting_order(pair_items: Tensor | None, item_count: int) -> tuple[Tensor | None, Tensor | None]:
    """Return the pairs sorted by item and where each item's begin, ``[item_count + 1]``, without a host sync."""
    if pair_items is None:
        return None, None
    items, order = torch.sort(pair_items, stable=True)
    bounds = torch.arange(item_count + 1, device=pair_items.device)
    return order, torch.searchsorted(items, bounds)


def _gradient_of(embeddings: Tensor, zeros: bool) -> Tensor:
    """Return memory for a gradient: zeros where some tokens are nobody's to write, as packed ones of no item are."""
    allocate = recipes.zeros if zeros else recipes.empty
    return allocate(embeddings.shape, stored(embeddings.dtype), embeddings.device)
