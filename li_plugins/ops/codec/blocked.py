"""The residual codec in blocks of rows, in plain torch on any device: each row is read once and written once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from li_plugins.api import Support
from li_plugins.ops.codec import bits
from li_plugins.ops.codec.problem import BinarizeProblem, CompressProblem, DecompressProblem
from li_plugins.ops.kmeans.blocked import Nearest
from li_plugins.ops.kmeans.problem import accumulation

BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**24}
"""Most elements of rows that are in the making at a time, by device."""

FEW_CUTOFFS = 15
"""Up to which number of cutoffs one comparison with each is quicker than a search among them."""


class Binarize:
    """Memory beyond inputs and outputs: a few blocks."""

    def supports(self, problem: BinarizeProblem) -> Support:
        """Serve everything."""
        return Support(True)

    def forward(self, problem: BinarizeProblem) -> Tensor:
        """Return the bytes."""
        residuals = problem.values.new_empty(problem.scores_shape, dtype=torch.uint8)
        for block in blocks(problem.values.shape[0], problem.values):
            residuals[block] = _binarized(problem.values[block], problem.cutoffs, problem.nbits)
        return residuals


class Compress:
    """Memory beyond inputs and outputs: one tile of similarities and a few blocks of rows."""

    def supports(self, problem: CompressProblem) -> Support:
        """Serve everything."""
        return Support(True)

    def forward(self, problem: CompressProblem) -> tuple[Tensor, Tensor]:
        """Return codes and residuals."""
        embeddings, centroids = problem.embeddings, problem.centroids
        codes = embeddings.new_empty(embeddings.shape[0], dtype=torch.int32)
        residuals = embeddings.new_empty(problem.scores_shape, dtype=torch.uint8)
        nearest = Nearest(centroids, accumulation(embeddings, centroids), by_distance=False)
        for start in range(0, embeddings.shape[0], nearest.rows_at_once):
            block = slice(start, start + nearest.rows_at_once)
            codes[block], _ = nearest(embeddings[block])
            rest = embeddings[block] - centroids.index_select(0, codes[block])
            residuals[block] = _binarized(rest, problem.cutoffs, problem.nbits)
        return codes, residuals


class Decompress:
    """Memory beyond inputs and outputs: a few blocks."""

    def supports(self, problem: DecompressProblem) -> Support:
        """Serve everything."""
        return Support(True)

    def forward(self, problem: DecompressProblem) -> Tensor:
        """Return the embeddings."""
        embeddings = problem.centroids.new_empty(problem.scores_shape)
        rows = Rows(problem.centroids, problem.bucket_weights, problem.nbits, problem.normalized)
        for block in blocks(problem.codes.shape[0], problem.centroids):
            embeddings[block] = rows(problem.codes[block], problem.residuals[block])
        return embeddings


class Rows:
    """Makes embeddings of codes and residual bytes; it keeps what blocks share."""

    def __init__(self, centroids: Tensor, bucket_weights: Tensor, nbits: int, normalized: bool) -> None:
        self._centroids, self._normalized = centroids, normalized
        self._weights_of_bytes = bucket_weights[bits.buckets_of_bytes(nbits, bucket_weights.device)]

    def __call__(self, codes: Tensor, residuals: Tensor) -> Tensor:
        """Return the embeddings ``[n, d]`` of codes ``[n]`` and residuals ``[n, bytes]``."""
        rows = self._centroids.index_select(0, codes)
        rows += bits.unpack(residuals, self._weights_of_bytes)
        return normalize(rows, p=2, dim=-1) if self._normalized else rows


BINARIZE, COMPRESS, DECOMPRESS = Binarize(), Compress(), Decompress()


def blocks(count: int, rows: Tensor) -> Iterator[slice]:
    """Yield runs of ``count`` rows as wide as ``rows [..., d]``, each of at most ``BLOCK_ELEMENTS`` elements."""
    step = max(1, BLOCK_ELEMENTS.get(rows.device.type, BLOCK_ELEMENTS["cpu"]) // max(1, rows.shape[-1]))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _binarized(values: Tensor, cutoffs: Tensor, nbits: int) -> Tensor:
    return bits.pack(_buckets(values.float(), cutoffs), nbits)


def _buckets(values: Tensor, cutoffs: Tensor) -> Tensor:
    """Return how many cutoffs are less than each value, all of them for NaN; ``[n, d]`` int32 or uint8."""
    if len(cutoffs) > FEW_CUTOFFS:
        return torch.bucketize(values.contiguous(), cutoffs, out_int32=True)
    buckets = torch.full_like(values, len(cutoffs), dtype=torch.uint8)
    for cutoff in cutoffs.unbind():
        buckets -= (values <= cutoff).view(torch.uint8)
    return buckets
