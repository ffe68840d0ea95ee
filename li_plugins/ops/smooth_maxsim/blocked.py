"""Smooth MaxSim without the grid: documents in blocks against rows of query tokens, in plain torch on any device.

The backward computes each tile of similarities again; it keeps one sum for each query token and document.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from li_plugins.api import Support
from li_plugins.ops.maxsim.problem import Layout
from li_plugins.ops.smooth_maxsim.problem import SmoothProblem

TILE_ELEMENTS = {"cpu": 2**20, "cuda": 2**25}
"""Most similarities in memory at a time, by device, as long as one query and one document have fewer.

On the CPU they stay in the cache; on a GPU launches have to be few.
"""


class Tile(NamedTuple):
    """Some queries with some documents, as slices of the problem's."""

    queries: slice
    documents: slice
    """Of the candidates of the one query in ``queries``, where each query has its own."""


class Blocked:
    """Memory beyond inputs and outputs: a few tiles."""

    def supports(self, problem: SmoothProblem) -> Support:
        """Serve everything."""
        return Support(True)

    def forward(self, problem: SmoothProblem, want_winners: bool) -> tuple[Tensor, Tensor | None]:
        """Return the scores and, if wanted, the logarithms of the sums over document tokens."""
        scores = problem.queries.new_empty(problem.scores_shape, dtype=problem.out_dtype)
        kept = None
        if want_winners:
            kept = problem.queries.new_empty(problem.winners_shape, dtype=problem.winners_dtype)
        for tile in _tiles(problem):
            _, _, scaled = _similarities(problem, tile)
            sums = scaled.logsumexp(1)  # [documents, queries, Lq]
            scores[tile.queries, tile.documents] = (problem.tau * sums).sum(-1).T.to(problem.out_dtype)
            if kept is not None:
                problem.by_score(kept)[tile.queries, tile.documents] = sums.transpose(0, 1)
        return scores, kept

    def backward(
        self, problem: SmoothProblem, grad_scores: Tensor, winners: Tensor, need_queries: bool, need_documents: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients: each similarity gets its share in the sum."""
        dtype = problem.winners_dtype
        grad_queries = problem.queries.new_zeros(problem.queries.shape, dtype=dtype) if need_queries else None
        grad_documents = problem.documents.new_zeros(problem.documents.shape, dtype=dtype) if need_documents else None
        for tile in _tiles(problem):
            queries, documents, scaled = _similarities(problem, tile)
            sums = problem.by_score(winners)[tile.queries, tile.documents].transpose(0, 1)[:, None]
            weights = grad_scores[tile.queries, tile.documents].to(dtype).T[:, None, :, None]
            shares = scaled.sub_(sums).exp_().mul_(weights).view(documents.shape[0], queries.shape[0])
            if grad_queries is not None:
                part = grad_queries[tile.queries]
                part += (shares.T @ documents).view(part.shape)
            if grad_documents is not None:
                part = _documents(grad_documents, problem, tile)
                part += (shares @ queries).view(part.shape)
        return (
            None if grad_queries is None else grad_queries.to(problem.queries.dtype),
            None if grad_documents is None else grad_documents.to(problem.documents.dtype),
        )


KERNEL = Blocked()


def _tiles(problem: SmoothProblem) -> Iterator[Tile]:
    """Yield tiles that cover every score once."""
    (rows, columns), (_, query_length, width) = problem.scores_shape, problem.queries.shape
    document_length = problem.documents.shape[-2]
    budget = TILE_ELEMENTS.get(problem.queries.device.type, 2**20)
    # Tall tiles of documents: as many queries as half of a square tile takes, at least one.
    across = 1
    if problem.layout is not Layout.CANDIDATES:
        across = max(1, min(rows, int(budget**0.5) // max(1, query_length)))
    down = max(1, budget // max(1, document_length * max(across * query_length, width)))
    for start in range(0, rows, across):
        for first in range(0, columns, down):
            yield Tile(slice(start, min(start + across, rows)), slice(first, min(first + down, columns)))


def _documents(tensor: Tensor, problem: SmoothProblem, tile: Tile) -> Tensor:
    return tensor[tile.queries.start, tile.documents] if problem.layout is Layout.CANDIDATES else tensor[tile.documents]


def _similarities(problem: SmoothProblem, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
    """Return the query rows ``[R, d]``, the document rows ``[T, d]`` and their similarities over ``tau``.

    The similarities are ``[documents, Ld, queries, Lq]``.
    """
    queries = problem.queries[tile.queries].to(problem.winners_dtype)
    documents = _documents(problem.documents, problem, tile).to(problem.winners_dtype)
    rows, columns = documents.flatten(0, 1), queries.flatten(0, 1)
    scaled = torch.mm(rows, columns.T).div_(problem.tau)
    return columns, rows, scaled.view(*documents.shape[:2], *queries.shape[:2])
