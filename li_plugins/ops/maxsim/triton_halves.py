"""fp32 embeddings as two fp16 numbers for each of theirs and a power of two for each row, for tensor cores.

``x = 2**e * (high + low / 2**11)``: ``high`` has the first 11 bits of ``x``, ``low`` the next 11, and ``e`` brings the
row's largest finite element below ``2**15``, so that neither overflows and little is below fp16's range. Three of the
four products of two such numbers make up fp32's precision; the fourth is below its last bit.

* bytes: 4 for each element read, ``4 * W / d`` written, with ``W`` the width of a tile, and 4 for each row;
* operations of a product: three times those of one in fp16.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from li_plugins.ops import recipes
from li_plugins.ops.launch import Launcher, Options

ROWS_AT_ONCE = 32

_BELOW = tl.constexpr(2.0**-11)
"""What ``low`` is multiplied with."""

_CUT = tl.constexpr(4.0e-8)
"""What tensor cores lose of a sum at each step of 16 dimensions: they cut where fp32 units round.

Half of the last place, which is 4.3e-8 of a number on average. A chain of four steps loses it of sums that grow to the
last one, 2.5 times: 1.0e-7. Found on Hopper: 0.9e-7 of random embeddings, 1.2e-7 of ones that are alike. This is given
back.
"""

_MOST = tl.constexpr(3.0e38)


@triton.jit(do_not_specialize=("row_count",))
def maxsim_halves(
    embeddings,  # [rows, d] fp32
    halves,  # [rows, 2 * W] fp16: high, then low
    factors,  # [rows] fp32: powers of two
    row_stride,
    row_count,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Split rows; dimensions from ``DIM`` to ``WIDTH`` are zeros. An infinity or NaN is all in ``high``."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dim = tl.arange(0, WIDTH)
    live = row < row_count
    exists = live[:, None] & (dim < DIM)[None, :]
    value = tl.load(embeddings + row[:, None] * row_stride + dim[None, :], mask=exists, other=0.0)
    is_finite = tl.abs(value) < float("inf")
    largest = tl.max(tl.where(is_finite, tl.abs(value), 0.0), axis=1)
    # fp32's exponent bits, kept where both powers of two are normal numbers
    exponent = ((largest.to(tl.int32, bitcast=True) >> 23) & 255) - 127 - 14
    exponent = tl.minimum(tl.maximum(exponent, -126), 126)
    down = ((127 - exponent) << 23).to(tl.float32, bitcast=True)
    scaled = value * down[:, None]
    high = scaled.to(tl.float16)
    low = tl.where(is_finite, (scaled - high.to(tl.float32)) / _BELOW, 0.0)
    target = halves + row[:, None] * (2 * WIDTH) + dim[None, :]
    tl.store(target, high, mask=live[:, None])
    tl.store(target + WIDTH, low.to(tl.float16), mask=live[:, None])
    tl.store(factors + row, ((127 + exponent) << 23).to(tl.float32, bitcast=True), mask=live)


@triton.jit
def load_halves(rows, live, NEAR: tl.constexpr, FAR: tl.constexpr):
    """Load ``high`` and ``low`` of ``NEAR`` dimensions and of the ``FAR`` ones behind them; 0 in the place of none."""
    near = rows[:, None] + tl.arange(0, NEAR)[None, :]
    high = tl.load(near, mask=live[:, None], other=0.0)
    low = tl.load(near + NEAR + FAR, mask=live[:, None], other=0.0)
    far_high, far_low = 0, 0
    if FAR > 0:
        far = rows[:, None] + (NEAR + tl.arange(0, FAR))[None, :]
        far_high = tl.load(far, mask=live[:, None], other=0.0)
        far_low = tl.load(far + NEAR + FAR, mask=live[:, None], other=0.0)
    return high, low, far_high, far_low


@triton.jit
def product_of_halves(
    high_query,
    low_query,
    far_high_query,
    far_low_query,
    query_factor,
    rows,
    live,
    factor,
    DIM: tl.constexpr,
    NEAR: tl.constexpr,
    FAR: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Return the products of query rows, as ``load_halves`` loaded them, with the document rows at ``rows``.

    ``query_factor`` and ``factor`` are those of the rows. The product of the high numbers goes 64 dimensions at a time:
    ``fma`` keeps the compiler from making one chain of both. The interpreter cuts nothing, and is given nothing back.
    The halves of the document rows come along.
    """
    high, low, far_high, far_low = load_halves(rows, live, NEAR, FAR)
    small = tl.dot(high_query, tl.trans(low))
    small = tl.dot(low_query, tl.trans(high), small)
    if FAR > 0:
        small = tl.dot(far_high_query, tl.trans(far_low), small)
        small = tl.dot(far_low_query, tl.trans(far_high), small)
    # infinities times zeros: what the high numbers say of them counts
    small = tl.minimum(tl.maximum(small, -_MOST), _MOST)
    product = tl.fma(small, tl.full(small.shape, _BELOW, tl.float32), tl.dot(high_query, tl.trans(high)))
    if FAR > 0:
        product = tl.fma(tl.dot(far_high_query, tl.trans(far_high)), tl.full(small.shape, 1.0, tl.float32), product)
    product *= factor[None, :]
    similarity = product * query_factor[:, None]
    if not INTERPRET:
        # each product's share of the dimensions, and the mean of the sums in its chain
        STEPS: tl.constexpr = (DIM + 15) // 16
        FAR_STEPS: tl.constexpr = STEPS - NEAR // 16 if FAR > 0 else 0
        NEAR_STEPS: tl.constexpr = STEPS - FAR_STEPS
        SUMS: tl.constexpr = (NEAR_STEPS * (NEAR_STEPS + 1) + FAR_STEPS * (FAR_STEPS + 1)) / (2 * STEPS)
        similarity = tl.fma(product, query_factor[:, None] * (_CUT * SUMS), similarity)
    return similarity, high, low, far_high, far_low


@triton.jit
def add_halves(total, share, high, low):
    """Return ``total`` plus the product of shares, ``2**14`` at most, with the halves of rows.

    A share, too, is two fp16 numbers. They are not brought into range one by one: what one far below the largest loses
    is less than ``2**-39`` of the largest. The sum of all is none of the tensor cores', which would cut it.
    """
    first = share.to(tl.float16)
    rest = (share - first.to(tl.float32)).to(tl.float16)
    product = tl.dot((first * _BELOW).to(tl.float16), low)
    product = tl.dot(rest, high, product)
    return total + tl.dot(first, high, product)


_launch = Launcher(maxsim_halves)


def halves(embeddings: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Split fp32 embeddings ``[..., d]`` for tiles of ``width``: ``[..., 2 * width]`` fp16, and factors ``[rows]``."""
    rows = embeddings.reshape(-1, embeddings.shape[-1])
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    split = recipes.empty((*embeddings.shape[:-1], 2 * width), torch.float16, embeddings.device)
    factors = recipes.empty((rows.shape[0],), torch.float32, embeddings.device)
    if rows.shape[0]:
        _launch(
            (-(-rows.shape[0] // ROWS_AT_ONCE), 1, 1),
            (rows, split, factors),
            (rows.stride(0),),
            (rows.shape[0],),
            (),
            (rows.shape[1], width, ROWS_AT_ONCE),
            Options(4, 1),
        )
    return split, factors
