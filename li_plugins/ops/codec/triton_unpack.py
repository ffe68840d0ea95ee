"""Embeddings of codes and residual bytes in Triton.

``unpack_rows`` reads ``4 + d * nbits / 8`` bytes for each row, and ``s * d`` of its centroid, mostly from L2; it writes
``s * d``. Some eight instructions make an element, so that memory is the limit.
"""

import triton
import triton.language as tl

from li_plugins.ops.codec.triton_rounding import rounded
from li_plugins.ops.codec.triton_weights import stored_weights, weight_tables

SIZES = ("residual_stride", "row_count", "steps")
"""What is not to be compiled apart for multiples of 16, for ``do_not_specialize``.

Of the residuals it would even be slower: each thread would read bytes of others, and pass them on.
"""


@triton.jit
def _inverse(norm, INTERPRET: tl.constexpr):
    """Return the inverse of norms that are far from the ends of fp32's range, to about its precision."""
    if INTERPRET:
        inverse = 1.0 / norm
    else:
        inverse = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [norm], dtype=tl.float32, is_pure=True, pack=1
        )
    return inverse


@triton.jit
def _divided(rows, norm, DTYPE: tl.constexpr, INTERPRET: tl.constexpr):
    """Return ``rows [rows, dims]`` over their norms, in fp32, and such that ``DTYPE`` rounds it as the exact quotient.

    Norms of 16-bit rows need no guard and no branch: what the product with the inverse leaves of the row, times the
    inverse, brings it nearer to the quotient than that is to any number between two of ``DTYPE``. Of an infinite norm
    nothing is left.
    """
    if DTYPE == "fp32":
        quotient = tl.div_rn(rows, norm[:, None] + tl.zeros_like(rows))
    else:
        inverse = _inverse(norm, INTERPRET)[:, None] + tl.zeros_like(rows)
        taken = tl.where(norm == float("inf"), 0.0, -norm)[:, None] + tl.zeros_like(rows)
        quotient = rows * inverse
        quotient = tl.fma(tl.fma(quotient, taken, rows), inverse, quotient)
    return quotient


@triton.jit(do_not_specialize=SIZES)
def unpack_rows(
    codes,  # [N] int32 or int64
    residuals,  # [N, d * NBITS / 8] uint8
    centroids,  # [K, d]
    bucket_weights,  # [2**NBITS], in the dtype of centroids
    embeddings,  # [N, d]
    residual_stride,  # so small that steps * ROWS of them fit in 32 bits
    row_count,
    steps,
    smallest,  # norm, by which to divide at least
    CENTROID_STRIDE: tl.constexpr,
    DIM: tl.constexpr,
    NBITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    IN_WORDS: tl.constexpr,
    NORMALIZED: tl.constexpr,
    DTYPE: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Write ``steps * ROWS`` embeddings, ``ROWS`` at a time.

    Rounded to ``DTYPE`` (``fp16``, ``bf16`` or ``fp32``) are, as in torch: the sum of centroid and weight, the norm
    (summed in fp32) and the quotient. Addresses have no dimension for what shares a byte: then neighbouring threads
    read a row's bytes and its centroid, and write the row, 16 bytes each. The codes are read a step ahead.
    """
    IN_PAIRS: tl.constexpr = NBITS < 8 and centroids.dtype.element_ty.primitive_bitwidth == 16
    dims = tl.arange(0, BLOCK_D)
    exists = (dims < DIM)[None, :]
    line = tl.arange(0, ROWS)
    tables = 0
    if IN_PAIRS:
        tables = weight_tables(bucket_weights, NBITS)
    begin = tl.program_id(0).to(tl.int64) * steps * ROWS
    left = tl.minimum(row_count - begin, steps * ROWS).to(tl.int32)
    codes += begin
    residuals += begin * residual_stride
    embeddings += begin * DIM
    # rows beyond the last repeat it
    code = tl.load(codes + tl.minimum(line, left - 1))
    for first in range(0, left, ROWS):
        row = first + line
        center = tl.load(
            centroids + (code.to(tl.int64) * CENTROID_STRIDE)[:, None] + dims[None, :], mask=exists, other=0.0
        )
        at = residuals + tl.minimum(row, left - 1) * residual_stride
        code = tl.load(codes + tl.minimum(row + ROWS, left - 1))
        weight = stored_weights(at, bucket_weights, tables, DIM, NBITS, BLOCK_D, IN_WORDS, IN_PAIRS, INTERPRET)
        if INTERPRET:
            value = rounded(center.to(tl.float32) + weight.to(tl.float32), DTYPE, INTERPRET)
        else:
            value = (center + weight).to(tl.float32)
        if NORMALIZED:
            squares = tl.sum(tl.where(exists, value * value, 0.0), axis=1)
            norm = rounded(tl.sqrt_rn(squares) if DTYPE == "fp32" else tl.sqrt(squares), DTYPE, INTERPRET)
            value = _divided(value, tl.where(norm < smallest, smallest, norm), DTYPE, INTERPRET)
        target = embeddings + row[:, None] * DIM + dims[None, :]
        value = rounded(value, DTYPE, INTERPRET).to(embeddings.dtype.element_ty)
        tl.store(target, value, mask=(row < left)[:, None] & exists)
