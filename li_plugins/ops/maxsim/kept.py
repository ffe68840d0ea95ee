"""Documents as lists of kept tokens with a bound: what is left to multiply after masks and lengths."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from li_plugins.ops.maxsim.problem import Problem

NEVER = 2**31 - 1
"""A position after every token."""

Chosen = slice | Tensor
"""Which candidates share a block: a range, or their indices."""


def compute_dtype(problem: Problem) -> torch.dtype:
    """Return the dtype of products and sums."""
    return torch.float64 if problem.queries.dtype is torch.float64 else torch.float32


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The documents to score, one for each pair where the layout lists pairs; ``[n]`` each.

    A masked token contributes a constant under ZERO and FILL and nothing under EXCLUDE. So it is left out, and the best
    similarity of its document is at least ``bounds`` (-inf: no bound), a value that stands at ``bound_positions``.
    """

    table: Tensor
    """``[T, d]``: the tokens of all documents."""
    origins: Tensor
    """Row of ``table`` of the document's token 0."""
    kept: Tensor | None
    """Kept rows of ``table``, document by document; ``None``: all."""
    starts: Tensor
    """Where the document's rows begin in ``kept``."""
    lengths: Tensor
    """How many tokens are kept."""
    uniform_length: int | None
    """The length of all when they fill ``table`` one after the other."""
    factors: Tensor | None = None
    """``[T]``: factors of the tokens under ZERO; ``None``: 1."""
    bounds: Tensor | None = None
    bound_positions: Tensor | None = None
    is_bound_by_mask: Tensor | None = None
    """Whether the bound is a masked token's, which counts even when no token is kept."""

    @classmethod
    def of(cls, problem: Problem) -> Candidates:
        """Read masks, lengths, floors and pairs."""
        table = problem.documents.flatten(0, -2)
        offsets, exists = _extents(problem, table)
        origins, lengths = offsets[:-1], offsets.diff()
        if problem.document_lengths is not None:
            lengths = problem.document_lengths.reshape(-1)
        is_packed = problem.document_offsets is not None
        uniform = None if is_packed or exists is not None else problem.max_document_length
        self = cls(table, origins, None, origins, lengths, uniform)
        if problem.document_mask is not None:
            self = self._masked(problem, offsets, exists)
        if problem.pair_documents is not None:
            self = self._selected(problem.pair_documents)
        return self if problem.floor is None else self._floored(problem.floor)

    def _masked(self, problem: Problem, offsets: Tensor, exists: Tensor | None) -> Candidates:
        assert problem.document_mask is not None
        mask = problem.document_mask.reshape(-1)
        keep = mask != 0
        drop = ~keep
        if exists is not None:
            keep, drop = keep & exists, drop & exists
        kept, dropped = keep.nonzero()[:, 0], drop.nonzero()[:, 0]
        name, factors = problem.rule.name, None
        if name == "ZERO" and mask.dtype is not torch.bool:
            factors = None if bool((mask[kept] == 1).all()) else mask.to(compute_dtype(problem))
        if not dropped.numel():
            return replace(self, factors=factors)
        if name == "ZERO" and not self._is_finite(problem.queries, dropped):
            # 0 * inf is NaN, as in the library's product: multiply every token
            return replace(self, factors=mask.to(compute_dtype(problem)))
        ends = torch.searchsorted(kept, offsets)
        self = replace(self, kept=kept, starts=ends[:-1], lengths=ends.diff(), uniform_length=None, factors=factors)
        if name == "EXCLUDE":
            return self
        ends = torch.searchsorted(dropped, offsets)
        has_dropped = ends.diff() > 0
        first_dropped = dropped[ends[:-1].clamp(max=dropped.numel() - 1)] - self.origins
        bounds = torch.full(has_dropped.shape, -torch.inf, dtype=compute_dtype(problem), device=mask.device)
        return replace(
            self,
            bounds=bounds.masked_fill_(has_dropped, problem.rule.fill),
            bound_positions=first_dropped.masked_fill_(~has_dropped, NEVER),
            is_bound_by_mask=has_dropped,
        )

    def _is_finite(self, queries: Tensor, dropped: Tensor) -> bool:
        dtype = torch.float64 if queries.dtype is torch.float64 else torch.float32
        total = queries.sum(dtype=dtype)
        for rows in dropped.split(2**14):
            total = total + self.table.index_select(0, rows).sum(dtype=dtype)
        return bool(total.isfinite())

    def _selected(self, documents: Tensor) -> Candidates:
        def pick(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[documents]

        return replace(
            self,
            origins=self.origins[documents],
            starts=self.starts[documents],
            lengths=self.lengths[documents],
            bounds=pick(self.bounds),
            bound_positions=pick(self.bound_positions),
            is_bound_by_mask=pick(self.is_bound_by_mask),
        )

    def _floored(self, floor: Tensor) -> Candidates:
        bounds, positions = self.bounds, self.bound_positions
        if bounds is None or positions is None:
            bounds = torch.full(floor.shape, -torch.inf, dtype=torch.float64, device=floor.device)
            positions = torch.full(floor.shape, NEVER, device=floor.device)
        is_raised = floor & (bounds < 0)
        return replace(
            self, bounds=bounds.masked_fill(is_raised, 0), bound_positions=positions.masked_fill(is_raised, NEVER)
        )

    @property
    def count(self) -> int:
        """How many candidates there are."""
        return self.lengths.shape[0]

    def blocks(self, width: int, elements: int) -> Iterator[tuple[Chosen, int]]:
        """Yield blocks of candidates with kept tokens, and the length to which they are padded.

        A block has at most ``elements`` when each of its tokens takes ``width`` of them, or one document.
        """
        if self.uniform_length is not None:
            if self.uniform_length:
                step = max(1, elements // (self.uniform_length * width))
                for start in range(0, self.count, step):
                    yield slice(start, min(start + step, self.count)), self.uniform_length
            return
        order = torch.argsort(self.lengths, descending=True, stable=True)
        negated = (-self.lengths[order]).tolist()
        start, end = 0, bisect_right(negated, -1)
        while start < end:
            length = -negated[start]
            similar = bisect_right(negated, -(length - length // 8))
            stop = min(similar, start + max(1, elements // (length * width)))
            yield order[start:stop], length
            start = stop

    def tokens(self, chosen: Chosen, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Return the tokens of a block, ``[n, length, d]``, and their rows in ``table`` (``None``: in order).

        Shorter documents repeat their last token: the maximum and its first position stay what they are.
        """
        if isinstance(chosen, slice):
            block = self.table[chosen.start * length : chosen.stop * length].to(dtype)
            rows = None
            factors = None if self.factors is None else self.factors[chosen.start * length : chosen.stop * length]
        else:
            slots = torch.arange(length, device=chosen.device).minimum(self.lengths[chosen][:, None] - 1)
            rows = slots.add_(self.starts[chosen][:, None])
            if self.kept is not None:
                rows = self.kept[rows]
            block = self.table.index_select(0, rows.view(-1)).to(dtype)
            factors = None if self.factors is None else self.factors[rows.view(-1)]
        if factors is not None:
            block = block * factors[:, None]
        return block.view(block.shape[0] // length, length, block.shape[1]), rows

    def positions(self, chosen: Chosen, rows: Tensor | None, slots: Tensor) -> Tensor:
        """Return the token positions of ``slots [n, ...]`` of a block."""
        if rows is None:
            return slots
        assert isinstance(chosen, Tensor)
        return rows.gather(1, slots).sub_(self.origins[chosen][:, None])

    def bounded(self, chosen: Chosen, best: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Raise ``best [n, ...]`` to the bounds; where the bound came first or is greater, the position is -1."""
        if self.bounds is None or self.bound_positions is None:
            return best, positions
        bounds = self.bounds[chosen][:, None].to(best.dtype)
        if positions is not None:
            is_late = positions > self.bound_positions[chosen][:, None]
            positions = positions.masked_fill((best < bounds) | ((best == bounds) & is_late), -1)
        return best.maximum(bounds), positions

    def score_vacant(self, scores: Tensor, weight_sums: Tensor | None, empty_score: float) -> None:
        """Write the rows of ``scores [n, columns]`` that belong to candidates without a kept token.

        ``weight_sums [1 or n, columns]`` is what the bound is multiplied with; ``None`` when every bound is 0.
        """
        vacant = (self.lengths == 0).nonzero()[:, 0]
        if not vacant.numel():
            return
        scores[vacant] = empty_score
        if self.bounds is None or self.is_bound_by_mask is None:
            return
        bound = vacant[self.is_bound_by_mask[vacant]]
        if weight_sums is None:
            scores[bound] = 0
        else:
            sums = weight_sums if weight_sums.shape[0] == 1 else weight_sums[bound]
            scores[bound] = self.bounds[bound][:, None].to(scores.dtype) * sums


def _extents(problem: Problem, table: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the offsets of the documents in ``table`` and, with lengths, which of its rows exist."""
    if problem.document_offsets is not None:
        return problem.document_offsets, None
    length, device = problem.max_document_length, table.device
    count = problem.documents.shape[:-2].numel()
    offsets = torch.arange(count + 1, device=device) * length
    if problem.document_lengths is None:
        return offsets, None
    return offsets, (torch.arange(length, device=device) < problem.document_lengths[..., None]).reshape(-1)
