"""Documents as lists of kept tokens with a bound: what is left to multiply after masks and lengths."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from li_plugins.ops.masks import MaskRule
from li_plugins.ops.maxsim.problem import Problem

NEVER = 2**31 - 1
"""A position after every token."""
SCANNED = 2**16
"""Embedding elements from which on a look for padding by zero rows pays."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of products and sums for inputs of ``dtype``."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def documents_of(problem: Problem, want_positions: bool) -> Whole | Kept:
    """Read masks, lengths, floors and pairs; unless positions are wanted, leave out padding by zero rows as well."""
    table, mask, rule = problem.documents.flatten(0, -2), problem.document_mask, problem.rule
    if problem.document_offsets is not None:
        kept = Kept.of(table, problem.document_offsets)
        if mask is not None:
            kept = kept.masked(mask, rule, problem)
        if problem.pair_documents is not None:
            kept = kept.selected(problem.pair_documents)
        return kept if problem.floor is None else kept.floored(problem.floor)
    count, length = problem.documents.shape[:-2].numel(), problem.max_document_length
    if mask is None and not want_positions:
        # a zero row is a candidate with similarity 0, as a masked token is under ZERO
        mask, rule = _nonzero_rows(problem.documents), MaskRule.ZERO
    if mask is None and problem.document_lengths is None:
        return Whole(table, count, length)
    kept = Kept.of(table, torch.arange(count + 1, device=table.device) * length)
    lengths = problem.document_lengths
    if lengths is not None:
        kept = replace(kept, lengths=lengths.reshape(-1))
    if mask is None:
        return kept
    exists = None if lengths is None else torch.arange(length, device=table.device) < lengths[..., None]
    return kept.masked(mask.reshape(-1), rule, problem, exists)


class Tile(NamedTuple):
    """Tokens of a block that follow each other."""

    tokens: slice
    owners: slice | Tensor
    """Whose they are: the document of each, or documents of one length, counted from the first of the block."""

    def raise_to(self, values: Tensor, best: Tensor) -> None:
        """Raise ``best [n, R]``, contiguous, of all documents to the greatest of the tokens' ``values [T, R]``."""
        if isinstance(self.owners, Tensor):
            best.scatter_reduce_(0, self.owners[:, None].expand_as(values), values, "amax")
        else:
            best = best[self.owners]
            torch.maximum(best, values.view(best.shape[0], -1, values.shape[1]).amax(1), out=best)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Some documents, or pairs, one after the other: the tokens of all, and which are whose."""

    chosen: slice
    tokens: Tensor
    """``[T, d]`` in the compute dtype."""
    owners: Tensor | None = None
    """``[T]``: the document of each token, counted from the first of the block; ``None``: all have as many tokens."""
    positions: Tensor | None = None
    """``[T]``: the position of each token in its document, rising; ``None``: each document's count from 0."""
    bounds: Tensor | None = None
    """``[n, 1]``: the least that a best similarity can be (-inf: no bound)."""
    bound_positions: Tensor | None = None
    """``[n, 1]``: where the bound stands among the tokens."""

    @property
    def count(self) -> int:
        """``n``, how many documents there are."""
        return self.chosen.stop - self.chosen.start

    def tiles(self, height: int) -> Iterator[Tile]:
        """Yield the tokens, at most ``height`` at a time; documents of one length whole, unless they are longer."""
        if self.owners is None:
            length = self.tokens.shape[0] // self.count
            step = max(1, height // length)
            for document in range(0, self.count, step):
                documents = slice(document, min(document + step, self.count))
                last = documents.stop * length
                for first in range(document * length, last, height):
                    yield Tile(slice(first, min(first + height, last)), documents)
            return
        for first in range(0, self.tokens.shape[0], height):
            tokens = slice(first, first + height)
            yield Tile(tokens, self.owners[tokens])

    def greatest(self, values: Tensor) -> Tensor:
        """Return the greatest of each document's ``values [T, R]``, ``[n, R]``; -inf where it has no token."""
        if self.owners is None:
            return values.view(self.count, -1, values.shape[1]).amax(1)
        found = values.new_full((self.count, values.shape[1]), -torch.inf)
        Tile(slice(None), self.owners).raise_to(values, found)
        return found

    def first_positions(self, values: Tensor, best: Tensor) -> Tensor:
        """Return where each document's best value stands first, ``[n, R]``, -1 without tokens.

        Overwrites ``values [T, R]``.
        """
        has_nan = bool(best.isnan().any())
        positions = self.positions
        if positions is None:
            positions = torch.arange(self.tokens.shape[0] // self.count, device=values.device)
        if self.owners is None:
            values = values.view(self.count, positions.shape[0], -1)
            best_of_token = best[:, None]
        else:
            best_of_token = best.index_select(0, self.owners)
        is_best = (values == best_of_token).logical_or_(values.isnan()) if has_nan else values.eq_(best_of_token)
        last = int(positions[-1] if self.owners is None else positions.amax()) + 1
        # Counted down, so that the greatest is the first; exact as far as floating point counts.
        dtype = values.dtype if last < 2**24 else torch.float64
        countdown = is_best.to(dtype).mul_((last - positions)[:, None])
        countdown = self.greatest(countdown.flatten(0, -2))
        return torch.where(countdown > 0, last - countdown, -1).long()

    def settled(self, best: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the best similarities ``[n, R]`` with the bound among them, and their positions.

        The position is -1 where the bound is greater, or equal and earlier.
        """
        if self.bounds is None or self.bound_positions is None:
            return best, positions
        if positions is not None:
            is_bound = (best == self.bounds) & (positions > self.bound_positions) | (best < self.bounds)
            positions = positions.masked_fill(is_bound, -1)
        return best.maximum(self.bounds), positions


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """Documents of one length with all their tokens; gives what ``Kept`` gives, in fewer steps."""

    table: Tensor
    """``[n * length, d]``"""
    count: int
    length: int

    def blocks(
        self, within: slice, dtype: torch.dtype, elements: int, per_token: int, per_document: int
    ) -> Iterator[Block]:
        """Yield ranges of documents; see ``Kept.blocks``."""
        length = self.length
        step = max(1, elements // max(1, length * per_token, per_document))
        for start in range(within.start, within.stop if length else 0, step):
            stop = min(start + step, within.stop)
            yield Block(slice(start, stop), self.table[start * length : stop * length].to(dtype))

    def score_vacant(self, scores: Tensor, weight_sums: Tensor | None, empty_score: float) -> None:
        """Write ``scores [n, columns]`` of documents without tokens."""
        if not self.length:
            scores.fill_(empty_score)


@dataclass(frozen=True, eq=False)
class Kept:
    """Documents by their kept tokens, one for each pair where the layout lists pairs; ``[n]`` each.

    A masked token contributes a constant under ZERO and FILL and nothing under EXCLUDE. So it is left out, and the best
    similarity of its document is at least ``bounds`` (-inf: no bound), a value that stands at ``bound_positions``.
    """

    table: Tensor
    """``[T, d]``: the tokens of all documents."""
    offsets: Tensor
    """``[documents + 1]``: where each document begins in ``table``, and the end of the last."""
    origins: Tensor
    """Row of ``table`` of the document's token 0."""
    rows: Tensor | None
    """Kept rows of ``table``, document by document; ``None``: all."""
    starts: Tensor
    """Where the document's rows begin in ``rows``."""
    lengths: Tensor
    """How many tokens are kept."""
    factors: Tensor | None = None
    """``[T]``: factors of the tokens under ZERO; ``None``: 1."""
    bounds: Tensor | None = None
    bound_positions: Tensor | None = None
    is_bound_by_mask: Tensor | None = None
    """Whether the bound is a masked token's, which counts even when no token is kept."""

    @classmethod
    def of(cls, table: Tensor, offsets: Tensor) -> Kept:
        """Keep all tokens."""
        return cls(table, offsets, offsets[:-1], None, offsets[:-1], offsets.diff())

    def masked(self, mask: Tensor, rule: MaskRule, problem: Problem, exists: Tensor | None = None) -> Kept:
        """Leave out tokens by ``mask [T]``, among those that exist."""
        dtype, keep = compute_dtype(problem.queries.dtype), mask != 0
        drop = ~keep
        if exists is not None:
            keep, drop = keep & exists.reshape(-1), drop & exists.reshape(-1)
        rows, dropped = keep.nonzero()[:, 0], drop.nonzero()[:, 0]
        factors = None
        if rule.name == "ZERO" and mask.dtype is not torch.bool and not bool((mask[rows] == 1).all()):
            factors = mask.to(dtype)
        if not dropped.numel():
            return replace(self, factors=factors)
        if rule.name == "ZERO" and not self._is_finite(problem, dropped):
            return replace(self, factors=mask.to(dtype))  # 0 * inf is NaN, as in the library's product
        ends = torch.searchsorted(rows, self.offsets)
        kept = replace(self, rows=rows, starts=ends[:-1], lengths=ends.diff(), factors=factors)
        if rule.name == "EXCLUDE":
            return kept
        ends = torch.searchsorted(dropped, self.offsets)
        has_dropped = ends.diff() > 0
        first_dropped = dropped[ends[:-1].clamp(max=dropped.numel() - 1)] - self.origins
        bounds = torch.full(has_dropped.shape, -torch.inf, dtype=dtype, device=mask.device)
        return replace(
            kept,
            bounds=bounds.masked_fill_(has_dropped, rule.fill),
            bound_positions=first_dropped.masked_fill_(~has_dropped, NEVER),
            is_bound_by_mask=has_dropped,
        )

    def _is_finite(self, problem: Problem, dropped: Tensor) -> bool:
        dtype = compute_dtype(problem.queries.dtype)
        total = problem.queries.sum(dtype=dtype)
        if problem.query_weights is not None:
            total = total + problem.query_weights.sum(dtype=dtype)
        for rows in dropped.split(2**14):
            total = total + self.table.index_select(0, rows).sum(dtype=dtype)
        return bool(total.isfinite())

    def selected(self, documents: Tensor) -> Kept:
        """Return one document for each pair."""
        names = ("origins", "starts", "lengths", "bounds", "bound_positions", "is_bound_by_mask")
        fields = {name: getattr(self, name) for name in names}
        return replace(self, **{name: field[documents] for name, field in fields.items() if field is not None})

    def floored(self, floor: Tensor) -> Kept:
        """Raise the bound to 0 where ``floor [n]`` says so: a row of zeros after the last token."""
        bounds, positions = self.bounds, self.bound_positions
        if bounds is None or positions is None:
            dtype = compute_dtype(self.table.dtype)
            bounds = torch.full(floor.shape, -torch.inf, dtype=dtype, device=floor.device)
            positions = torch.full(floor.shape, NEVER, device=floor.device)
        is_raised = floor & (bounds < 0)
        return replace(
            self, bounds=bounds.masked_fill(is_raised, 0), bound_positions=positions.masked_fill(is_raised, NEVER)
        )

    @property
    def count(self) -> int:
        """How many documents, or pairs, there are."""
        return self.lengths.shape[0]

    def blocks(
        self, within: slice, dtype: torch.dtype, elements: int, per_token: int, per_document: int
    ) -> Iterator[Block]:
        """Yield ranges of documents ``within`` the given one, tokens cast to ``dtype``.

        A block has one document, or as many as take at most ``elements``: the larger of ``per_token`` for each token
        and ``per_document`` for each document.
        """
        ends = self.ends
        start = within.start
        while start < within.stop:
            begin = ends[start]
            stop = bisect_right(ends, begin + elements // per_token, start + 1, within.stop + 1) - 1
            stop = max(start + 1, min(stop, start + elements // max(1, per_document)))
            if ends[stop] > begin:
                yield self._block(slice(start, stop), dtype)
            start = stop

    @cached_property
    def ends(self) -> list[int]:
        """How many tokens are kept of the documents before each, and of all."""
        return [0, *self.lengths.cumsum(0).tolist()]

    @cached_property
    def is_in_order(self) -> bool:
        """Whether each document's kept rows follow those of the one before it."""
        return bool((self.starts[1:] == (self.starts + self.lengths)[:-1]).all())

    @cached_property
    def start(self) -> int:
        """Where the first document's rows begin."""
        return int(self.starts[0])

    def _block(self, chosen: slice, dtype: torch.dtype) -> Block:
        first, last = self.ends[chosen.start], self.ends[chosen.stop]
        owners = None
        if chosen.stop - chosen.start > 1:
            owners = torch.repeat_interleave(self.lengths[chosen], output_size=last - first)
        places: slice | Tensor = slice(self.start + first, self.start + last)
        if not self.is_in_order:
            places = torch.arange(first, last, device=self.table.device)
            shift = self.starts[chosen] - self.lengths[chosen].cumsum(0) + self.lengths[chosen] - first
            places += shift if owners is None else shift.index_select(0, owners)
        if self.rows is not None:
            places = self.rows[places]
        tokens = (self.table[places] if isinstance(places, slice) else self.table.index_select(0, places)).to(dtype)
        if self.factors is not None:
            tokens = tokens * self.factors[places, None]
        positions = None
        if owners is not None or self.rows is not None:
            if isinstance(places, slice):
                places = torch.arange(places.start, places.stop, device=self.table.device)
            origins = self.origins[chosen]
            positions = places - (origins if owners is None else origins.index_select(0, owners))
        return Block(
            chosen,
            tokens,
            owners,
            positions,
            None if self.bounds is None else self.bounds[chosen, None],
            None if self.bound_positions is None else self.bound_positions[chosen, None],
        )

    def score_vacant(self, scores: Tensor, weight_sums: Tensor | None, empty_score: float) -> None:
        """Write the rows of ``scores [n, columns]`` of documents without a kept token.

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
            scores[bound] = self.bounds[bound][:, None] * sums


def _nonzero_rows(documents: Tensor) -> Tensor | None:
    """Return which tokens ``[..., L, d]`` are not zero; ``None`` if no document ends in zeros, or there are few."""
    if documents.numel() < SCANNED or bool(documents[..., -1, :].any(-1).all()):
        return None
    return torch.linalg.vector_norm(documents, ord=torch.inf, dim=-1) != 0
