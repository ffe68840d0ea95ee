"""Gradients of MaxSim from its winners: each token's is a sum of the tokens that it met in a best similarity."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from li_plugins.ops.maxsim.kept import compute_dtype
from li_plugins.ops.maxsim.problem import Layout, Problem

ENTRIES = 2**18
"""Winners in memory at a time, or those of one query or document where these are more."""


def gradients(
    problem: Problem, grad_scores: Tensor, winners: Tensor, need_queries: bool, need_documents: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients that are needed, in the shape and dtype of the inputs; the order of all sums is fixed."""
    dtype = compute_dtype(problem)
    queries, documents = problem.queries.flatten(0, -2), problem.documents.flatten(0, -2)
    grad_queries = queries.new_zeros(queries.shape) if need_queries else None
    grad_documents = documents.new_zeros(documents.shape) if need_documents else None
    met = _Met.of(problem, grad_scores.to(dtype), winners) if winners.numel() else None
    if grad_queries is not None and met is not None:
        table = documents.to(dtype)
        for first, last, part in met.by_query(problem):
            query_rows, document_rows, factors = part.entries(problem)
            grad_queries[first:last] = _sums(query_rows - first, last - first, table, document_rows, factors)
    if grad_documents is not None and met is not None:
        table = queries.to(dtype)
        for first, last, part in met.by_document(problem):
            query_rows, document_rows, factors = part.entries(problem)
            grad_documents[first:last] = _sums(document_rows - first, last - first, table, query_rows, factors)
    return (
        None if grad_queries is None else grad_queries.view(problem.queries.shape),
        None if grad_documents is None else grad_documents.view(problem.documents.shape),
    )


def _sums(targets: Tensor, count: int, table: Tensor, sources: Tensor, factors: Tensor) -> Tensor:
    """Return ``[count, d]`` whose row ``t`` is the sum of ``factors * table[sources]`` where ``targets`` is ``t``."""
    if not targets.numel() or not table.shape[1]:
        return table.new_zeros(count, table.shape[1])
    targets, order = targets.to(torch.int32 if count < 2**31 else torch.int64).sort(stable=True)
    bags = torch.searchsorted(targets, torch.arange(count, dtype=targets.dtype, device=targets.device))
    return embedding_bag(sources[order], table, bags, mode="sum", per_sample_weights=factors[order])


@dataclass(frozen=True, slots=True, eq=False)
class _Met:
    """Scores as a grid ``[U, V]``: gradients, winners ``[U, V, L]``, and where each one's query and document lie."""

    winners: Tensor
    grads: Tensor
    query_starts: Tensor
    query_ends: Tensor
    document_starts: Tensor
    document_ends: Tensor

    @classmethod
    def of(cls, problem: Problem, grad_scores: Tensor, winners: Tensor) -> _Met:
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
        edges = [edge.expand(shape) for edge in edges]
        return cls(winners.reshape(*shape, problem.max_query_length), grad_scores.reshape(shape), *edges)

    def _map(self, change: Callable[[Tensor], Tensor]) -> _Met:
        return _Met(*(change(getattr(self, field.name)) for field in fields(self)))

    def by_query(self, problem: Problem) -> Iterator[tuple[int, int, _Met]]:
        """Yield parts that hold everything that the query rows from ``first`` to ``last`` met."""
        met = self
        if problem.layout is Layout.PACKED_PAIRS:
            order = met.query_starts[:, 0].argsort(stable=True)
            met = met._map(lambda field: field[order])
        return met._parts(met.query_starts[:, 0], met.query_ends[:, -1])

    def by_document(self, problem: Problem) -> Iterator[tuple[int, int, _Met]]:
        """Yield parts that hold everything that the document rows from ``first`` to ``last`` met."""
        met = self
        if problem.layout is Layout.PACKED_PAIRS:
            order = met.document_starts[:, 0].argsort(stable=True)
            met = met._map(lambda field: field[order])
        elif problem.layout is not Layout.CANDIDATES:
            met = met._map(lambda field: field.transpose(0, 1))
        return met._parts(met.document_starts[:, 0], met.document_ends[:, -1])

    def _parts(self, starts: Tensor, ends: Tensor) -> Iterator[tuple[int, int, _Met]]:
        """Yield parts along the first dimension, whose rows begin at the rising ``starts``."""
        begins = starts.tolist()
        step = max(1, ENTRIES // max(1, self.winners[:1].numel()))
        start = 0
        while start < len(begins):
            stop = bisect_right(begins, begins[min(start + step, len(begins)) - 1])
            chosen = slice(start, stop)
            yield begins[start], int(ends[chosen].amax()), self._map(lambda field, chosen=chosen: field[chosen])
            start = stop

    def entries(self, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
        """Return query rows, document rows and factors of the winners that pass a gradient, one entry for each."""
        shape = self.winners.shape
        query_rows = self.query_starts[..., None] + torch.arange(shape[-1], device=self.winners.device)
        document_rows = self.document_starts[..., None] + self.winners
        grads = self.grads[..., None].expand(shape)
        passes = self.winners >= 0
        if problem.query_offsets is not None:
            passes &= query_rows < self.query_ends[..., None]
        if bool(passes.all()):
            rows = query_rows.reshape(-1), document_rows.reshape(-1)
            factors = grads.reshape(-1)
        else:
            rows = query_rows[passes], document_rows[passes]
            factors = grads[passes]
        if problem.query_weights is not None:
            factors = factors * problem.query_weights.reshape(-1)[rows[0]]
        if problem.document_mask is not None and problem.rule.name == "ZERO":
            factors = factors * problem.document_mask.reshape(-1)[rows[1]]
        return *rows, factors
