"""The nearest centroid of each row in Triton: which group of a few has the greatest similarity, then which of them.

With ``N`` rows, ``K`` centroids, ``s`` bytes per element and tiles of ``ROWS`` by ``BLOCK_N``:

* ``nearest_group``: ``2 * N * K * d`` operations on tensor cores, one comparison for each similarity (and a
  subtraction, by distance) and four for each group; ``s * N * d`` bytes from memory, ``s * K * d * N / ROWS`` from L2;
* ``nearest_in_group``: ``s * d * N * (1 + BLOCK_N / CLASSES)`` bytes, all but the rows' own from L2.

An index for each similarity would cost as much again as the maximum. So a tile's columns fall into ``CLASSES`` groups,
of which a thread of a product holds all columns: it keeps the greatest of a group and, only when that grows, the tile.
The second kernel multiplies each row with the few centroids of its group once more, in fp32.
"""

import triton
import triton.language as tl

from li_plugins.ops.maxsim.triton_tiles import CLASSES, best_of_classes, largest, load_query, products

SIZES = ("row_count", "centroid_count")
"""Numbers that change from call to call, for ``do_not_specialize``."""

TIED = 8
"""Added to the class where several of a tile have the greatest similarity; a tile is counted in sixteens."""

_CLASSES = tl.constexpr(CLASSES)
_TIED = tl.constexpr(TIED)
_NO_TILE = tl.constexpr(2**31 - 1)


@triton.jit
def _first_column(tile, centroid_count, BLOCK_N: tl.constexpr):
    """Return where a tile begins: the last one ends with the centroids, whatever it sees twice cannot win twice."""
    return tl.minimum(tile * BLOCK_N, tl.maximum(centroid_count - BLOCK_N, 0))


@triton.jit
def _is_above(found, best):
    """Say where ``found`` takes the place of ``best``: where it is greater, or NaN and the first."""
    return ((found <= best) == 0) & (best == best)


@triton.jit
def _is_same(values, one):
    """Say which values equal ``one``, NaN included."""
    return (values == one) | ((values != values) & (one != one))


@triton.jit(do_not_specialize=SIZES)
def nearest_group(
    rows,  # [N, d]
    centroids,  # [K, d]
    half_squares,  # [K] float32, at least BLOCK_N of them, to subtract from similarities; or None
    groups,  # [N] int32: 16 * tile + class, + TIED
    row_stride,
    centroid_stride,
    row_count,
    centroid_count,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NEAR: tl.constexpr,
    FAR: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Write the first group with the greatest similarity of each row; NaN is the greatest.

    ``WIDEN`` multiplies in fp32, as rows and centroids of two dtypes are. Products are summed in fp32, and nothing else
    is rounded.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    # rows beyond the last repeat it
    row_at = rows + tl.minimum(row, row_count - 1) * row_stride
    live = centroid_count > 0
    near_rows, far_rows = load_query(row_at, row < row_count, DIM, NEAR, FAR, WIDEN)
    column = tl.minimum(tl.arange(0, BLOCK_N), centroid_count - 1)
    column_at = centroids + column.to(tl.int64) * centroid_stride
    best = tl.full([ROWS, _CLASSES], float("-inf"), tl.float32)
    best_tile = tl.zeros([ROWS, _CLASSES], tl.int32)
    for tile in range(0, tl.cdiv(centroid_count, BLOCK_N)):
        first = _first_column(tile, centroid_count, BLOCK_N)
        similarity, _near, _far = products(
            row_at,
            row < row_count,
            near_rows,
            far_rows,
            column_at + first.to(tl.int64) * centroid_stride,
            live,
            DIM,
            NEAR,
            FAR,
            ROWS,
            BLOCK_N,
            PRECISION,
            WIDEN,
        )
        if half_squares is not None:
            similarity -= tl.load(half_squares + first + tl.arange(0, BLOCK_N))[None, :]
        found = best_of_classes(similarity, ROWS, BLOCK_N, INTERPRET)
        is_above = _is_above(found, best)
        best = tl.where(is_above, found, best)
        best_tile = tl.where(is_above, tile, best_tile)

    is_best = _is_same(best, largest(best, INTERPRET)[:, None])
    tile = tl.min(tl.where(is_best, best_tile, _NO_TILE), axis=1)
    is_best = is_best & (best_tile == tile[:, None])
    number = tl.arange(0, _CLASSES)[None, :]
    lowest = tl.min(tl.where(is_best, number, _CLASSES), axis=1)
    tied = tl.where(tl.sum(is_best.to(tl.int32), axis=1) > 1, _TIED, 0)
    tl.store(groups + row, tile * 16 + lowest + tied, mask=row < row_count)


@triton.jit(do_not_specialize=SIZES)
def nearest_in_group(
    rows,  # [N, d]
    centroids,  # [K, d]
    half_squares,  # [K] float32; or None
    groups,  # [N] int32, of nearest_group
    codes,  # [N] int32
    best,  # [N] float32
    row_stride,
    centroid_stride,
    row_count,
    centroid_count,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Write the nearest centroid of each row's group, the first of equals, and its similarity.

    Where groups of a tile tie, all of the tile is looked at. Products, sums and the similarity are fp32.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = row < row_count
    group = tl.load(groups + row, mask=is_row, other=0)
    first = _first_column(group // 16, centroid_count, BLOCK_N)
    is_tied = group % 16 >= _TIED
    member = tl.arange(0, BLOCK_N // _CLASSES) * _CLASSES
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    nearest = tl.full([ROWS], _NO_TILE, tl.int32)
    classes = tl.where(tl.max(is_tied.to(tl.int32), axis=0) > 0, _CLASSES, 1)
    for step in range(0, classes):
        number = tl.where(is_tied, step, group % 16)
        column = tl.minimum((first + number)[:, None] + member[None, :], centroid_count - 1)
        similarity = tl.zeros([ROWS, BLOCK_N // _CLASSES], tl.float32)
        for k in range(0, DIM, BLOCK_D):
            dim = k + tl.arange(0, BLOCK_D)[None, None, :]
            row_at = rows + row[:, None, None] * row_stride + dim
            column_at = centroids + column.to(tl.int64)[:, :, None] * centroid_stride + dim
            left = tl.load(row_at, mask=is_row[:, None, None] & (dim < DIM), other=0.0)
            right = tl.load(column_at, mask=is_row[:, None, None] & (dim < DIM), other=0.0)
            similarity += tl.sum(left.to(tl.float32) * right.to(tl.float32), axis=2)
        if half_squares is not None:
            similarity -= tl.load(half_squares + column)
        found = largest(similarity, INTERPRET)
        found_at = tl.min(tl.where(_is_same(similarity, found[:, None]), column, _NO_TILE), axis=1)
        is_nearer = _is_above(found, highest) | (_is_same(found, highest) & (found_at < nearest))
        highest = tl.where(is_nearer, found, highest)
        nearest = tl.where(is_nearer, found_at, nearest)
    tl.store(codes + row, nearest, mask=is_row)
    tl.store(best + row, highest, mask=is_row)
