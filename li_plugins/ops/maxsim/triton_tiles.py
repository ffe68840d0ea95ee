"""What MaxSim's Triton kernels share: where items lie, tiles of embeddings and factors, and the best of a tile."""

import triton
import triton.language as tl

CLASSES = 8
"""Columns of a tile whose maxima are kept apart.

A thread of a tensor-core product holds two neighbouring columns of every eight, so the maximum over columns of one
class is its own business: no shuffle and few registers until the document ends.
"""

FORWARD_SIZES = (
    "query_count",
    "documents_per_query",
    "documents_per_program",
    "max_query_length",
    "max_document_length",
    "first_item",
    "score_count",
)
"""A forward's sizes that change from call to call, for ``do_not_specialize``.

Specialized, each multiple of 16, and 1, would be compiled apart.
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
    # the interpreter of triton 3.9 takes no scalar for a mask
    is_live = live[:, None] if len(live.shape) == 1 else tl.full([1, 1], 1, tl.int1) & live
    if EVEN:
        tile = tl.load(rows[:, None] + dims[None, :], mask=is_live, other=0.0)
    else:
        tile = tl.load(rows[:, None] + dims[None, :], mask=is_live & (dims < DIM)[None, :], other=0.0)
    if INTERPRET:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def load_query(rows, live, DIM: tl.constexpr, NEAR: tl.constexpr, FAR: tl.constexpr, INTERPRET: tl.constexpr):
    """Load rows that meet many others, as one product or two take them; 0 in the place of wider ones.

    Those are read in pieces for each product.
    """
    near, far = 0, 0
    if NEAR + FAR >= DIM:
        near = load_rows(rows, live, tl.arange(0, NEAR), DIM, DIM >= NEAR, INTERPRET)
        if FAR > 0:
            far = load_rows(rows, live, NEAR + tl.arange(0, FAR), DIM, DIM == NEAR + FAR, INTERPRET)
    return near, far


@triton.jit
def products(
    query_rows,
    query_live,
    near_query,
    far_query,
    rows,
    live,
    DIM: tl.constexpr,
    NEAR: tl.constexpr,
    FAR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Return the products ``[ROWS, COLUMNS]`` of what ``load_query`` loaded with the embeddings at ``rows``.

    These embeddings come along, near and far; 0 in the place of wider ones.
    """
    near = tl.arange(0, NEAR)
    near_tile, far_tile = 0, 0
    if NEAR + FAR >= DIM:
        near_tile = load_rows(rows, live, near, DIM, DIM >= NEAR, INTERPRET)
        product = tl.dot(near_query, tl.trans(near_tile), input_precision=PRECISION)
        if FAR > 0:
            far = NEAR + tl.arange(0, FAR)
            far_tile = load_rows(rows, live, far, DIM, DIM == NEAR + FAR, INTERPRET)
            product = tl.dot(far_query, tl.trans(far_tile), product, input_precision=PRECISION)
    else:
        product = tl.zeros([ROWS, COLUMNS], tl.float32)
        for k in range(0, DIM, NEAR):
            part = load_rows(query_rows, query_live, k + near, DIM, DIM % NEAR == 0, INTERPRET)
            tile = load_rows(rows, live, k + near, DIM, DIM % NEAR == 0, INTERPRET)
            product = tl.dot(part, tl.trans(tile), product, input_precision=PRECISION)
    return product, near_tile, far_tile


@triton.jit
def place_of_program(
    query_count,
    documents_per_query,
    documents_per_program,
    max_query_length,
    first_item,
    LAYOUT: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    SLOTS: tl.constexpr,
    FLAT: tl.constexpr,
):
    """Return which query tokens and which documents a program of a forward scores.

    These are: its tile, the tile's first query (of PAIRS: its pair), the query and the token of each of ``ROWS`` rows,
    which part of its query (of each of ``SLOTS`` queries, if FLAT) the tile is, the first document and how many.
    """
    row = tl.arange(0, ROWS)
    program = tl.program_id(0)
    token_blocks = tl.maximum(tl.cdiv(max_query_length, TOKENS), 1)
    if LAYOUT == "CROSS":
        tiles = tl.cdiv(query_count, SLOTS) * token_blocks
        if FLAT:
            tiles = tl.cdiv(query_count * max_query_length, ROWS)
        tile = program % tiles
        first_document = (program // tiles).to(tl.int64) * documents_per_program + first_item
        document_count = tl.minimum(documents_per_query - first_document, documents_per_program).to(tl.int32)
    elif LAYOUT == "CANDIDATES":
        blocks = tl.cdiv(documents_per_query, documents_per_program)
        tile = (program // blocks).to(tl.int64) + first_item
        first_document = program % blocks * documents_per_program
        document_count = tl.minimum(documents_per_query - first_document, documents_per_program).to(tl.int32)
    else:
        tile, first_document, document_count = program.to(tl.int64) + first_item, 0, 1
    if FLAT:
        flat = tile * ROWS + row
        query = (flat // max_query_length).to(tl.int64)
        token = flat % max_query_length
        part = tile - (tile * ROWS // max_query_length + tl.arange(0, SLOTS)) * max_query_length // ROWS
        first_query = (tile * ROWS // max_query_length).to(tl.int64)
    else:
        first_query = (tile // token_blocks).to(tl.int64) * SLOTS
        query = first_query + row // TOKENS
        token = (tile % token_blocks).to(tl.int32) * TOKENS + row % TOKENS
        part = tile % token_blocks
    return tile, first_query, query, token, part, first_document, document_count


@triton.jit
def sum_by_query(value, query, first_query, TOKENS: tl.constexpr, SLOTS: tl.constexpr, FLAT: tl.constexpr):
    """Return the sums of a tile's values by query, ``[SLOTS]``."""
    if FLAT:
        is_slot = (query - first_query)[:, None] == tl.arange(0, SLOTS)[None, :]
        total = tl.sum(tl.where(is_slot, value[:, None], 0.0), axis=0)
    else:
        total = tl.sum(tl.reshape(value, [SLOTS, TOKENS]), axis=1)
    return total


@triton.jit
def store_scores(
    scores,
    total,
    tile,
    first_query,
    part,
    score,
    query_count,
    documents_per_query,
    max_query_length,
    score_count,
    LAYOUT: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    FLAT: tl.constexpr,
):
    """Store a tile's sums by query: ``score`` is where its first query's goes, ``score_count`` how many a part has."""
    slot = tl.arange(0, SLOTS)
    target = scores + part.to(tl.int64) * score_count + score + slot.to(tl.int64) * documents_per_query
    is_scored = first_query + slot < query_count
    if FLAT:
        is_scored = is_scored & ((first_query + slot) * max_query_length < (tile + 1) * ROWS)
    if LAYOUT == "CROSS":
        tl.store(target, total.to(scores.dtype.element_ty), mask=is_scored)
    else:
        tl.store(target, total.to(scores.dtype.element_ty), mask=slot == 0)


@triton.jit
def load_factor(factor, index, live, INTERPRET: tl.constexpr):
    """Load query weights or a document mask, in its own dtype; 0 where dead."""
    if INTERPRET:  # that of triton 3.9 takes no scalar for a mask, and makes a number of a vector and a scalar
        live = tl.where(live, index == index, False)
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
