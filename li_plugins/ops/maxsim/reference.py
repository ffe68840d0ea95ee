"""MaxSim as one reads it: the whole grid of similarities in plain torch, the oracle of every other kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from li_plugins.api import Support
from li_plugins.ops.maxsim.problem import Layout, Problem


class Reference:
    """Slow and obvious; its memory is a few times the grid, ``scores * Lq * Ld`` elements."""

    def supports(self, problem: Problem) -> Support:
        """Serve everything."""
        return Support(True)

    def forward(self, problem: Problem, want_winners: bool) -> tuple[Tensor, Tensor | None]:
        """Return the scores and, if wanted, the winning document token of every query token."""
        grid = _Grid.of(problem)
        rule = problem.rule
        similarities = grid.queries @ grid.documents.mT
        if rule.name == "ZERO":
            similarities = similarities * grid.query_weights[..., :, None] * grid.document_mask[..., None, :]
        elif rule.name in ("EXCLUDE", "FILL"):
            lost = -torch.inf if rule.name == "EXCLUDE" else rule.fill
            similarities = similarities.masked_fill((grid.document_mask == 0)[..., None, :], lost)
        similarities = similarities.masked_fill(~grid.document_exists[..., None, :], -torch.inf)

        best, winners = first_maximum(similarities)
        is_gradient = (grid.document_exists & (grid.document_mask != 0))[..., None, :].expand_as(similarities)
        winners = winners.where(_at(is_gradient, winners), -1)
        if grid.floor is not None:
            floored = grid.floor[..., None] & (best < 0)
            best, winners = best.masked_fill(floored, 0), winners.masked_fill(floored, -1)
        if rule.name != "ZERO":
            best = best * grid.query_weights
        scores = best.masked_fill(~grid.query_exists, 0).sum(-1)

        candidates = (
            grid.document_exists & (grid.document_mask != 0) if rule.name == "EXCLUDE" else grid.document_exists
        )
        empty = (~candidates.any(-1)).expand_as(scores)
        scores = scores.masked_fill(empty, rule.empty_score).reshape(problem.scores_shape).to(problem.out_dtype)
        if not want_winners:
            return scores, None
        winners = winners.masked_fill(empty[..., None] | ~grid.query_exists, -1)
        return scores, problem.as_winners(winners)

    def backward(
        self, problem: Problem, grad_scores: Tensor, winners: Tensor, need_queries: bool, need_documents: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of queries and documents: each score's goes to its winning similarities alone."""
        grid = _Grid.of(problem)
        shape = grid.shape
        winners = problem.by_score(winners).reshape(shape[:-1]).long().masked_fill(~grid.query_exists, -1)
        grad_best = grad_scores.reshape(shape[:2]).to(grid.queries.dtype)[..., None] * grid.query_weights
        grad_similarities = grid.queries.new_zeros(shape)
        if shape[-1]:
            grad_best = grad_best.expand(shape[:-1]).masked_fill(winners < 0, 0)
            grad_similarities.scatter_(-1, winners.clamp(min=0)[..., None], grad_best[..., None])
        if problem.rule.name == "ZERO":
            grad_similarities *= grid.document_mask[..., None, :]
        grad_queries = grad_documents = None
        if need_queries:
            grad_queries = (grad_similarities @ grid.documents).sum_to_size(grid.queries.shape)
            grad_queries = _collected(grad_queries, problem.queries, problem.query_offsets, problem.pair_queries)
        if need_documents:
            grad_documents = (grad_similarities.mT @ grid.queries).sum_to_size(grid.documents.shape)
            grad_documents = _collected(
                grad_documents, problem.documents, problem.document_offsets, problem.pair_documents
            )
        return grad_queries, grad_documents


KERNEL = Reference()


@dataclass(frozen=True, slots=True)
class _Grid:
    """Every layout as ``queries [A, 1, Lq, d]`` against ``documents [A or 1, K, Ld, d]``: padded, in the compute dtype.

    The factors are 1 where the problem has none. ``*_exists`` is false for padding and for tokens past a length.
    """

    queries: Tensor
    documents: Tensor
    query_weights: Tensor
    query_exists: Tensor
    document_mask: Tensor
    document_exists: Tensor
    floor: Tensor | None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.queries.shape[0], self.documents.shape[1], self.queries.shape[2], self.documents.shape[2]

    @classmethod
    def of(cls, problem: Problem) -> _Grid:
        dtype = torch.float64 if problem.queries.dtype is torch.float64 else torch.float32
        queries, documents = problem.queries.to(dtype), problem.documents.to(dtype)
        weights, mask = problem.query_weights, problem.document_mask
        weights = queries.new_ones(queries.shape[:-1]) if weights is None else weights.to(dtype)
        mask = documents.new_ones(documents.shape[:-1]) if mask is None else mask.to(dtype)
        query_exists, document_exists = torch.ones_like(weights).bool(), torch.ones_like(mask).bool()
        if problem.document_lengths is not None:
            document_exists = torch.arange(mask.shape[-1], device=mask.device) < problem.document_lengths[..., None]
        if problem.query_offsets is not None and problem.document_offsets is not None:
            queries, weights, query_exists = (
                _spread(tokens, problem.query_offsets, problem.max_query_length, problem.pair_queries)
                for tokens in (queries, weights, query_exists)
            )
            documents, mask, document_exists = (
                _spread(tokens, problem.document_offsets, problem.max_document_length, problem.pair_documents)
                for tokens in (documents, mask, document_exists)
            )
        # CROSS layouts broadcast one row of documents over all queries; pairs are rows of one candidate
        axis = {Layout.CROSS: 0, Layout.PACKED_CROSS: 0, Layout.PACKED_PAIRS: 1}.get(problem.layout)
        if axis is not None:
            documents, mask, document_exists = (t.unsqueeze(axis) for t in (documents, mask, document_exists))
        floor = problem.floor if problem.floor is None or axis is None else problem.floor.unsqueeze(axis)
        return cls(queries[:, None], documents, weights[:, None], query_exists[:, None], mask, document_exists, floor)


def first_maximum(grid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum over the last dimension and its first index; over nothing: 0 and -1."""
    if grid.shape[-1] == 0:
        return grid.new_zeros(grid.shape[:-1]), torch.full(grid.shape[:-1], -1, device=grid.device)
    best = grid.amax(-1)  # NaN wins, as in torch.max
    is_best = (grid == best[..., None]) | grid.isnan()
    return best, is_best.to(torch.uint8).argmax(-1)


def _at(flags: Tensor, winners: Tensor) -> Tensor:
    if flags.shape[-1] == 0:
        return torch.zeros_like(winners, dtype=torch.bool)
    return flags.gather(-1, winners[..., None])[..., 0]


def _slots(offsets: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Return the item of each packed token and its index inside of the item."""
    items = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    items = items.repeat_interleave(offsets.diff(), output_size=tokens)
    return items, torch.arange(tokens, device=offsets.device) - offsets[items]


def _spread(tokens: Tensor, offsets: Tensor, max_length: int, selected: Tensor | None) -> Tensor:
    """Return packed tokens as padded items ``[items or pairs, max_length, ...]``."""
    padded = tokens.new_zeros(offsets.shape[0] - 1, max_length, *tokens.shape[1:])
    padded[_slots(offsets, tokens.shape[0])] = tokens
    return padded if selected is None else padded[selected]


def _collected(grad: Tensor, like: Tensor, offsets: Tensor | None, selected: Tensor | None) -> Tensor:
    """Undo ``_spread`` for a gradient: sum over pairs, then drop the padding."""
    if offsets is None:
        return grad.reshape(like.shape).to(like.dtype)
    grad = grad.flatten(0, 1)
    if selected is not None:
        grad = grad.new_zeros(offsets.shape[0] - 1, *grad.shape[1:]).index_add_(0, selected, grad)
    return grad[_slots(offsets, like.shape[0])].to(like.dtype)
