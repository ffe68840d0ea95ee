"""The bytes of residuals in Triton: what is left of each embedding, in buckets, packed.

``pack_buckets`` reads ``s * N * d`` bytes, and as many again of centroids, mostly from L2; it writes
``N * d * nbits / 8``. A bucket takes ``nbits`` comparisons.
"""

import triton
import triton.language as tl

from li_plugins.ops.codec.triton_rounding import rounded


@triton.jit(do_not_specialize=("row_count",))
def pack_buckets(
    values,  # [N, d]
    codes,  # [N] int32, whose centroids are subtracted; or None
    centroids,  # [K, d]; or None
    cutoffs,  # [2**NBITS - 1] float32
    residuals,  # [N, d * NBITS / 8] uint8
    value_stride,
    centroid_stride,
    row_count,
    DIM: tl.constexpr,
    NBITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DTYPE: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Write the bytes of ``ROWS`` rows and ``BLOCK_D`` dimensions.

    A difference is taken in fp32 and rounded to ``DTYPE`` (``fp16``, ``bf16`` or ``fp32``), as torch subtracts; then
    it meets the cutoffs in fp32. The search among them says the bits of a bucket from the highest to the lowest, which
    are those of its field from the lowest to the highest.
    """
    PER_BYTE: tl.constexpr = 8 // NBITS
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dim = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_row = row < row_count
    mask = is_row[:, None] & (dim < DIM)[None, :]
    rest = tl.load(values + row[:, None] * value_stride + dim[None, :], mask=mask, other=0.0).to(tl.float32)
    if centroids is not None:
        code = tl.load(codes + row, mask=is_row, other=0).to(tl.int64)
        centroid = tl.load(centroids + code[:, None] * centroid_stride + dim[None, :], mask=mask, other=0.0)
        rest = rounded(rest - centroid.to(tl.float32), DTYPE, INTERPRET)
    below = tl.zeros([ROWS, BLOCK_D], tl.int32)  # cutoffs that are known to be less
    field = tl.zeros([ROWS, BLOCK_D], tl.int32)
    for step in tl.static_range(NBITS):
        if step == 0:
            cutoff = tl.load(cutoffs + (2 ** (NBITS - 1) - 1))
        elif NBITS == 2:
            cutoff = tl.where(below > 0, tl.load(cutoffs + 2), tl.load(cutoffs))
        else:
            cutoff = tl.load(cutoffs + below + (2 ** (NBITS - 1 - step) - 1))
        # a NaN is above all
        is_above = ((rest <= cutoff) == 0).to(tl.int32)
        below += is_above << (NBITS - 1 - step)
        field |= is_above << step
    place = dim % PER_BYTE
    field = field << (8 - NBITS * (place + 1))[None, :]
    octets = tl.sum(tl.reshape(field, [ROWS, BLOCK_D // PER_BYTE, PER_BYTE]), axis=2)
    byte = tl.program_id(1) * (BLOCK_D // PER_BYTE) + tl.arange(0, BLOCK_D // PER_BYTE)
    tl.store(
        residuals + row[:, None] * (DIM // PER_BYTE) + byte[None, :],
        octets.to(tl.uint8),
        mask=is_row[:, None] & (byte < DIM // PER_BYTE)[None, :],
    )
