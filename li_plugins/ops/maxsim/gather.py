"""Gradients of MaxSim from its winners: each token's is a sum of the tokens that it met in a best similarity."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from li_plugins.ops.maxsim.kept import compute_dtype
from li_plugins.ops.maxsim.problem import Layout, Problem

ENTRIES = 2**18
"""Winners in memory at a time, or those of one query or document where these are more."""

ADDED = 2**19
"""Most numbers that the CPU copies and adds row by row, in place of sorting the rows and reading each where it lies."""


def gradients(
    problem: Problem, grad_scores: Tensor, winners: Tensor, need_queries: bool, need_documents: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients that are needed, in the shape and dtype of the inputs; the order of all sums is fixed."""
    grid = _Grid.of(problem, grad_scores, winners)
    queries, documents = problem.queries, problem.documents
    return (
        _gradient(queries, documents, grid.parts_by_query(problem)) if need_queries else None,
        _gradient(documents, queries, grid.parts_by_document(problem)) if need_documents else None,
    )


class _Part(NamedTuple):
    """All that the rows from ``first`` to ``last`` of one side met: row ``targets[e]`` met row ``sources[e]``."""

    first: int
    last: int
    targets: Tensor
    sources: Tensor
    factors: Tensor
    """What ``sources[e]`` is multiplied with."""


def _gradient(targets: Tensor, sources: Tensor, parts: Iterable[_Part]) -> Tensor:
    """Return the gradient of ``targets``, ``[..., d]``; parts do not overlap."""
    rows, width = targets.shape[:-1].numel(), targets.shape[-1]
    table = sources.flatten(0, -2).to(compute_dtype(targets.dtype))
    grad = None
    for part in parts:
        sums = _sums(part, table)
        if len(sums) == rows and sums.dtype is targets.dtype:
            return sums.view(targets.shape)
        grad = targets.new_zeros(rows, width) if grad is None else grad
        grad[part.first : part.last] = sums
    return targets.new_zeros(targets.shape) if grad is None else grad.view(targets.shape)


def _sums(part: _Part, table: Tensor) -> Tensor:
    """Return ``[last - first, d]``: for each target the sum of its sources times their factors, in order."""
    count = part.last - part.first
    if not part.targets.numel() or not table.shape[1]:
        return table.new_zeros(count, table.shape[1])
    targets, sources, factors = part.targets - part.first, part.sources, part.factors
    if table.device.type == "cpu" and sources.numel() * table.shape[1] <= ADDED:
        rows = table.index_select(0, sources).mul_(factors[:, None])
        return table.new_zeros(count, table.shape[1]).index_add_(0, targets, rows)
    if bool((targets[1:] < targets[:-1]).any()):
        targets, order = targets.to(torch.int32 if count < 2**31 else torch.int64).sort(stable=True)
        sources, factors = sources[order], factors[order]
    bags = torch.searchsorted(targets, torch.arange(count, dtype=targets.dtype, device=targets.device))
    return embedding_bag(sources, table, bags, mode="sum", per_sample_weights=factors)


@dataclass(frozen=True, slots=True, eq=False)
class _Grid:
    """Scores as ``[U, V]``: gradients, winners ``[U, V, L]``, and the rows where each one's query and document lie."""

    winners: Tensor
    grads: Tensor
    query_starts: Tensor
    query_ends: Tensor
    document_starts: Tensor
    document_ends: Tensor

    @classmethod
    def of(cls, problem: Problem, grad_scores: Tensor, winners: Tensor) -> _Grid:
        shape = tuple(grad_scores.shape)
        if problem.query_offsets is not None and problem.document_offsets is not None:
            queries, documents = problem.query_offsets, problem.document_offsets
        else:
            count = problem.documents.shape[:-2].numel()
            queries = torch.arange(problem.queries.shape[0] + 1, device=winners.device) * problem.max_query_length
            documents = torch.arange(count + 1, device=winners.device) * problem.max_document_length
        edges = [queries[:-1, None], queries[1:, None], documents[None, :-1], documents[None, 1:]]
        if problem.layout is Layout.CANDIDATES:
            edges[2:] = [edge.view(shape) for edge in edges[2:]]
        elif problem.pair_queries is not None and problem.pair_documents is not None:
            shape = (*shape, 1)
            edges[:2] = [edge[problem.pair_queries] for edge in edges[:2]]
            edges[2:] = [edge.T[problem.pair_documents] for edge in edges[2:]]
        grads = grad_scores.to(compute_dtype(problem.queries.dtype)).reshape(shape)
        winners = problem.by_score(winners).reshape(*shape, problem.max_query_length)
        return cls(winners, grads, *(edge.expand(shape) for edge in edges))

    def __getitem__(self, chosen: slice | Tensor) -> _Grid:
        return _Grid(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def transposed(self) -> _Grid:
        """Return the grid with ``U`` and ``V`` exchanged."""
        return _Grid(*(getattr(self, field.name).transpose(0, 1) for field in fields(self)))

    def parts_by_query(self, problem: Problem) -> Iterator[_Part]:
        """Yield parts whose targets are query rows."""
        is_listed = problem.layout is Layout.PACKED_PAIRS
        grid = self[self.query_starts[:, 0].argsort(stable=True)] if is_listed else self
        for first, last, piece in grid.split(grid.query_starts, grid.query_ends):
            query_rows, document_rows, factors = piece.entries(problem, is_by_token=not is_listed)
            yield _Part(first, last, query_rows, document_rows, factors)

    def parts_by_document(self, problem: Problem) -> Iterator[_Part]:
        """Yield parts whose targets are document rows."""
        grid = self
        if problem.layout is Layout.PACKED_PAIRS:
            grid = self[self.document_starts[:, 0].argsort(stable=True)]
        elif problem.layout is not Layout.CANDIDATES:
            grid = self.transposed()
        for first, last, piece in grid.split(grid.document_starts, grid.document_ends):
            query_rows, document_rows, factors = piece.entries(problem, is_by_token=False)
            yield _Part(first, last, document_rows, query_rows, factors)

    def split(self, starts: Tensor, ends: Tensor) -> Iterator[tuple[int, int, _Grid]]:
        """Yield pieces along the first dimension, each with its own rows from a first to a last.

        The rows lie between ``starts [U, V]``, which rise along the first dimension, and ``ends``.
        """
        if not self.winners.numel():
            return
        firsts = starts[:, 0].tolist()
        step = max(1, ENTRIES // self.winners[0].numel())
        start = 0
        while start < len(firsts):
            stop = bisect_right(firsts, firsts[min(start + step, len(firsts)) - 1])
            chosen = slice(start, stop)
            yield firsts[start], int(ends[chosen, -1].amax()), self[chosen]
            start = stop

    def entries(self, problem: Problem, *, is_by_token: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return query rows, document rows and factors of the winners that pass a gradient.

        They come in the order ``[U, V, L]``, or ``[U, L, V]``, in which the rows of a query rise.
        """
        query_rows = self.query_starts[..., None] + torch.arange(self.winners.shape[-1], device=self.winners.device)
        document_rows = self.document_starts[..., None] + self.winners
        passes = self.winners >= 0
        if problem.query_offsets is not None:
            passes &= query_rows < self.query_ends[..., None]
        grads = self.grads[..., None].expand(passes.shape)
        columns = [query_rows, document_rows, grads, passes]
        if is_by_token:
            columns = [column.transpose(1, 2) for column in columns]
        *columns, passes = (column.reshape(-1) for column in columns)
        if not bool(passes.all()):
            columns = [column[passes] for column in columns]
        query_rows, document_rows, factors = columns
        if problem.query_weights is not None:
            factors = factors * problem.query_weights.reshape(-1)[query_rows]
        if problem.document_mask is not None and problem.rule.name == "ZERO":
            factors = factors * problem.document_mask.reshape(-1)[document_rows]
        return query_rows, document_rows, factors
