"""What MaxSim's Triton kernels share: where items lie, and tiles of embeddings and factors."""

import triton
import triton.language as tl


@triton.jit
def item_span(item, live, offsets, lengths, item_stride, row_stride, max_length):
    """Return an item's first token among all tokens, its length, and the element where its first row begins.

    ``item`` (int64) and ``live`` are scalars or vectors of one shape; a dead item has length 0. With ``offsets`` the
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

    ``EVEN`` says that no dimension reaches ``DIM``. Triton's interpreter does not compute in bf16: it gets fp32.
    """
    if EVEN:
        tile = tl.load(rows[:, None] + dims[None, :], mask=live[:, None], other=0.0)
    else:
        tile = tl.load(rows[:, None] + dims[None, :], mask=live[:, None] & (dims < DIM)[None, :], other=0.0)
    if INTERPRET:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def load_factor(factor, index, live, INTERPRET: tl.constexpr):
    """Load query weights or a document mask, in its own dtype; 0 where dead."""
    value = tl.load(factor + index, mask=live, other=0)
    if INTERPRET and value.dtype == tl.bfloat16:
        value = value.to(tl.float32)
    return value
