"""MaxSim without the grid: blocks of documents against rows of query tokens, in plain torch on any device.

A tile of similarities has document tokens before query tokens, so that the maximum runs down contiguous rows. Masks and
lengths are settled before (``kept``), gradients are sums of the rows that won (``gather``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from li_plugins.api import Support
from li_plugins.ops.maxsim import candidates, small
from li_plugins.ops.maxsim.gather import gradients
from li_plugins.ops.maxsim.kept import Block, compute_dtype, documents_of
from li_plugins.ops.maxsim.problem import Layout, Problem
from li_plugins.ops.spans import grouped

TILE_ELEMENTS = 2**20
"""Most similarities in memory at a time where there are winners, as long as one query token and one document have
fewer; the same holds for a block of document tokens and of best similarities."""
TILE_ROWS = 512
"""Most query tokens in one tile."""
SCORED_TOKENS, SCORED_ROWS = 2048, 1024
"""Document tokens (products of other numbers take longer) and most query tokens in a tile without winners, for which a
document's similarities need not be in memory together. Few query tokens meet more; a block has as many numbers as a
tile, too."""
BLOCK_WIDTH = 128
"""What a document token without winners counts for in a block at least."""
PANEL_ROWS = 2**15
"""Most query tokens that are cast and weighted at a time."""


class Blocked:
    """Memory beyond inputs and outputs: a few tiles, a panel of query tokens, copies of what is not contiguous."""

    def supports(self, problem: Problem) -> Support:
        """Serve everything."""
        return Support(True)

    def forward(self, problem: Problem, want_winners: bool) -> tuple[Tensor, Tensor | None]:
        """Return the scores and, if wanted, the winning document token of every query token."""
        at_once = small.scores_and_winners(problem, want_winners)
        if at_once is not None:
            return at_once
        together = candidates.queries_together(problem, TILE_ELEMENTS)
        if together:
            return candidates.scores_and_winners(problem, want_winners, together)
        order = grouped(problem.pair_queries)
        if order is not None:
            scores, winners = self.forward(_reordered(problem, order), want_winners)
            back = order.argsort()
            return scores[back], None if winners is None else winners[back]
        documents = documents_of(problem, want_winners)
        is_cross = problem.is_cross
        columns = problem.scores_shape[0] if is_cross else 1
        dtype, device = compute_dtype(problem.queries.dtype), problem.queries.device
        width = problem.queries.shape[-1]
        scores = torch.zeros(documents.count, columns, dtype=dtype, device=device)
        winners = None
        if want_winners:
            shape = documents.count, columns, problem.max_query_length
            winners = torch.full(shape, -1, dtype=problem.winners_dtype, device=device)
        scratch = _Scratch(dtype, device)
        for queries, within in _panels(problem) if is_cross else _runs(problem):
            rows = _in_sixteens(queries.rows)
            total = rows.shape[0]
            limits = TILE_ELEMENTS, max(min(total, TILE_ROWS), width)
            if not want_winners:  # those of one query are often gathered: their blocks are copies
                limits = SCORED_TOKENS * SCORED_ROWS if is_cross else TILE_ELEMENTS, max(width, BLOCK_WIDTH)
            for block in documents.blocks(within, dtype, *limits, total):
                found = _best(block, rows, queries.rows.shape[0], scratch, want_winners)
                best, positions = block.settled(*found)
                scores[block.chosen, queries.columns] = queries.summed(best)
                if winners is not None and positions is not None:
                    arranged = queries.arranged(positions)
                    winners[block.chosen, queries.columns, : arranged.shape[-1]] = arranged.to(winners.dtype)
        documents.score_vacant(scores, _weight_sums(problem), problem.rule.empty_score)
        scores = scores.T.contiguous() if is_cross else scores
        scores = scores.reshape(problem.scores_shape).to(problem.out_dtype)
        return scores, None if winners is None else winners.view(problem.winners_shape)

    def backward(
        self, problem: Problem, grad_scores: Tensor, winners: Tensor, need_queries: bool, need_documents: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients: for each row the sum, in a fixed order, of the rows that it won or was won by."""
        found = small.gradients(problem, grad_scores, winners, need_queries, need_documents)
        if found is not None:
            return found
        return gradients(problem, grad_scores, winners, need_queries, need_documents)


KERNEL = Blocked()


@dataclass(frozen=True, slots=True, eq=False)
class _QueryRows:
    """Tokens of some queries, and how their best similarities add up to ``columns`` of the scores."""

    columns: slice
    rows: Tensor
    """``[R, d]``"""
    length: int
    """``L``, the tokens of a query after padding."""
    weights: Tensor | None = None
    """``[columns, L]``"""
    exists: Tensor | None = None
    """``[columns, L]``: which tokens are no padding."""
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


def _panels(problem: Problem) -> Iterator[tuple[_QueryRows, slice]]:
    """Yield all queries, some at a time, each with all documents."""
    everything = slice(0, problem.scores_shape[1])
    if problem.query_offsets is not None:
        for panel in _packed_panels(problem, problem.query_offsets):
            yield panel, everything
        return
    count, length, _ = problem.queries.shape
    step = max(1, PANEL_ROWS // max(1, length))
    for start in range(0, count if length else 0, step):
        columns = slice(start, min(start + step, count))
        weights = None if problem.query_weights is None else problem.query_weights[columns]
        rows, weights = _prepared(problem, problem.queries[columns], weights)
        yield _QueryRows(columns, rows.flatten(0, 1), length, weights), everything


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


def _runs(problem: Problem) -> Iterator[tuple[_QueryRows, slice]]:
    """Yield each query with its own candidates."""
    queries, weights = problem.queries, problem.query_weights
    if problem.pair_queries is None or problem.query_offsets is None:
        length, per_query = queries.shape[1], problem.documents.shape[1]
        spans = [slice(number * length, (number + 1) * length) for number in range(queries.shape[0])]
        counts = [per_query] * len(spans)
        queries, weights = queries.flatten(0, 1), None if weights is None else weights.flatten()
    else:
        begins = problem.query_offsets.tolist()
        owners, sizes = torch.unique_consecutive(problem.pair_queries, return_counts=True)
        spans = [slice(begins[owner], begins[owner + 1]) for owner in owners.tolist()]
        counts = sizes.tolist()
    start = 0
    for span, count in zip(spans, counts, strict=True):
        rows, factors = _prepared(problem, queries[span], None if weights is None else weights[span])
        if count and rows.shape[0]:
            yield _QueryRows(slice(0, 1), rows, rows.shape[0], factors), slice(start, start + count)
        start += count


def _reordered(problem: Problem, order: Tensor) -> Problem:
    """Return the problem with its listed pairs in another order."""
    assert problem.pair_queries is not None and problem.pair_documents is not None
    return replace(
        problem,
        pair_queries=problem.pair_queries[order],
        pair_documents=problem.pair_documents[order],
        floor=None if problem.floor is None else problem.floor[order],
    )


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

    def tile(self, height: int, width: int) -> Tensor:
        """Return uninitialised memory of this shape; the previous tile is gone."""
        elements = height * width
        if self._memory.numel() < elements:
            self._memory = self._memory.new_empty(elements)
        return self._memory[:elements].view(height, width)


def _in_sixteens(rows: Tensor) -> Tensor:
    """Return ``rows [R, d]`` with zeros behind, up to a multiple of 16, unless a product of so few takes less."""
    missing = -rows.shape[0] % 16
    if missing == 0 or rows.shape[0] <= 8:
        return rows
    # not `pad`: up to torch 2.9 at least it refuses rows without dimensions
    return torch.cat((rows, rows.new_zeros(missing, rows.shape[1])))


def _best(
    block: Block, rows: Tensor, count: int, scratch: _Scratch, want_positions: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the best similarity of the first ``count`` of ``rows [R, d]`` with each document, and where it stands.

    ``[n, count]`` each.
    """
    total, height = rows.shape[0], block.tokens.shape[0]
    if want_positions:
        most = min(TILE_ROWS, TILE_ELEMENTS // height)
    else:
        height, most = SCORED_TOKENS * max(1, 128 // total), SCORED_ROWS
    most = max(1, most // 16)
    # equal parts, in sixteens: a last one of a few columns would take as long as one of many
    step = 16 * -(-total // (16 * -(-total // (16 * most))))
    parts = rows.split(step)
    # torch is eight times slower where the greatest are written to columns of more
    best = [part.new_full((block.count, part.shape[0]), -torch.inf) for part in parts]
    positions: list[Tensor] = []
    for tile in block.tiles(height):
        tokens = block.tokens[tile.tokens]
        for part, greatest in zip(parts, best, strict=True):
            similarities = torch.mm(tokens, part.T, out=scratch.tile(tokens.shape[0], part.shape[0]))
            tile.raise_to(similarities, greatest)
            if want_positions:  # in the one tile there is then
                positions.append(block.first_positions(similarities, greatest))
    return torch.cat(best, 1)[:, :count], torch.cat(positions, 1)[:, :count] if want_positions else None


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
