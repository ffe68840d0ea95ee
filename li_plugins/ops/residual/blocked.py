"""Scores of stored documents in blocks of bounded size, in plain torch on any device.

Only the tokens that are asked for are gathered, decoded and multiplied, each once for all queries that meet it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from li_plugins.api import Support
from li_plugins.ops.codec.blocked import Rows
from li_plugins.ops.kmeans.problem import accumulation
from li_plugins.ops.residual.launches import launches
from li_plugins.ops.residual.problem import CodeProblem, ResidualProblem, StoredProblem
from li_plugins.ops.spans import grouped

BLOCK_ELEMENTS = {"cpu": 2**19, "cuda": 2**26}
"""Most elements of decoded rows, and most similarities, that are in memory at a time, by device.

On the CPU 2 MiB: what is decoded is still in the cache when it is multiplied, and blocks are few enough.
"""

Stored = TypeVar("Stored", bound=StoredProblem)


class Residual:
    """Memory beyond inputs and outputs: a few blocks."""

    def supports(self, problem: ResidualProblem) -> Support:
        """Serve everything."""
        return Support(True)

    def forward(self, problem: ResidualProblem) -> Tensor:
        """Return the scores."""
        order = grouped(problem.pair_queries)
        if order is not None:
            return self.forward(_reordered(problem, order))[order.argsort()]
        dtype = accumulation(problem.token_queries, problem.centroids)
        scores = problem.token_queries.new_empty(problem.scores_shape, dtype=problem.out_dtype)
        rows = Rows(problem.centroids, problem.bucket_weights, problem.nbits, problem.normalized)
        _, length, width = problem.token_queries.shape
        together = length if problem.pair_queries is not None else problem.query_count * length
        for launch in launches(problem, _limit(problem, max(together, width))):
            queries = problem.token_queries[launch.queries].to(dtype)
            codes = problem.codes.index_select(0, launch.tokens)
            document = rows(codes, problem.residuals.index_select(0, launch.tokens)).to(dtype)
            best = _greatest(document @ queries.flatten(0, 1).T, launch.owners, launch.size, problem.least)
            sums = best.view(launch.size, queries.shape[0], length).sum(-1)
            scores[launch.where] = sums.T.reshape(scores[launch.where].shape).to(scores.dtype)
        return scores


class Code:
    """Memory beyond inputs and outputs: a few blocks."""

    def supports(self, problem: CodeProblem) -> Support:
        """Serve everything."""
        return Support(True)

    def forward(self, problem: CodeProblem) -> Tensor:
        """Return the scores."""
        order = grouped(problem.pair_queries)
        if order is not None:
            return self.forward(_reordered(problem, order))[order.argsort()]
        scores = problem.centroid_scores.new_empty(problem.scores_shape, dtype=problem.out_dtype)
        for launch in launches(problem, _limit(problem, problem.max_query_length)):
            every = problem.codes.index_select(0, launch.tokens)
            block = scores[launch.where].view(-1, launch.size)
            for row, query in enumerate(range(launch.queries.start, launch.queries.stop)):
                codes, owners = every, launch.owners
                if problem.kept is not None:
                    kept = problem.kept[query].index_select(0, codes)
                    codes, owners = codes[kept], owners[kept]
                similarities = problem.centroid_scores[query].index_select(0, codes).to(scores.dtype)
                best = _greatest(similarities, owners, launch.size, problem.least)
                total = torch.zeros_like(block[row])
                for token in best.T:
                    total += token
                block[row] = total
        return scores


RESIDUAL, CODE = Residual(), Code()


def _limit(problem: StoredProblem, elements_per_token: int) -> int:
    """Return how many tokens a block takes."""
    budget = BLOCK_ELEMENTS.get(problem.codes.device.type, BLOCK_ELEMENTS["cpu"])
    return max(1, budget // max(1, elements_per_token))


def _reordered(problem: Stored, order: Tensor) -> Stored:
    """Return the problem with its pairs in another order."""
    assert problem.pair_queries is not None and problem.pair_documents is not None
    return replace(problem, pair_queries=problem.pair_queries[order], pair_documents=problem.pair_documents[order])


def _greatest(values: Tensor, owners: Tensor, count: int, least: float) -> Tensor:
    """Return the greatest of each document's ``values [t, R]`` and ``least``, ``[count, R]``."""
    best = values.new_full((count, values.shape[1]), least)
    return best.scatter_reduce_(0, owners[:, None].expand_as(values), values, "amax")
