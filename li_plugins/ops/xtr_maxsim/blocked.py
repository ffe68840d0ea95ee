"""XTR without the grid: some query tokens at a time against all documents, in plain torch on any device.

What is retrieved is a small part of the tokens, and all that follows looks at that part alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from li_plugins.api import Support
from li_plugins.ops import dispatch
from li_plugins.ops.maxsim.kept import compute_dtype
from li_plugins.ops.xtr_maxsim.greatest import greatest
from li_plugins.ops.xtr_maxsim.problem import XtrProblem

TILE_ELEMENTS = {"cpu": 2**21, "cuda": 2**25}
"""Most similarities in memory at a time, by device, and most best similarities.

Fewer are slower: a product with few rows reads all documents for them. On a GPU launches have to be few.
"""
LEAST_ROWS = 32
"""Query tokens that are taken together however many documents there are: a product with fewer reads these in vain."""

_WIDENS = "dtype_out" in torch.ops.aten.mm.overloads()
"""Whether torch (2.8 and later) multiplies 16-bit numbers on a GPU without rounding the product to their dtype."""


class Blocked:
    """Memory beyond inputs and outputs: a few tiles, or ``LEAST_ROWS`` numbers for each document token."""

    def supports(self, problem: XtrProblem) -> Support:
        """Serve everything."""
        return Support(True)

    def forward(self, problem: XtrProblem, want_winners: bool) -> tuple[Tensor, Tensor | None]:
        """Return the scores and, if wanted, the winning document token of every query token, and the counts."""
        queries, length = problem.queries, problem.max_query_length
        scores = queries.new_empty(problem.scores_shape, dtype=problem.out_dtype)
        winners = None
        if want_winners:
            winners = queries.new_empty(problem.winners_shape, dtype=problem.winners_dtype)
        pool = _Pool.of(problem)
        for chosen in _spans(queries.shape[0], length * problem.columns, pool.elements):
            shape = chosen.stop - chosen.start, length, problem.columns
            best = queries.new_empty(shape, dtype=pool.dtype)
            is_found = queries.new_empty(shape, dtype=torch.bool)
            positions = queries.new_empty(shape, dtype=torch.int64) if want_winners else None
            rows = queries[chosen].flatten(0, 1)
            # of what is retrieved, and of what each document gets, there are some copies of eight bytes each
            for part in _spans(rows.shape[0], 8 * (problem.k + problem.columns), pool.elements, LEAST_ROWS):
                retrieved = pool.retrieved(rows[part], part.start + chosen.start * length)
                best.flatten(0, 1)[part], is_found.flatten(0, 1)[part] = retrieved.best, retrieved.is_found
                if positions is not None:
                    positions.flatten(0, 1)[part] = pool.winners(retrieved)
            scores[chosen], counts = problem.finished(best, is_found, chosen)
            if winners is not None and positions is not None:
                by_query = problem.by_score(winners)[chosen]
                by_query[..., :-1] = positions.mT
                by_query[..., -1] = counts
        return scores, winners

    def backward(
        self, problem: XtrProblem, grad_scores: Tensor, winners: Tensor, need_queries: bool, need_documents: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients: MaxSim's, by whatever kernel serves it best, with these winners."""
        winning, winners, grad_sums = problem.winning(winners, grad_scores)
        return dispatch.run(
            "maxsim",
            winning,
            "backward",
            lambda kernel: kernel.backward(winning, grad_sums, winners, need_queries, need_documents),
        )


KERNEL = Blocked()


class _Retrieved(NamedTuple):
    """What some query tokens retrieved, and what that is to each document; ``columns`` are those of the scores."""

    similarities: Tensor
    """``[R, k]``"""
    columns: Tensor
    """``[R, k]``: whose each is; one past the last where it counts for nothing."""
    positions: Tensor
    """``[R, k]``: where each stands in its document."""
    documents: Tensor | None
    """``[R, columns]``: the documents that the columns are of; ``None``: all, in order."""
    found: Tensor
    """``[R, columns + 1]``: the greatest retrieved similarity, -inf where there is none."""
    is_found: Tensor
    """``[R, columns]``: whether there is one."""
    is_whole: Tensor | None
    """``[R, columns]``: whether all tokens were retrieved, where the rule asks for it."""
    best: Tensor
    """``[R, columns]``: what stands in the score."""


class _Pool(NamedTuple):
    """The tokens of all documents."""

    problem: XtrProblem
    tokens: Tensor
    """``[pool, d]``"""
    keep: Tensor | None
    dtype: torch.dtype
    """Of products and sums."""
    elements: int
    """Most numbers in a tile."""

    @classmethod
    def of(cls, problem: XtrProblem) -> _Pool:
        """Take them from a problem."""
        tokens = problem.documents.flatten(0, -2)
        elements = TILE_ELEMENTS.get(tokens.device.type, TILE_ELEMENTS["cpu"])
        return cls(problem, tokens, problem.keep(), compute_dtype(tokens.dtype), elements)

    def retrieved(self, rows: Tensor, first: int) -> _Retrieved:
        """Return what query tokens ``[R, d]`` retrieve, the first of which is the ``first`` of all queries."""
        problem = self.problem
        similarities, places = greatest(self._tiles(rows), problem.pool, problem.k)
        columns = places.div(problem.max_document_length, rounding_mode="floor")
        positions = places - columns * problem.max_document_length
        count, documents = problem.columns, None
        if not problem.is_cross:
            query = torch.arange(first, first + len(rows), device=rows.device) // problem.max_query_length
            own = (query * count)[:, None]
            documents = own + torch.arange(count, device=rows.device)
            columns = columns - own
            columns = columns.where((columns >= 0) & (columns < count), count)
        if self.keep is not None and problem.rule.name == "EXCLUDE":
            columns = columns.where(self.keep[places], count)

        shape = len(rows), count + 1
        found = similarities.new_full(shape, -torch.inf).scatter_reduce_(1, columns, similarities, "amax")
        if problem.xtr_rule == "RETRIEVED":
            is_found = torch.zeros(shape, dtype=torch.bool, device=rows.device).scatter_(1, columns, True)[:, :-1]
            best, is_whole = found[:, :-1].where(is_found, 0), None
        else:
            counts = _counted(columns, torch.ones_like(columns), count)
            is_found, is_whole = counts > 0, counts == problem.max_document_length
            best = found[:, :-1]
            best = best.where(is_whole, best.clamp(min=0))
        return _Retrieved(similarities, columns, positions, documents, found, is_found, is_whole, best)

    def winners(self, retrieved: _Retrieved) -> Tensor:
        """Return the position of each document's first best token, ``[R, columns]``, -1 where none gets a gradient."""
        similarities, columns, positions, documents, found, is_found, is_whole, best = retrieved
        length = self.problem.max_document_length
        is_best = (similarities == found.gather(1, columns)) | similarities.isnan()
        first = torch.full_like(found, length, dtype=torch.int64)
        first.scatter_reduce_(1, columns, positions.where(is_best, length), "amin")
        passes = is_found & (first[:, :-1] < length)
        if is_whole is not None:
            # Among zeros the first wins, a token that was not retrieved included: one of the tokens before.
            before = _counted(columns, (positions < first.gather(1, columns)).long(), best.shape[1])
            greatest, first = found[:, :-1], first[:, :-1]
            passes &= is_whole | ~(greatest < 0) & ((greatest != 0) | (before == first))
        else:
            first = first[:, :-1]
        if self.keep is not None and self.problem.rule.name == "FILL":
            if documents is None:
                documents = torch.arange(first.shape[1], device=first.device)
            passes &= self.keep[documents * length + first.clamp(max=length - 1)]
        return first.where(passes, -1)

    def _tiles(self, rows: Tensor) -> Iterator[Tensor]:
        """Yield the similarities of some of the rows at a time, ``[some, pool]``, all in one piece of memory."""
        parts = list(_spans(len(rows), len(self.tokens), self.elements, LEAST_ROWS))
        memory = rows.new_empty(parts[0].stop, len(self.tokens), dtype=self.dtype)
        casts = None
        if rows.dtype is not self.dtype and not (rows.is_cuda and _WIDENS):
            # Once for all tiles: what is kept of these would lie where a cast was, and the next one beyond it.
            casts = memory.new_empty(self.tokens[: max(1, self.elements // max(1, rows.shape[1]))].shape)
        for part in parts:
            yield self._similarities(rows[part], memory[: len(rows[part])], casts)

    def _similarities(self, rows: Tensor, found: Tensor, casts: Tensor | None) -> Tensor:
        """Return ``found [R, pool]`` with the similarities, masked tokens filled; ``casts`` is memory for documents."""
        # Autocast leaves a product alone that has a place to go.
        if casts is not None:
            rows = rows.to(self.dtype)
            for part in _spans(len(self.tokens), 1, len(casts)):
                tokens = casts[: part.stop - part.start].copy_(self.tokens[part])
                torch.mm(rows, tokens.T, out=found[:, part])
        elif rows.dtype is self.dtype:
            torch.mm(rows, self.tokens.T, out=found)
        else:
            torch.mm(rows, self.tokens.T, out_dtype=self.dtype, out=found)
        return found if self.keep is None else found.masked_fill_(~self.keep, self.problem.fill)


def _counted(columns: Tensor, ones: Tensor, count: int) -> Tensor:
    """Return how many ``ones`` each column has, ``[R, count]``."""
    return ones.new_zeros(len(columns), count + 1).scatter_add_(1, columns, ones)[:, :-1]


def _spans(count: int, each: int, elements: int, least: int = 1) -> Iterator[slice]:
    """Yield runs of items of ``each`` so many elements that take at most ``elements``, or of ``least`` items."""
    step = max(least, elements // max(1, each))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
