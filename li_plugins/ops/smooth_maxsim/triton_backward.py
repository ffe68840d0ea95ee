"""Smooth MaxSim's backward in Triton: a program owns a tile of one gradient, visits all that it met, and adds shares.

A similarity's share in its sum is computed from it again: ``share_ij = grad_score * exp(s_ij / tau - sums_i)``. Without
atomics, so two runs agree. With ``P`` pairs, ``s`` bytes per element and ``ROWS`` rows in a tile, for each gradient:

* operations: ``6 * P * Lq * Ld * d`` on tensor cores (fp32: 12 in halves, 24 in pieces), one exponential and ten more
  per similarity; where ``d`` is taken in blocks of ``BLOCK_D``, the first product once for each;
* bytes: what is visited is read, ``s * d`` per token, once for each tile that visits it (mostly from L2), and ``4`` per
  query token and pair for each tile of ``ROWS`` document tokens, once for the queries; ``s * d`` per token is written.
  Where few tiles would fill the card, each is shared by several programs, whose fp32 parts are added afterwards.

Shares in 16 bits would be the largest error of a gradient by far, so they are two numbers of the embeddings' dtype, of
fp32 as of fp16. fp16 also lacks the range: its scores' gradients come divided by their largest, with halves by that of
what they are multiplied with. Visits of which no score has a gradient are skipped.
"""

import math

import triton
import triton.language as tl

from li_plugins.ops.maxsim.triton_halves import add_halves
from li_plugins.ops.maxsim.triton_similarities import load_own, similarities
from li_plugins.ops.maxsim.triton_tiles import load_rows

GROUP = 4
"""Tiles of query rows that are visited or skipped together."""

_GROUP = tl.constexpr(GROUP)
_LOG2E = tl.constexpr(1 / math.log(2))
_SIZES = (
    "query_count",
    "documents_per_query",
    "max_query_length",
    "max_document_length",
    "tiles",
    "visits",
    "visits_per_program",
)


@triton.jit
def _add(gradient, share, tile, LACKS: tl.constexpr, PRECISION: tl.constexpr):
    """Return the gradient plus the product of shares with rows, whose dtype lacks the last ``LACKS`` bits of fp32.

    The bits that it has are one factor (rounded as a number in 32 bits: conversions there and back are slow), the rest
    is another, rounded to it.
    """
    if LACKS > 0:
        bits = share.to(tl.int32, bitcast=True)
        first = (((bits + (1 << (LACKS - 1))) >> LACKS) << LACKS).to(tl.float32, bitcast=True)
        gradient = tl.dot(first.to(tile.dtype), tile, gradient, input_precision=PRECISION)
        share -= first
    return tl.dot(share.to(tile.dtype), tile, gradient, input_precision=PRECISION)


@triton.jit
def _visit(
    near_gradient,
    far_gradient,
    own_rows,
    live,
    near_own,
    near_low,
    far_own,
    far_low,
    own_factor,
    rows,
    exists,
    factors,
    index,
    origin,
    grad_score,
    scale,
    counts,
    is_last,
    dims,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    NEAR: tl.constexpr,
    FAR: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LACKS: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Return a tile of the gradient plus the shares of ``COLUMNS`` rows, of which those ``counts`` count.

    ``exists`` is a vector or a scalar; ``origin`` and ``grad_score`` are those of each pair of rows, or broadcast to
    them. With ``factors`` all rows are halves.
    """
    if factors is not None:
        is_row = tl.where(exists, index >= 0, False)  # a vector, also where a scalar says so of all
        factor = tl.load(factors + index, mask=is_row, other=0.0)
    else:
        is_row, factor = exists, 0.0
    similarity, tile, low, far_tile, far_low_tile = similarities(
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
        DIM,
        NEAR,
        FAR,
        ROWS,
        COLUMNS,
        PRECISION,
        INTERPRET,
    )
    exponent = similarity * scale - origin
    if factors is not None:  # what rounding lifts above a whole share would not fit fp16 where similarities are huge
        exponent = tl.minimum(exponent, 0.0, propagate_nan=tl.PropagateNan.ALL)
    share = tl.exp2(exponent) * grad_score
    if is_last:
        share = tl.where(counts[None, :], share, 0.0)
    if factors is not None:
        share *= factor[None, :]
        near_gradient = add_halves(near_gradient, share, tile, low)
        if FAR > 0:
            far_gradient = add_halves(far_gradient, share, far_tile, far_low_tile)
    else:
        IN_ONE: tl.constexpr = NEAR + FAR >= DIM
        if not IN_ONE:
            tile = load_rows(rows, exists, dims, DIM, DIM % BLOCK_D == 0, INTERPRET)
        near_gradient = _add(near_gradient, share, tile, LACKS, PRECISION)
        if IN_ONE and FAR > 0:
            far_gradient = _add(far_gradient, share, far_tile, LACKS, PRECISION)
    return near_gradient, far_gradient


@triton.jit
def _store(target, gradient, factor, live, dims, DIM: tl.constexpr):
    """Store a tile ``[ROWS, dims]`` at ``target [ROWS]``, in the dtype of what is there."""
    gradient *= factor[:, None]
    place = target[:, None] + dims[None, :]
    tl.store(place, gradient.to(target.dtype.element_ty), mask=live[:, None] & (dims < DIM)[None, :])


@triton.jit(do_not_specialize=_SIZES)
def smooth_maxsim_query_gradient(
    queries,  # [A * Lq, d]; as maxsim_halves splits them where there are factors
    documents,  # [B, Ld, d] or [A, K, Ld, d]; likewise
    query_factors,  # [A * Lq]; or None
    document_factors,  # as documents without d, contiguous; or None
    sums,  # [B, A, Lq] or [A, K, Lq] float32, contiguous
    grad_scores,  # [A, B] or [A, K] float32, contiguous
    factors,  # [A] by which the gradient is multiplied in the end; or None
    gradient,  # as queries, contiguous; before it a dimension of parts where a tile is shared
    query_row_stride,
    document_outer_stride,
    document_stride,
    document_row_stride,
    query_count,
    documents_per_query,
    max_query_length,
    max_document_length,
    tiles,
    visits,
    visits_per_program,
    scale,  # log2(e) / tau
    LAYOUT: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    NEAR: tl.constexpr,
    FAR: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LACKS: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Write a tile of the queries' gradient: ``ROWS`` query tokens, all dimensions or ``BLOCK_D`` of them.

    Under CROSS the tokens are the next of the batch, wherever its queries begin and end, else those of one query. The
    program visits ``visits_per_program`` documents, ``COLUMNS`` tokens at a time.
    """
    IN_ONE: tl.constexpr = NEAR + FAR >= DIM
    BLOCKS: tl.constexpr = 1 if IN_ONE else (DIM + BLOCK_D - 1) // BLOCK_D
    WIDTH: tl.constexpr = NEAR if IN_ONE else BLOCK_D
    program = tl.program_id(0)
    dims = program % BLOCKS * WIDTH + tl.arange(0, WIDTH)
    tile = program // BLOCKS % tiles
    part = program // BLOCKS // tiles

    if LAYOUT == "CROSS":
        first_row = tile.to(tl.int64) * ROWS
        row = first_row + tl.arange(0, ROWS)
        query = row // max_query_length
        live = query < query_count
    else:
        token_blocks = tl.cdiv(max_query_length, ROWS)
        own_query = (tile // token_blocks).to(tl.int64)
        query = own_query + tl.zeros([ROWS], tl.int64)
        query_token = tile % token_blocks * ROWS + tl.arange(0, ROWS)
        row = own_query * max_query_length + query_token
        live = query_token < max_query_length
    query_rows = queries + row * query_row_stride
    near, near_low, far, far_low, query_factor = load_own(
        query_rows, live, query_factors, row, DIM, NEAR, FAR, INTERPRET
    )

    column = tl.arange(0, COLUMNS)
    near_gradient, far_gradient = tl.zeros([ROWS, WIDTH], tl.float32), 0
    if IN_ONE and FAR > 0:
        far_gradient = tl.zeros([ROWS, FAR], tl.float32)
    first_visit = part * visits_per_program
    for visit in range(first_visit, tl.minimum(first_visit + visits_per_program, visits)):
        document = tl.cast(visit, tl.int64)
        item = document if LAYOUT == "CROSS" else own_query * documents_per_query + document
        document_rows = documents + document * document_stride
        grad_score = tl.load(grad_scores + query * documents_per_query + document, mask=live, other=0.0)
        if LAYOUT == "CROSS":
            at = document * query_count * max_query_length + row
        else:
            document_rows += own_query * document_outer_stride
            at = item * max_query_length + query_token
        has_gradient = live & (grad_score != 0)
        origin = tl.load(sums + at, mask=has_gradient, other=float("inf")) * _LOG2E
        end = tl.where(tl.max(has_gradient.to(tl.int32), axis=0) > 0, max_document_length, 0)
        for first in range(0, end, COLUMNS):
            left = end - first
            token = first + tl.minimum(column, left - 1)
            rows = document_rows + token.to(tl.int64) * document_row_stride
            near_gradient, far_gradient = _visit(
                near_gradient,
                far_gradient,
                query_rows,
                live,
                near,
                near_low,
                far,
                far_low,
                query_factor,
                rows,
                left > 0,
                document_factors,
                item * max_document_length + token,
                origin[:, None],
                grad_score[:, None],
                scale,
                column < left,
                left < COLUMNS,
                dims,
                DIM,
                ROWS,
                COLUMNS,
                NEAR,
                FAR,
                BLOCK_D,
                LACKS,
                PRECISION,
                INTERPRET,
            )

    factor = tl.full([ROWS], 1.0, tl.float32)
    if factors is not None:
        factor = tl.load(factors + query, mask=live, other=0.0)
    target = gradient + (part.to(tl.int64) * query_count * max_query_length + row) * DIM
    _store(target, near_gradient, factor, live, dims, DIM)
    if IN_ONE and FAR > 0:
        _store(target, far_gradient, factor, live, NEAR + tl.arange(0, FAR), DIM)


@triton.jit(do_not_specialize=_SIZES)
def smooth_maxsim_document_gradient(
    queries,  # [A * Lq, d]; as maxsim_halves splits them where there are factors
    documents,  # [B, Ld, d] or [A, K, Ld, d]; likewise
    query_factors,  # [A * Lq]; or None
    document_factors,  # as documents without d, contiguous; or None
    sums,  # [B, A, Lq] or [A, K, Lq] float32, contiguous
    grad_scores,  # [A, B] or [A, K] float32, contiguous
    factors,  # [B] or [A * K] by which the gradient is multiplied in the end; or None
    gradient,  # as documents, contiguous; before it a dimension of parts where a tile is shared
    query_row_stride,
    document_outer_stride,
    document_stride,
    document_row_stride,
    query_count,
    documents_per_query,
    max_query_length,
    max_document_length,
    tiles,
    visits,
    visits_per_program,
    scale,  # log2(e) / tau
    LAYOUT: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    NEAR: tl.constexpr,
    FAR: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LACKS: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Write a tile of the documents' gradient: ``ROWS`` tokens of one, all dimensions or ``BLOCK_D`` of them.

    The program visits ``visits_per_program`` groups of query tokens, ``GROUP * COLUMNS`` each, under CROSS of the whole
    batch, wherever its queries begin and end, else of the document's own query.
    """
    IN_ONE: tl.constexpr = NEAR + FAR >= DIM
    BLOCKS: tl.constexpr = 1 if IN_ONE else (DIM + BLOCK_D - 1) // BLOCK_D
    WIDTH: tl.constexpr = NEAR if IN_ONE else BLOCK_D
    program = tl.program_id(0)
    dims = program % BLOCKS * WIDTH + tl.arange(0, WIDTH)
    tile = program // BLOCKS % tiles
    part = program // BLOCKS // tiles

    token_blocks = tl.cdiv(max_document_length, ROWS)
    item = (tile // token_blocks).to(tl.int64)
    token = tile % token_blocks * ROWS + tl.arange(0, ROWS)
    live = token < max_document_length
    # the rows that it meets are those of all queries, or of its own
    first_query, document = tl.cast(0, tl.int64), item
    row_count = tl.cast(query_count, tl.int64) * max_query_length
    if LAYOUT == "CANDIDATES":
        first_query, document = item // documents_per_query, item % documents_per_query
        row_count = tl.cast(max_query_length, tl.int64)
    met_queries = queries + first_query * max_query_length * query_row_stride
    met_sums = sums + item * row_count
    document_rows = (
        documents
        + first_query * document_outer_stride
        + document * document_stride
        + token.to(tl.int64) * document_row_stride
    )
    near, near_low, far, far_low, token_factor = load_own(
        document_rows, live, document_factors, item * max_document_length + token, DIM, NEAR, FAR, INTERPRET
    )

    column = tl.arange(0, COLUMNS)
    together = tl.arange(0, _GROUP * COLUMNS)
    near_gradient, far_gradient = tl.zeros([ROWS, WIDTH], tl.float32), 0
    if IN_ONE and FAR > 0:
        far_gradient = tl.zeros([ROWS, FAR], tl.float32)
    first_visit = part * visits_per_program
    for visit in range(first_visit, tl.minimum(first_visit + visits_per_program, visits)):
        first_row = tl.cast(visit, tl.int64) * (_GROUP * COLUMNS)
        count = tl.minimum(row_count - first_row, _GROUP * COLUMNS).to(tl.int32)
        group_scores = grad_scores + (first_query + first_row // max_query_length) * documents_per_query + document
        group_token = (first_row % max_query_length).to(tl.int32)
        group_query = (group_token + together) // max_query_length
        any_score = (
            tl.load(group_scores + group_query.to(tl.int64) * documents_per_query, mask=together < count, other=0.0)
            != 0
        )
        end = tl.where(tl.max(any_score.to(tl.int32), axis=0) > 0, count, 0)
        for first in range(0, end, COLUMNS):
            left = end - first
            exists = column < left
            row = first_row + first + column
            query = (group_token + first + column) // max_query_length
            # in one load, too large to be repeated by every thread that needs some of it
            which = tl.arange(0, 2)[None, :]
            score_places = group_scores + query.to(tl.int64) * documents_per_query
            places = tl.where(which == 0, (met_sums + row)[:, None], score_places[:, None])
            origin, grad_score = tl.split(tl.load(places, mask=exists[:, None] & (which < 2), other=0.0))
            origin = tl.where(grad_score != 0, origin * _LOG2E, float("inf"))
            rows = met_queries + row * query_row_stride
            near_gradient, far_gradient = _visit(
                near_gradient,
                far_gradient,
                document_rows,
                live,
                near,
                near_low,
                far,
                far_low,
                token_factor,
                rows,
                exists,
                query_factors,
                first_query * max_query_length + row,
                origin[None, :],
                grad_score[None, :],
                scale,
                exists,
                left < COLUMNS,
                dims,
                DIM,
                ROWS,
                COLUMNS,
                NEAR,
                FAR,
                BLOCK_D,
                LACKS,
                PRECISION,
                INTERPRET,
            )

    factor = tl.full([ROWS], 1.0, tl.float32)
    if factors is not None:
        factor *= tl.load(factors + item)
    items = tiles // token_blocks
    target = gradient + ((part.to(tl.int64) * items + item) * max_document_length + token) * DIM
    _store(target, near_gradient, factor, live, dims, DIM)
    if IN_ONE and FAR > 0:
        _store(target, far_gradient, factor, live, NEAR + tl.arange(0, FAR), DIM)
