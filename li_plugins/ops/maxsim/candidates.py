"""Padded candidates of many queries: one batched product for several queries, masks applied to the similarities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from li_plugins.ops.maxsim.kept import Block, compute_dtype
from li_plugins.ops.maxsim.problem import Layout, Problem

PRODUCTS = 2**22
"""Most multiplications of one query with its candidates. Where there are more, leaving out the masked ones (``kept``)
saves more than one product for several queries does."""


def queries_together(problem: Problem, elements: int) -> int:
    """Return how many queries share a product of at most ``elements`` similarities or embedding elements, 0 for none.

    One query alone is nothing to share.
    """
    if problem.layout is not Layout.CANDIDATES:
        return 0
    _, query_length, width = problem.queries.shape
    tokens = problem.documents.shape[1] * problem.documents.shape[2]
    if not 0 < tokens * query_length * width <= PRODUCTS:
        return 0
    together = min(problem.queries.shape[0], elements // (tokens * max(query_length, width)))
    return together if together > 1 else 0


def scores_and_winners(problem: Problem, want_winners: bool, together: int) -> tuple[Tensor, Tensor | None]:
    """Return the scores ``[A, K]`` in ``out_dtype`` and, if wanted, the winners ``[A, K, Lq]``."""
    queries, dtype = problem.queries, compute_dtype(problem.queries.dtype)
    _, candidates, length, _ = problem.documents.shape
    scores = queries.new_empty(problem.scores_shape, dtype=dtype)
    winners = queries.new_empty(problem.winners_shape, dtype=problem.winners_dtype) if want_winners else None
    tile = queries.new_empty(together, candidates * length, queries.shape[1], dtype=dtype)
    all_masks = Masks.of(problem)
    for start in range(0, queries.shape[0], together):
        part = slice(start, min(start + together, queries.shape[0]))
        rows, weights = queries[part].to(dtype), None
        if problem.query_weights is not None:
            weights = problem.query_weights[part, None].to(dtype)
            if problem.rule.name == "ZERO":
                rows, weights = rows * weights[:, 0, :, None], None
        tokens = problem.documents[part].to(dtype).flatten(1, 2)
        similarities = torch.bmm(tokens, rows.mT, out=tile[: len(rows)])
        masks = all_masks[part]
        masks.apply(similarities.view(-1, candidates, length, rows.shape[1]))
        block = Block(slice(0, len(rows) * candidates), tokens.flatten(0, 1))
        values = similarities.flatten(0, 1)
        best = block.greatest(values)
        if winners is not None:
            found = block.first_positions(values, best).view(-1, candidates, rows.shape[1])
            winners[part] = masks.passing(found).to(winners.dtype)
        best = best.view(-1, candidates, rows.shape[1])
        scores[part] = (best if weights is None else best * weights).sum(-1)
    return all_masks.empty_filled(scores, problem.rule.empty_score).to(problem.out_dtype), winners


@dataclass(frozen=True, slots=True, eq=False)
class Masks:
    """What mask and lengths do to similarities, ``[A, K, Ld]`` or ``[B, Ld]`` each; ``None``: nothing."""

    factors: Tensor | None = None
    """Under ZERO."""
    is_filled: Tensor | None = None
    """Under FILL: which similarities are replaced by ``fill``."""
    fill: float = 0.0
    is_absent: Tensor | None = None
    """Which tokens are no candidates."""
    mask: Tensor | None = None
    """A token gets no gradient when it wins with 0 here."""

    @classmethod
    def of(cls, problem: Problem) -> Masks:
        """Read a dense problem."""
        mask, rule, lengths = problem.document_mask, problem.rule, problem.document_lengths
        if mask is None and lengths is None:
            return cls()
        is_absent = factors = is_filled = None
        if lengths is not None:
            positions = torch.arange(problem.max_document_length, device=lengths.device)
            is_absent = positions >= lengths[..., None]
        if mask is not None and rule.name == "ZERO":
            factors = mask.to(compute_dtype(problem.queries.dtype))
        elif mask is not None and rule.name == "FILL":
            is_filled = mask == 0
        elif mask is not None:
            is_absent = mask == 0 if is_absent is None else (mask == 0) | is_absent
        return cls(factors, is_filled, rule.fill, is_absent, mask)

    def __getitem__(self, part: slice) -> Masks:
        """Return those of some queries."""
        given = (self.factors, self.is_filled, self.is_absent, self.mask)
        factors, is_filled, is_absent, mask = (None if tensor is None else tensor[part] for tensor in given)
        return Masks(factors, is_filled, self.fill, is_absent, mask)

    def apply(self, similarities: Tensor) -> None:
        """Change ``similarities [..., Ld, Lq]`` in place."""
        if self.factors is not None:
            similarities.mul_(self.factors.unsqueeze(-1))
        if self.is_filled is not None:
            similarities.masked_fill_(self.is_filled.unsqueeze(-1), self.fill)
        if self.is_absent is not None:
            similarities.masked_fill_(self.is_absent.unsqueeze(-1), -torch.inf)

    def passing(self, positions: Tensor) -> Tensor:
        """Return ``positions [..., Lq]`` of best tokens, -1 where that token gets no gradient."""
        is_idle = None if self.mask is None else self.mask == 0
        if self.is_absent is not None:
            is_idle = self.is_absent if is_idle is None else is_idle | self.is_absent
        return positions if is_idle is None else positions.masked_fill(is_idle.gather(-1, positions), -1)

    def empty_filled(self, scores: Tensor, empty_score: float) -> Tensor:
        """Return ``scores [A, K]`` or ``[A, B]`` with those of documents that have no candidate replaced."""
        return scores if self.is_absent is None else scores.masked_fill_(self.is_absent.all(-1), empty_score)
