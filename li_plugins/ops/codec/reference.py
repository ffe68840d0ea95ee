"""The residual codec as colbert-ai writes it, bit by bit, the oracle of every other kernel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from li_plugins.api import Support
from li_plugins.ops.codec.problem import BinarizeProblem, CompressProblem, DecompressProblem
from li_plugins.ops.kmeans.problem import AssignProblem
from li_plugins.ops.kmeans.reference import ASSIGN


class Binarize:
    """One byte for every bit on the way."""

    def supports(self, problem: BinarizeProblem) -> Support:
        """Serve everything."""
        return Support(True)

    def forward(self, problem: BinarizeProblem) -> Tensor:
        """Return the bytes."""
        buckets = torch.bucketize(problem.values.float().contiguous(), problem.cutoffs)
        bits = (buckets[..., None] >> torch.arange(problem.nbits, device=buckets.device)) & 1  # lowest bit first
        octets = bits.reshape(*problem.scores_shape, 8)
        weights = 2 ** torch.arange(7, -1, -1, device=buckets.device)  # highest place first
        return (octets * weights).sum(-1).to(torch.uint8)


class Compress:
    """The whole matrix of similarities, and every intermediate in full."""

    def supports(self, problem: CompressProblem) -> Support:
        """Serve everything."""
        return Support(True)

    def forward(self, problem: CompressProblem) -> tuple[Tensor, Tensor]:
        """Return codes and residuals."""
        codes, _ = ASSIGN.forward(AssignProblem(problem.embeddings, problem.centroids, by_distance=False))
        rest = problem.embeddings - problem.centroids[codes.long()]
        return codes, BINARIZE.forward(BinarizeProblem(rest, problem.cutoffs, problem.nbits))


class Decompress:
    """One byte for every bit on the way."""

    def supports(self, problem: DecompressProblem) -> Support:
        """Serve everything."""
        return Support(True)

    def forward(self, problem: DecompressProblem) -> Tensor:
        """Return the embeddings."""
        device, nbits = problem.residuals.device, problem.nbits
        bits = (problem.residuals[..., None] >> torch.arange(7, -1, -1, device=device, dtype=torch.uint8)) & 1
        bits = bits.reshape(*problem.scores_shape, nbits).long()
        buckets = (bits << torch.arange(nbits, device=device)).sum(-1)
        rows = problem.centroids[problem.codes.long()] + problem.bucket_weights[buckets]
        return normalize(rows, p=2, dim=-1) if problem.normalized else rows


BINARIZE, COMPRESS, DECOMPRESS = Binarize(), Compress(), Decompress()
