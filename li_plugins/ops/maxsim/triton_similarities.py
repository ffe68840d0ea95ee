"""Rows that meet many others, and their similarities: of embeddings as they are, or of their halves where factors are.

What a kernel with ``factors`` is given are the rows that ``maxsim_halves`` made.
"""

import triton
import triton.language as tl

from li_plugins.ops.maxsim.triton_halves import load_halves, product_of_halves
from li_plugins.ops.maxsim.triton_tiles import load_query, products


@triton.jit
def load_own(
    rows, live, factors, index, DIM: tl.constexpr, NEAR: tl.constexpr, FAR: tl.constexpr, INTERPRET: tl.constexpr
):
    """Load rows that meet many others: near, what of it is low, far, what of it is low, factors; 0 in place of none.

    ``index`` says where a row's factor is.
    """
    near_low, far_low, factor = 0, 0, 0.0
    if factors is not None:
        near, near_low, far, far_low = load_halves(rows, live, NEAR, FAR)
        factor = tl.load(factors + index, mask=live, other=0.0)
    else:
        near, far = load_query(rows, live, DIM, NEAR, FAR, INTERPRET)
    return near, near_low, far, far_low, factor


@triton.jit
def similarities(
    own_rows,
    live,
    near_own,
    near_low,
    far_own,
    far_low,
    own_factor,
    rows,
    exists,
    is_row,
    factors,
    factor,
    DIM: tl.constexpr,
    NEAR: tl.constexpr,
    FAR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Return the products ``[ROWS, COLUMNS]`` of what ``load_own`` loaded with ``rows``, and these as it would.

    Which of them exist is said twice: by ``exists``, which may be a scalar, and for halves by the vector ``is_row``,
    with ``factor`` for each.
    """
    low, far_low_tile = 0, 0
    if factors is not None:
        product, near, low, far, far_low_tile = product_of_halves(
            near_own, near_low, far_own, far_low, own_factor, rows, is_row, factor, DIM, NEAR, FAR, INTERPRET
        )
    else:
        product, near, far = products(
            own_rows,
            live,
            near_own,
            far_own,
            rows,
            exists,
            DIM,
            NEAR,
            FAR,
            ROWS,
            COLUMNS,
            PRECISION,
            INTERPRET,
        )
    return product, near, low, far, far_low_tile
