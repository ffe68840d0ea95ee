"""The problems of the residual codec after validation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from li_plugins.ops.described import Described


@dataclass(frozen=True, slots=True, eq=False)
class BinarizeProblem(Described):
    """Turn ``values [N, d]`` into buckets of ``nbits`` bits, packed: ``[N, d * nbits / 8]`` uint8.

    The bucket of a value is how many of ``cutoffs [2**nbits - 1]`` (float32, rising) are less than it, the value taken
    to float32 first; all of them for NaN. ``bits`` says how buckets lie in bytes.
    """

    values: Tensor
    cutoffs: Tensor
    nbits: int

    @property
    def queries(self) -> Tensor:
        """The values."""
        return self.values

    @property
    def documents(self) -> Tensor:
        """The cutoffs."""
        return self.cutoffs

    @property
    def scores_shape(self) -> tuple[int, ...]:
        """Shape of the bytes."""
        return self.values.shape[0], self.values.shape[1] * self.nbits // 8


@dataclass(frozen=True, slots=True, eq=False)
class CompressProblem(Described):
    """Store ``embeddings [N, d]`` as the nearest of ``centroids [K, d]`` and the binarized rest.

    Results: codes ``[N]`` int32, as of ``assign`` by dot product; residuals ``[N, d * nbits / 8]`` uint8, of
    ``embedding - centroid`` in the dtype that torch subtracts these two in.
    """

    embeddings: Tensor
    centroids: Tensor
    cutoffs: Tensor
    nbits: int

    @property
    def queries(self) -> Tensor:
        """The embeddings."""
        return self.embeddings

    @property
    def documents(self) -> Tensor:
        """The centroids."""
        return self.centroids

    @property
    def scores_shape(self) -> tuple[int, ...]:
        """Shape of the residuals."""
        return self.embeddings.shape[0], self.embeddings.shape[1] * self.nbits // 8


@dataclass(frozen=True, slots=True, eq=False)
class DecompressProblem(Described):
    """Make embeddings of codes ``[N]`` int32 and residuals ``[N, d * nbits / 8]`` uint8: ``[N, d]``.

    ``centroids [K, d]`` plus ``bucket_weights [2**nbits]``, both of one dtype and added in it; with ``normalized``
    divided by the row's norm, in that dtype, as ``torch.nn.functional.normalize`` does.
    """

    codes: Tensor
    residuals: Tensor
    centroids: Tensor
    bucket_weights: Tensor
    nbits: int
    normalized: bool

    @property
    def queries(self) -> Tensor:
        """The centroids: their dtype and width are those of the result."""
        return self.centroids

    @property
    def documents(self) -> Tensor:
        """The residuals."""
        return self.residuals

    @property
    def scores_shape(self) -> tuple[int, ...]:
        """Shape of the embeddings."""
        return self.codes.shape[0], self.centroids.shape[1]

    @property
    def out_dtype(self) -> torch.dtype:
        """Dtype of the embeddings."""
        return self.centroids.dtype
