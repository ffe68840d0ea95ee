"""What the CUDA extensions of colbert-ai's codec compute: the same arguments, the same bits, on the tensors' device.

decompress_residuals.cu and packbits.cu of 0.2.22, whose results are on the first GPU wherever the tensors are.
"""

from __future__ import annotations

from torch import Tensor

from li_plugins.ops import decompress
from li_plugins.ops.codec import bits


def decompress_residuals(
    binary_residuals: Tensor,
    bucket_weights: Tensor,
    reversed_bit_map: Tensor,
    bucket_weight_combinations: Tensor,
    codes: Tensor,
    centroids: Tensor,
    dim: int,
    nbits: int,
) -> Tensor:
    """Return the embeddings of stored tokens, not normalised: ``[N, dim]`` in the centroids' dtype."""
    return decompress(codes, binary_residuals, centroids, bucket_weights, nbits=nbits, normalized=False)


def packbits(residuals: Tensor) -> Tensor:
    """Pack flags ``[8 * N]``, eight to a byte, the first one in the highest bit: ``[N]`` uint8."""
    return bits.pack((residuals != 0).view(-1, 8), 1).view(-1)
