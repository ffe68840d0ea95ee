"""colbert-ai's ``ResidualCodec``: the same bytes without the matrix of all similarities.

Where the library sees a GPU its codec is there, in float16, and takes embeddings there in runs; what is compressed
comes back to the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from colbert.indexing.codecs.residual import ResidualCodec
from torch import Tensor

from li_plugins import ops
from li_plugins.api import Decline
from li_plugins.ops import arguments
from li_plugins.ops.arguments import Request

if TYPE_CHECKING:
    from colbert.indexing.codecs.residual_embeddings import ResidualEmbeddings

ROWS_AT_ONCE = 1 << 18
"""How many embeddings the library takes to a GPU at a time."""
STEPS = ("compress_into_codes", "lookup_centroids", "binarize")
"""What the library's ``compress`` calls."""


def compress(self: Any, embs: Tensor) -> ResidualEmbeddings | Decline:
    """Return codes ``[N]`` and residuals ``[N, dim * nbits / 8]`` of embeddings ``[N, dim]``."""
    refusal = _uncompressed(self, embs)
    if refusal:
        return refusal
    parts = [ops.compress(rows, self.centroids, self.bucket_cutoffs, nbits=self.nbits) for rows in _taken(self, embs)]
    codes, residuals = (torch.cat(side) if len(side) > 1 else side[0] for side in zip(*parts, strict=True))
    return type(self).Embeddings(codes.cpu(), residuals.cpu())


def explain_compress(self: Any, embs: Tensor) -> object:
    """Say which kernel ``compress`` would use, or why colbert-ai's own code would run."""
    refusal = _uncompressed(self, embs)
    if refusal:
        return refusal
    return ops.explain_compress(next(_taken(self, embs)), self.centroids, self.bucket_cutoffs, nbits=self.nbits)


def compress_into_codes(self: Any, embs: Tensor, out_device: Any) -> Tensor | Decline:
    """Return the nearest centroid of each of ``embs [N, dim]``, ``[N]`` int64 on ``out_device``."""
    refusal = _unassigned(self, embs)
    if refusal:
        return refusal
    codes = [ops.assign(rows, self.centroids)[0].to(out_device, torch.int64) for rows in _taken(self, embs)]
    return torch.cat(codes) if len(codes) > 1 else codes[0]


def explain_compress_into_codes(self: Any, embs: Tensor, out_device: Any) -> object:
    """Say which kernel ``compress_into_codes`` would use, or why colbert-ai's own code would run."""
    return _unassigned(self, embs) or ops.explain_assign(next(_taken(self, embs)), self.centroids)


def binarize(self: Any, residuals: Tensor) -> Tensor | Decline:
    """Return the bytes of ``residuals [N, dim]``: ``[N, dim * nbits / 8]`` uint8."""
    refusal = _unpacked(self, residuals)
    return refusal or ops.binarize(residuals, self.bucket_cutoffs, nbits=self.nbits)


def explain_binarize(self: Any, residuals: Tensor) -> object:
    """Say which kernel ``binarize`` would use, or why colbert-ai's own code would run."""
    refusal = _unpacked(self, residuals)
    return refusal or ops.explain_binarize(residuals, self.bucket_cutoffs, nbits=self.nbits)


def decompress(self: Any, compressed_embs: Any) -> Tensor | Decline:
    """Return the normalised embeddings of codes and residuals, ``[N, dim]`` float32, on a GPU float16."""
    # on the CPU codes are looked at: those that are no centroid's are the library's to wrap or to refuse
    return arguments.answered(_stored(self, compressed_embs), ops.decompress)


def explain_decompress(self: Any, compressed_embs: Any) -> object:
    """Say which kernel ``decompress`` would use, or why colbert-ai's own code would run."""
    return arguments.answered(_stored(self, compressed_embs), ops.explain_decompress)


def _taken(codec: Any, embs: Tensor) -> Iterator[Tensor]:
    """Yield embeddings in runs, as the library takes them: on a GPU in float16, else all together as they are."""
    for rows in embs.split(ROWS_AT_ONCE) if codec.use_gpu else (embs,):
        yield rows.to(codec.centroids.device, torch.float16) if codec.use_gpu else rows


def _unserved(codec: Any) -> Decline | None:
    if not isinstance(codec, ResidualCodec):
        return Decline(f"called on {type(codec).__name__}, which is no ResidualCodec")
    return None


def _unassigned(codec: Any, embs: Any) -> Decline | None:
    refusal = _unserved(codec)
    if refusal:
        return refusal
    if not _is_matrix(embs) or embs.dtype is torch.float64:
        return Decline("embeddings are no plain tensor [N, dim] of float16, bfloat16 or float32")
    if not codec.use_gpu and embs.device.type != "cpu":
        return Decline(f"embeddings on {embs.device} for a codec of the CPU")
    if not _is_matrix(codec.centroids) or embs.shape[1] != codec.centroids.shape[1] or not len(codec.centroids):
        return Decline("centroids are no matrix of the embeddings' width: colbert-ai's own error is the answer")
    return None


def _uncut(codec: Any) -> Decline | None:
    """Decline a codec whose buckets are not those of its bits, or fill no bytes."""
    if codec.nbits not in (1, 2, 4, 8) or codec.dim % (8 * codec.nbits):
        return Decline(f"dim={codec.dim}, nbits={codec.nbits}: colbert-ai refuses these")
    cutoffs = codec.bucket_cutoffs
    if type(cutoffs) is not Tensor or cutoffs.dtype is not torch.float32 or cutoffs.shape != (2**codec.nbits - 1,):
        return Decline(f"bucket_cutoffs are not the {2**codec.nbits - 1} float32 numbers of {codec.nbits} bits")
    return None


def _unpacked(codec: Any, residuals: Any) -> Decline | None:
    refusal = _unserved(codec) or _uncut(codec)
    if refusal:
        return refusal
    if not _is_matrix(residuals) or residuals.shape[1] != codec.dim:
        return Decline(f"residuals are no plain floating tensor [N, {codec.dim}]")
    if residuals.device != codec.bucket_cutoffs.device:
        return Decline(f"residuals on {residuals.device}, bucket_cutoffs on {codec.bucket_cutoffs.device}")
    return None


def _uncompressed(codec: Any, embs: Any) -> Decline | None:
    refusal = _unassigned(codec, embs) or _uncut(codec)
    if refusal is None and (embs.shape[1] != codec.dim or codec.bucket_cutoffs.device != codec.centroids.device):
        refusal = Decline(f"embeddings of width {embs.shape[1]} for dim={codec.dim}, or a codec on two devices")
    for step in STEPS if refusal is None else ():
        refusal = refusal or arguments.foreign(getattr(type(codec), step), step, "colbert")
    return refusal


def _stored(codec: Any, embeddings: Any) -> Request | Decline:
    refusal = _unserved(codec)
    if refusal:
        return refusal
    codes, residuals, weights = embeddings.codes, embeddings.residuals, codec.bucket_weights
    if codec.nbits not in (1, 2, 4, 8) or type(weights) is not Tensor or weights.shape != (2**codec.nbits,):
        return Decline(f"bucket_weights are not the {2**codec.nbits} numbers of {codec.nbits} bits")
    if weights.dtype is not codec.centroids.dtype or codes.dtype is not torch.int32:
        return Decline("codes, centroids and bucket weights are not as the library's codec has them")
    if residuals.dtype is not torch.uint8:
        return Decline(f"residuals of dtype {residuals.dtype}: the library's codec has uint8")
    if not len(codes) or residuals.shape != (len(codes), codec.centroids.shape[1] * codec.nbits // 8):
        return Decline("no codes, or residuals of another shape: colbert-ai's own error is the answer")
    if not codec.use_gpu and codes.device.type != "cpu":
        return Decline(f"codes on {codes.device} for a codec of the CPU")
    where = codec.centroids.device
    return {
        "codes": codes.to(where),
        "residuals": residuals.to(where),
        "centroids": codec.centroids,
        "bucket_weights": weights,
        "nbits": codec.nbits,
    }


def _is_matrix(tensor: Any) -> bool:
    return type(tensor) is Tensor and tensor.dim() == 2 and tensor.is_floating_point()
