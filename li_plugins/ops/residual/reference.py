"""Scores of stored documents as one reads them, pair by pair, the oracle of every other kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from li_plugins.api import Support
from li_plugins.ops.codec.problem import DecompressProblem
from li_plugins.ops.codec.reference import DECOMPRESS
from li_plugins.ops.kmeans.problem import accumulation
from li_plugins.ops.residual.problem import CodeProblem, ResidualProblem, StoredProblem


class Residual:
    """Every document is decompressed for every query."""

    def supports(self, problem: ResidualProblem) -> Support:
        """Serve everything."""
        return Support(True)

    def forward(self, problem: ResidualProblem) -> Tensor:
        """Return the scores."""
        dtype = accumulation(problem.token_queries, problem.centroids)

        def score(query: int, tokens: slice) -> Tensor:
            stored = problem.codes[tokens], problem.residuals[tokens], problem.centroids, problem.bucket_weights
            document = DECOMPRESS.forward(DecompressProblem(*stored, problem.nbits, problem.normalized))
            similarities = problem.token_queries[query].to(dtype) @ document.to(dtype).T
            return _greatest(similarities, problem.least).sum()

        return _scores(problem, score).to(problem.out_dtype)


class Code:
    """One document after the other."""

    def supports(self, problem: CodeProblem) -> Support:
        """Serve everything."""
        return Support(True)

    def forward(self, problem: CodeProblem) -> Tensor:
        """Return the scores."""

        def score(query: int, tokens: slice) -> Tensor:
            codes = problem.codes[tokens].long()
            if problem.kept is not None:
                codes = codes[problem.kept[query, codes]]
            similarities = problem.centroid_scores[query, codes].T.to(problem.out_dtype)
            total = similarities.new_zeros(())
            for best in _greatest(similarities, problem.least):
                total = total + best
            return total

        return _scores(problem, score).to(problem.out_dtype)


def _greatest(similarities: Tensor, least: float) -> Tensor:
    """Return the greatest of each row of ``[Lq, Ld]`` and ``least``, ``[Lq]``."""
    return torch.cat([similarities, similarities.new_full((similarities.shape[0], 1), least)], 1).amax(1)


def _scores(problem: StoredProblem, score: Callable[[int, slice], Tensor]) -> Tensor:
    offsets = problem.document_offsets.tolist()
    if problem.pair_queries is None or problem.pair_documents is None:
        pairs = [(query, document) for query in range(problem.query_count) for document in range(len(offsets) - 1)]
    else:
        pairs = list(zip(problem.pair_queries.tolist(), problem.pair_documents.tolist(), strict=True))
    found = [score(query, slice(offsets[document], offsets[document + 1])) for query, document in pairs]
    scores = torch.stack(found) if found else problem.queries.new_zeros(0)
    return scores.view(problem.scores_shape)


RESIDUAL, CODE = Residual(), Code()
