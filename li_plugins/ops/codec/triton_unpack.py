"""Embeddings of codes and residual bytes in Triton.

``unpack_rows`` reads ``4 + d * nbits / 8`` bytes for each row, and ``s * d`` of its centroid, mostly from L2; it writes
``s * d``.
"""

import triton
import triton.language as tl

from li_plugins.ops.codec.triton_rounding import rounded


@triton.jit(do_not_specialize=("row_count",))
def unpack_rows(
    codes,  # [N] int32 or int64
    residuals,  # [N, d / PER_BYTE] uint8
    centroids,  # [K, d]
    weights_of_bytes,  # [256, PER_BYTE], in the dtype of centroids
    embeddings,  # [N, d]
    residual_stride,
    centroid_stride,
    row_count,
    smallest,  # norm, by which to divide at least
    DIM: tl.constexpr,
    PER_BYTE: tl.constexpr,
    ROWS: tl.constexpr,
    BYTES: tl.constexpr,
    NORMALIZED: tl.constexpr,
    DTYPE: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Write ``ROWS`` embeddings of at most ``BYTES`` bytes each.

    Rounded to ``DTYPE`` are, as in torch: the sum of centroid and weight, the norm (summed in fp32) and the quotient.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    byte = tl.arange(0, BYTES)
    is_row = row < row_count
    mask = is_row[:, None] & (byte < DIM // PER_BYTE)[None, :]
    code = tl.load(codes + row, mask=is_row, other=0).to(tl.int64)
    octet = tl.load(residuals + row[:, None] * residual_stride + byte[None, :], mask=mask, other=0).to(tl.int32)
    place = tl.arange(0, PER_BYTE)[None, None, :]
    weight = tl.load(weights_of_bytes + octet[:, :, None] * PER_BYTE + place)
    dim = (byte * PER_BYTE)[None, :, None] + place
    centroid = tl.load(centroids + code[:, None, None] * centroid_stride + dim, mask=mask[:, :, None], other=0.0)
    value = rounded(centroid.to(tl.float32) + weight.to(tl.float32), DTYPE, INTERPRET)
    if NORMALIZED:
        squares = tl.sum(tl.sum(tl.where(mask[:, :, None], value * value, 0.0), axis=2), axis=1)
        norm = rounded(tl.sqrt_rn(squares), DTYPE, INTERPRET)
        norm = tl.where(norm < smallest, smallest, norm)
        value = rounded(tl.div_rn(value, norm[:, None, None] + tl.zeros_like(value)), DTYPE, INTERPRET)
    target = embeddings + row[:, None, None] * DIM + dim
    tl.store(target, value.to(embeddings.dtype.element_ty), mask=mask[:, :, None])
