"""MaxSim without the grid: blocks of documents against rows of query tokens, in plain torch on any device.

A tile of similarities has document tokens before query tokens, so that the maximum runs down contiguous rows. Masks and
lengths are settled before (``kept``), gradients are sums of the rows that won (``gather``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from li_plugins.api import Support
from li_plugins.ops.maxsim.gather import gradients
from li_plugins.ops.maxsim.kept import compute_dtype, documents_of
from li_plugins.ops.maxsim.problem import Layout, Problem

TILE_ELEMENTS = 2**20
"""Most similarities in memory at a time, as long as one query token and one document have fewer; the same holds for a
block of document tokens, of queries, and of best similarities."""
TILE_ROWS = 1024
"""Most query tokens in one tile."""
PANEL_ROWS = 2**15
"""Most query tokens that are cast and weighted at a time."""


class Blocked:
    """Memory beyond inputs and outputs: a few tiles, and copies of inputs that are not contiguous."""

    def supports(self, problem: Problem) -> Support:
        """Serve everything."""
        return Support(True)

    def forward(self, problem: Problem, want_winners: bool) -> tuple[Tensor, Tensor | None]:
        """Return the scores and, if wanted, the winning document token of every query token."""
        documents = documents_of(problem, want_winners)
        is_cross = problem.layout in (Layout.CROSS, Layout.PACKED_CROSS)
        columns = problem.scores_shape[0] if is_cross else 1
        dtype, device = compute_dtype(problem.queries.dtype), problem.queries.device
        longest, width = problem.max_query_length, problem.queries.shape[-1]
        scores = torch.zeros(documents.count, columns, dtype=dtype, device=device)
        winners = None
        if want_winners:
            winners = torch.full((columns, documents.count, longest), -1, dtype=torch.int32, device=device)
        scratch = _Scratch(dtype, device)
        for panel in (_panels(problem) if is_cross else (None,)) if longest else ():
            rows = longest if panel is None else panel.rows.shape[0]
            per_document = rows * width if panel is None else rows
            per_token = max(min(rows, TILE_ROWS), width)
            for block in documents.blocks(dtype, TILE_ELEMENTS, per_token, per_document):
                queries = _pair_rows(problem, block.chosen) if panel is None else panel
                best, slots = _best(block.tokens, queries.rows, scratch, want_winners)
                best, positions = block.settled(best, slots)
                scores[block.chosen, queries.columns] = queries.summed(best)
                if winners is not None and positions is not None:
                    found = queries.arranged(positions)
                    winners[queries.columns, block.chosen, : found.shape[-1]] = found.transpose(0, 1).int()
        documents.score_vacant(scores, _weight_sums(problem), problem.rule.empty_score)
        scores = scores.T.contiguous() if is_cross else scores
        scores = scores.reshape(problem.scores_shape).to(problem.out_dtype)
        return scores, None if winners is None else winners.view(problem.winners_shape)

    def backward(
        self, problem: Problem, grad_scores: Tensor, winners: Tensor, need_queries: bool, need_documents: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients: for each row the sum, in a fixed order, of the rows that it won or was won by."""
        return gradients(problem, grad_scores, winners, need_queries, need_documents)


KERNEL = Blocked()


@dataclass(frozen=True, slots=True, eq=False)
class _QueryRows:
    """The query tokens that a block of candidates meets, and how they add up to ``columns`` of the scores."""

    columns: slice
    rows: Tensor
    """``[R, d]``: the same for every candidate; ``[n, L, d]``: its own for each."""
    length: int
    """``L``, the tokens of a query after padding."""
    weights: Tensor | None = None
    """``[columns, L]`` or ``[n, 1, L]``."""
    exists: Tensor | None = None
    """Which tokens are no padding; shaped as the weights."""
    slots: Tensor | None = None
    """``[columns * L]``: the row of each token, where the rows are ragged."""

    def arranged(self, values: Tensor) -> Tensor:
        """Return values of rows as ``[n, columns, L]``."""
        if self.slots is not None:
            values = values.index_select(1, self.slots)
        return values.view(values.shape[0], self.columns.stop - self.columns.start, self.length)

    def summed(self, best: Tensor) -> Tensor:
        """Return the weighted sums of the best similarities, ``[n, columns]``."""
        best = self.arranged(best)
        if self.weights is not None:
            best = best * self.weights
        if self.exists is not None:
            best = best.masked_fill(~self.exists, 0)
        return best.sum(-1)


def _prepared(problem: Problem, rows: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return query rows in the compute dtype and the weights of their maxima, which ZERO applies to the rows."""
    rows = rows.to(compute_dtype(problem.queries.dtype))
    if weights is None:
        return rows, None
    weights = weights.to(rows.dtype)
    return (rows * weights[..., None], None) if problem.rule.name == "ZERO" else (rows, weights)


def _panels(problem: Problem) -> Iterator[_QueryRows]:
    """Yield all queries, some at a time."""
    if problem.query_offsets is not None:
        yield from _packed_panels(problem, problem.query_offsets)
        return
    count, length, _ = problem.queries.shape
    step = max(1, PANEL_ROWS // length)
    for start in range(0, count, step):
        columns = slice(start, min(start + step, count))
        weights = None if problem.query_weights is None else problem.query_weights[columns]
        rows, weights = _prepared(problem, problem.queries[columns], weights)
        yield _QueryRows(columns, rows.flatten(0, 1), length, weights)


def _packed_panels(problem: Problem, offsets: Tensor) -> Iterator[_QueryRows]:
    begins = offsets.tolist()
    start = 0
    while start < len(begins) - 1:
        stop = max(start + 1, bisect_right(begins, begins[start] + PANEL_ROWS) - 1)
        tokens = slice(begins[start], begins[stop])
        local = offsets[start : stop + 1] - begins[start]
        slots, exists = _padding(local[:-1], local[1:])
        weights = None if problem.query_weights is None else problem.query_weights[tokens]
        rows, weights = _prepared(problem, problem.queries[tokens], weights)
        weights = None if weights is None else weights[slots]
        if rows.shape[0]:
            yield _QueryRows(slice(start, stop), rows, slots.shape[1], weights, exists, slots.view(-1))
        start = stop


def _pair_rows(problem: Problem, chosen: slice | Tensor) -> _QueryRows:
    """Return each chosen candidate's own query."""
    weights = problem.query_weights
    if problem.query_offsets is None:
        per_query = max(1, problem.documents.shape[1])
        owners = torch.arange(problem.documents.shape[:2].numel(), device=problem.queries.device)[chosen] // per_query
        rows, weights = _prepared(problem, problem.queries[owners], None if weights is None else weights[owners])
        return _QueryRows(slice(0, 1), rows, rows.shape[1], None if weights is None else weights[:, None])
    assert problem.pair_queries is not None
    owners = problem.pair_queries[chosen]
    offsets = problem.query_offsets
    slots, exists = _padding(offsets[owners], offsets[owners + 1])
    rows, weights = _prepared(problem, problem.queries[slots], None if weights is None else weights[slots])
    weights = None if weights is None else weights[:, None]
    return _QueryRows(slice(0, 1), rows, rows.shape[1], weights, exists[:, None])


def _padding(begins: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of ragged queries padded to the longest, ``[n, L]``, and which of them are no padding."""
    lengths = ends - begins
    slots = torch.arange(int(lengths.amax()), device=begins.device)
    exists = slots < lengths[:, None]
    return (slots + begins[:, None]).where(exists, 0), exists


class _Scratch:
    """Memory that tiles share; it grows to the largest."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._memory = torch.empty(0, dtype=dtype, device=device)

    def tile(self, count: int, length: int, span: int) -> Tensor:
        """Return uninitialised memory of this shape; the previous tile is gone."""
        elements = count * length * span
        if self._memory.numel() < elements:
            self._memory = self._memory.new_empty(elements)
        return self._memory[:elements].view(count, length, span)


def _best(tokens: Tensor, rows: Tensor, scratch: _Scratch, want_slots: bool) -> tuple[Tensor, Tensor | None]:
    """Return the best similarity of each query row with each candidate, ``[n, R]``, and the first slot that has it.

    ``tokens [n, L, d]`` meet ``rows [R, d]``, or ``rows [n, R, d]`` one to one.
    """
    count, length, _ = tokens.shape
    total = rows.shape[-2]
    best = tokens.new_empty(count, total)
    slots = tokens.new_empty(count, total, dtype=torch.int64) if want_slots else None
    step = min(TILE_ROWS, max(16, TILE_ELEMENTS // (count * length)))
    for start in range(0, total, step):
        part = rows[..., start : start + step, :]
        span = part.shape[-2]
        similarities = scratch.tile(count, length, span)
        if rows.dim() == 2:
            torch.mm(tokens.flatten(0, 1), part.T, out=similarities.view(-1, span))
        else:
            torch.bmm(tokens, part.mT, out=similarities)
        columns = best[:, start : start + step]
        torch.amax(similarities, 1, out=columns)
        if slots is not None:
            slots[:, start : start + step] = _first_slot(similarities, columns)
    return best, slots


def _first_slot(similarities: Tensor, best: Tensor) -> Tensor:
    """Return the first slot of the maximum, ``[n, R]``; overwrites ``similarities [n, L, R]``."""
    length = similarities.shape[1]
    if length > 2**24 or bool(best.isnan().any()):  # counted in float32 below, and NaN is not equal to itself
        return similarities.argmax(1)
    countdown = torch.arange(length, 0, -1, dtype=best.dtype, device=best.device)[:, None]
    return length - similarities.eq_(best[:, None]).mul_(countdown).amax(1)


def _weight_sums(problem: Problem) -> Tensor | None:
    """Return the sum of each query's weights, ``[1, A]`` or one row for each pair; ``None`` unless FILL needs it."""
    if problem.rule.name != "FILL":
        return None
    dtype, queries = compute_dtype(problem.queries.dtype), problem.queries
    weights = (
        queries.new_ones(queries.shape[:-1], dtype=dtype) if problem.query_weights is None else problem.query_weights
    )
    if problem.query_offsets is None:
        sums = weights.to(dtype).sum(-1)
    else:
        lengths = problem.query_offsets.diff()
        owners = torch.arange(lengths.shape[0], device=lengths.device).repeat_interleave(lengths)
        sums = torch.zeros(lengths.shape, dtype=dtype, device=queries.device).index_add_(0, owners, weights.to(dtype))
    if problem.layout is Layout.CANDIDATES:
        return sums.repeat_interleave(problem.documents.shape[1])[:, None]
    return sums[None] if problem.pair_queries is None else sums[problem.pair_queries][:, None]
