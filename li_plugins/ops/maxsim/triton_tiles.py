"""What MaxSim's Triton kernels share: where items lie, tiles of embeddings and factors, and the best of a tile."""

import triton
import triton.language as tl

CLASSES = 8
"""Columns of a tile whose maxima are kept apart.

A thread of a tensor-core product holds two neighbouring columns of every eight, so the maximum over columns of one
class is its own business: no shuffle and few registers until the document ends.
"""

_CLASSES = tl.constexpr(CLASSES)
_FAR = tl.constexpr(2**30)


@triton.jit
def item_span(item, live, offsets, lengths, item_stride, row_stride, max_length):
    """Return an item's first token among all tokens, its length, and the element where its first row begins.

    ``item`` (int64) and ``live`` are scalars or tensors of one shape; a dead item has length 0. With ``offsets`` the
    items are packed; otherwise each takes ``max_length`` rows, of which ``lengths`` (if any) says how many exist.
    """
    if offsets is not None:
        first = tl.load(offsets + item, mask=live, other=0)
        length = tl.minimum(tl.load(offsets + item + 1, mask=live, other=0) - first, max_length).to(tl.int32)
        start = first * row_stride
    else:
        first = item * max_length
        start = item * item_stride
        if lengths is not None:
            length = tl.load(lengths + item, mask=live, other=0)
            length = tl.minimum(tl.maximum(length, 0), max_length).to(tl.int32)
        else:
            length = tl.where(live, max_length, 0)
    return first, length, start


@triton.jit
def load_rows(rows, live, dims, DIM: tl.constexpr, EVEN: tl.constexpr, INTERPRET: tl.constexpr):
    """Load ``[rows, dims]`` of the embeddings that ``rows`` points at; zeros in dead rows and from ``DIM`` on.

    ``live`` is a vector or a scalar. ``EVEN`` says that no dimension reaches ``DIM``. Triton's interpreter does not
    compute in bf16: it gets fp32.
    """
    if len(live.shape) == 1:
        is_live = live[:, None]
    else:  # the interpreter of triton 3.9 takes no scalar for a mask
        is_live = tl.full([1, 1], 1, tl.int1) & live
    if EVEN:
        tile = tl.load(rows[:, None] + dims[None, :], mask=is_live, other=0.0)
    else:
        tile = tl.load(rows[:, None] + dims[None, :], mask=is_live & (dims < DIM)[None, :], other=0.0)
    if INTERPRET:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def load_factor(factor, index, live, INTERPRET: tl.constexpr):
    """Load query weights or a document mask, in its own dtype; 0 where dead."""
    if INTERPRET:  # that of triton 3.9 makes a number of a vector's and a scalar's conjunction
        live = live != 0
    value = tl.load(factor + index, mask=live, other=0)
    if INTERPRET and value.dtype == tl.bfloat16:
        value = value.to(tl.float32)
    return value


@triton.jit
def larger(a, b):
    """Return the maximum, NaN if either is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def largest(values, INTERPRET: tl.constexpr):
    """Return the maxima of ``[rows, columns]`` along the columns, NaN where there is one."""
    if INTERPRET:  # its general reductions take a Python call per element
        has_nan = tl.max((values != values).to(tl.int32), axis=1) > 0
        return tl.where(has_nan, float("nan"), tl.max(values, axis=1))
    return tl.reduce(values, 1, larger)


@triton.jit
def best_of_classes(similarity, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INTERPRET: tl.constexpr):
    """Return the largest similarity of each row in each class of columns, ``[ROWS, CLASSES]``."""
    by_class = tl.reshape(similarity, [ROWS, COLUMNS // _CLASSES, _CLASSES])
    if INTERPRET:
        has_nan = tl.max((by_class != by_class).to(tl.int32), axis=1) > 0
        return tl.where(has_nan, float("nan"), tl.max(by_class, axis=1))
    return tl.reduce(by_class, 1, larger)


@triton.jit
def best_and_column(similarity, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INTERPRET: tl.constexpr):
    """Return the same, and the first column where it is: of equals the smallest, in whichever order they are compared.

    There is no such column where the best is NaN.
    """
    best = best_of_classes(similarity, ROWS, COLUMNS, INTERPRET)
    by_class = tl.reshape(similarity, [ROWS, COLUMNS // _CLASSES, _CLASSES])
    first = tl.arange(0, COLUMNS // _CLASSES)[None, :, None] * _CLASSES
    is_best = by_class == best[:, None, :]
    return best, tl.min(tl.where(is_best, first, _FAR), axis=1) + tl.arange(0, _CLASSES)[None, :]
