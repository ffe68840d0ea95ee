"""The problems of scoring stored documents after validation; tensors share one device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from li_plugins.ops.described import Described
from li_plugins.ops.kmeans.problem import accumulation


@dataclass(frozen=True, slots=True, eq=False)
class StoredProblem(Described):
    """Documents as runs of stored tokens, and which query meets which.

    ``codes [T]`` (int32 or int64) belong to all documents, one after the other; document ``b`` has those from
    ``document_offsets[b]`` to ``document_offsets[b + 1]`` (``[B + 1]`` int64; codes may go on behind the last).
    ``pair_queries`` and ``pair_documents`` (``[P]`` int64) list the pairs to score; without them every query meets
    every document. The maximum of each query token is at least ``least``, which is also what it is for a document of
    length 0.
    """

    codes: Tensor
    document_offsets: Tensor
    pair_queries: Tensor | None
    pair_documents: Tensor | None
    least: float

    @property
    def query_count(self) -> int:
        """``A``, how many queries there are."""
        return self.queries.shape[0]

    @property
    def scores_shape(self) -> tuple[int, ...]:
        """Shape of the scores, ``[A, B]`` or ``[P]``."""
        if self.pair_queries is not None:
            return (self.pair_queries.shape[0],)
        return self.query_count, self.document_offsets.shape[0] - 1


@dataclass(frozen=True, slots=True, eq=False)
class ResidualProblem(StoredProblem):
    """Score ``token_queries [A, Lq, d]`` by MaxSim against the embeddings that codes and residuals stand for.

    ``residuals [T, d * nbits / 8]`` uint8, ``centroids [K, d]`` and ``bucket_weights [2**nbits]`` make embeddings as
    ``DecompressProblem`` says. Similarities and sums are float32 (float64 where queries or centroids are), the scores
    are rounded once to ``out_dtype``.
    """

    token_queries: Tensor
    residuals: Tensor
    centroids: Tensor
    bucket_weights: Tensor
    nbits: int
    normalized: bool
    out_dtype: torch.dtype

    @property
    def queries(self) -> Tensor:
        """The queries' token embeddings."""
        return self.token_queries

    @property
    def documents(self) -> Tensor:
        """The centroids, whose dtype the embeddings have."""
        return self.centroids

    @property
    def max_query_length(self) -> int:
        """``Lq``."""
        return self.token_queries.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class CodeProblem(StoredProblem):
    """Score documents by their codes alone: ``centroid_scores [A, K, Lq]`` stand for the similarities.

    ``score = sum_i max_j centroid_scores[a, codes[j], i]`` over the codes that ``kept [A, K]`` (bool) lets through. The
    maxima are added in the order of the query tokens, in the dtype of accumulation, which is that of the scores.
    """

    centroid_scores: Tensor
    kept: Tensor | None

    @property
    def queries(self) -> Tensor:
        """The scores of the centroids."""
        return self.centroid_scores

    @property
    def documents(self) -> Tensor:
        """The codes."""
        return self.codes

    @property
    def out_dtype(self) -> torch.dtype:
        """Dtype of the scores."""
        return accumulation(self.centroid_scores)

    @property
    def max_query_length(self) -> int:
        """``Lq``."""
        return self.centroid_scores.shape[2]
