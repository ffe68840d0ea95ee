"""colbert-ai's ``ResidualCodec`` on the CPU: the same bytes without the matrix of all similarities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from colbert.indexing.codecs.residual import ResidualCodec
from torch import Tensor

from li_plugins import ops
from li_plugins.api import Decline
from li_plugins.ops import arguments
from li_plugins_colbert._config import unserved

if TYPE_CHECKING:
    from colbert.indexing.codecs.residual_embeddings import ResidualEmbeddings

STEPS = ("compress_into_codes", "lookup_centroids", "binarize")
"""What the library's ``compress`` calls."""


def compress(self: Any, embs: Tensor) -> ResidualEmbeddings | Decline:
    """Return codes ``[N]`` and residuals ``[N, dim * nbits / 8]`` of embeddings ``[N, dim]``."""
    refusal = _uncompressed(self, embs)
    if refusal:
        return refusal
    return type(self).Embeddings(*ops.compress(embs, self.centroids, self.bucket_cutoffs, nbits=self.nbits))


def explain_compress(self: Any, embs: Tensor) -> object:
    """Say which kernel ``compress`` would use, or why colbert-ai's own code would run."""
    refusal = _uncompressed(self, embs)
    return refusal or ops.explain_compress(embs, self.centroids, self.bucket_cutoffs, nbits=self.nbits)


def compress_into_codes(self: Any, embs: Tensor, out_device: Any) -> Tensor | Decline:
    """Return the nearest centroid of each of ``embs [N, dim]``, ``[N]`` int64 on ``out_device``."""
    refusal = _unassigned(self, embs)
    if refusal:
        return refusal
    codes, _ = ops.assign(embs, self.centroids)
    return codes.to(device=out_device, dtype=torch.int64)


def explain_compress_into_codes(self: Any, embs: Tensor, out_device: Any) -> object:
    """Say which kernel ``compress_into_codes`` would use, or why colbert-ai's own code would run."""
    return _unassigned(self, embs) or ops.explain_assign(embs, self.centroids)


def binarize(self: Any, residuals: Tensor) -> Tensor | Decline:
    """Return the bytes of ``residuals [N, dim]``: ``[N, dim * nbits / 8]`` uint8."""
    refusal = _unpacked(self, residuals)
    return refusal or ops.binarize(residuals, self.bucket_cutoffs, nbits=self.nbits)


def explain_binarize(self: Any, residuals: Tensor) -> object:
    """Say which kernel ``binarize`` would use, or why colbert-ai's own code would run."""
    refusal = _unpacked(self, residuals)
    return refusal or ops.explain_binarize(residuals, self.bucket_cutoffs, nbits=self.nbits)


def decompress(self: Any, compressed_embs: Any) -> Tensor | Decline:
    """Return the normalised embeddings of codes and residuals, ``[N, dim]`` float32."""
    stored = _stored(self, compressed_embs)
    return stored if isinstance(stored, Decline) else ops.decompress(*stored, nbits=self.nbits)


def explain_decompress(self: Any, compressed_embs: Any) -> object:
    """Say which kernel ``decompress`` would use, or why colbert-ai's own code would run."""
    stored = _stored(self, compressed_embs)
    return stored if isinstance(stored, Decline) else ops.explain_decompress(*stored, nbits=self.nbits)


def _unserved(codec: Any) -> Decline | None:
    if not isinstance(codec, ResidualCodec):
        return Decline(f"called on {type(codec).__name__}, which is no ResidualCodec")
    return unserved(codec.use_gpu)


def _unassigned(codec: Any, embs: Any) -> Decline | None:
    refusal = _unserved(codec)
    if refusal:
        return refusal
    if not _is_matrix(embs) or embs.dtype is torch.float64:
        return Decline("embeddings are no plain tensor [N, dim] of float16, bfloat16 or float32 on the CPU")
    if not _is_matrix(codec.centroids) or embs.shape[1] != codec.centroids.shape[1] or not len(codec.centroids):
        return Decline("centroids are no matrix of the embeddings' width: colbert-ai's own error is the answer")
    return None


def _unpacked(codec: Any, residuals: Any) -> Decline | None:
    refusal = _unserved(codec)
    if refusal:
        return refusal
    if codec.nbits not in (1, 2, 4, 8) or codec.dim % (8 * codec.nbits):
        return Decline(f"dim={codec.dim}, nbits={codec.nbits}: colbert-ai refuses these")
    if not _is_matrix(residuals) or residuals.shape[1] != codec.dim:
        return Decline(f"residuals are no plain floating tensor [N, {codec.dim}] on the CPU")
    cutoffs = codec.bucket_cutoffs
    if type(cutoffs) is not Tensor or cutoffs.dtype is not torch.float32 or cutoffs.shape != (2**codec.nbits - 1,):
        return Decline(f"bucket_cutoffs are not the {2**codec.nbits - 1} float32 numbers of {codec.nbits} bits")
    return None


def _uncompressed(codec: Any, embs: Any) -> Decline | None:
    refusal = _unassigned(codec, embs) or _unpacked(codec, embs)
    for step in STEPS if refusal is None else ():
        refusal = refusal or arguments.foreign(getattr(type(codec), step), step, "colbert")
    return refusal


def _stored(codec: Any, embeddings: Any) -> tuple[Tensor, Tensor, Tensor, Tensor] | Decline:
    refusal = _unserved(codec)
    if refusal:
        return refusal
    codes, residuals, weights = embeddings.codes, embeddings.residuals, codec.bucket_weights
    if codec.nbits not in (1, 2, 4, 8) or type(weights) is not Tensor or weights.shape != (2**codec.nbits,):
        return Decline(f"bucket_weights are not the {2**codec.nbits} numbers of {codec.nbits} bits")
    if weights.dtype is not codec.centroids.dtype or codes.dtype is not torch.int32 or codes.is_cuda:
        return Decline("codes, centroids and bucket weights are not as the CPU's codec has them")
    if not len(codes) or residuals.shape != (len(codes), codec.centroids.shape[1] * codec.nbits // 8):
        return Decline("no codes, or residuals of another shape: colbert-ai's own error is the answer")
    return codes, residuals, codec.centroids, weights


def _is_matrix(tensor: Any) -> bool:
    return type(tensor) is Tensor and tensor.dim() == 2 and tensor.is_floating_point() and not tensor.is_cuda
