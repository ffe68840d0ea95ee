"""The documents' gradient where many query tokens meet each document: their rows sorted by winner, then added up.

With ``R = A * Lq`` query tokens, ``B`` documents and ``s`` bytes per element:

* counting and sorting (``maxsim_count_winners``, ``maxsim_sort_winners``): each winner is read twice, 2 or 4 bytes
  written per query token and document whose score has a gradient; no product;
* adding (``maxsim_sorted_gradient``): ``2 * R * B * BIN * d`` operations on tensor cores for each piece of a factor
  instead of the ``2 * R * B * Ld * d`` of a product with all tokens, and ``s * d + 10`` bytes (from L2, whose bandwidth
  is the limit) per query token and document; writes ``s * d`` per document token.

The order within a bin is that of the query tokens, so two runs add in the same order.
"""

import triton
import triton.language as tl

from li_plugins.ops.maxsim.triton_tiles import item_span, load_factor, load_rows

ROWS_OF_A_THREAD = 8
"""Winners that are counted in 4 bits each before anything is shared."""
CHUNK = 1024
"""Winners that a program counts or sorts."""
BINS_AT_ONCE = 16
"""Counters of 4 bits in a 64-bit number."""

_ROWS = tl.constexpr(ROWS_OF_A_THREAD)
_LINES = tl.constexpr(CHUNK // ROWS_OF_A_THREAD)
_CHUNK = tl.constexpr(CHUNK)
_BINS = tl.constexpr(BINS_AT_ONCE)
_SIZES = (
    "chunks",
    "first_document",
    "query_count",
    "documents_per_query",
    "max_query_length",
    "max_document_length",
)


@triton.jit
def _chunk_of_winners(grad_scores, winners, document, slots, documents_per_query, max_query_length):
    """Return a chunk of a document's winners and their slots, ``query * max_query_length + token``; ``[lines, rows]``.

    A winner is -1 where there is none, or where the score has no gradient.
    """
    slot = tl.program_id(1) * _CHUNK + tl.arange(0, _LINES)[:, None] * _ROWS + tl.arange(0, _ROWS)[None, :]
    exists = slot < slots
    place = (slot // max_query_length).to(tl.int64) * documents_per_query + document
    grad_score = tl.load(grad_scores + place, mask=exists, other=0.0)
    winner = tl.load(winners + document * slots + slot, mask=exists, other=-1).to(tl.int32)
    return tl.where(grad_score != 0, winner, -1), slot


@triton.jit(do_not_specialize=_SIZES)
def maxsim_count_winners(
    grad_scores,  # [A, B], contiguous
    winners,  # [B, slots]
    counts,  # [documents of this launch, BINS, chunks] int32
    slots,  # A * max_query_length
    chunks,
    first_document,
    query_count,
    documents_per_query,
    max_query_length,
    max_document_length,
    BIN: tl.constexpr,
    BINS: tl.constexpr,
):
    """Count the winners of one document in each bin of ``BIN`` tokens, for one chunk of query tokens.

    ``BINS`` is a power of two above the number of bins; the last one takes who won nothing.
    """
    line = tl.program_id(0).to(tl.int64)
    winner, _slot = _chunk_of_winners(
        grad_scores, winners, first_document + line, slots, documents_per_query, max_query_length
    )
    number = tl.reshape(tl.where(winner < 0, BINS - 1, winner // BIN), [_CHUNK])
    # to and fro: the interpreter of triton 3.1 counts in 64 bits and calls them 32
    count = tl.histogram(number, BINS).to(tl.int64).to(tl.int32)
    target = counts + (line * BINS + tl.arange(0, BINS)) * chunks + tl.program_id(1)
    tl.store(target, count)


@triton.jit(do_not_specialize=_SIZES)
def maxsim_sort_winners(
    grad_scores,  # [A, B], contiguous
    winners,  # [B, slots]
    ends,  # [documents of this launch, BINS, chunks] int32: the counts of maxsim_count_winners, summed up to each
    order,  # [documents of this launch, slots], of 16 or 32 bits: slots of query tokens
    slots,  # A * max_query_length
    chunks,
    first_document,
    query_count,
    documents_per_query,
    max_query_length,
    max_document_length,
    BIN: tl.constexpr,
    BINS: tl.constexpr,
):
    """Write one chunk of a document's query tokens where their bins are, in their order.

    Each winner's place is where its bin begins for this chunk, plus how many before it are of the same bin: those of
    the lines above, counted in 16 bits, and those in its own line of ``ROWS_OF_A_THREAD``, counted in 4.
    """
    line = tl.program_id(0).to(tl.int64)
    document = first_document + line
    winner, slot = _chunk_of_winners(grad_scores, winners, document, slots, documents_per_query, max_query_length)
    is_won = winner >= 0
    bin_of = winner // BIN
    # where the bin begins for this chunk: where the chunk before it ends, or the bin before
    before = bin_of * chunks + tl.program_id(1) - 1
    begin = tl.load(ends + line * BINS * chunks + before, mask=is_won & (before >= 0), other=0)
    one = tl.full([_LINES, _ROWS], 1, tl.int64)
    for first_bin in range(0, tl.cdiv(max_document_length, BIN), _BINS):
        relative = bin_of - first_bin
        is_here = is_won & (relative >= 0) & (relative < _BINS)
        relative = tl.where(is_here, relative, 0)
        shift = relative.to(tl.int64) * 4
        mine = tl.where(is_here, one << shift, 0)
        up_to = tl.cumsum(mine, 1)
        counts = tl.sum(mine, 1)
        rank = ((up_to >> shift) & 15).to(tl.int32) - 1
        part = relative // 4
        above = tl.zeros([_LINES, _ROWS], tl.int64)
        for four in tl.static_range(_BINS // 4):
            # four counters of 4 bits, one in every 16
            nibbles = counts >> (16 * four)
            wide = (nibbles & 15) | ((nibbles & 0xF0) << 12) | ((nibbles & 0xF00) << 24) | ((nibbles & 0xF000) << 36)
            lines_above = tl.cumsum(wide, 0) - wide
            above = tl.where(part == four, lines_above[:, None], above)
        rank += ((above >> ((relative % 4).to(tl.int64) * 16)) & 0xFFFF).to(tl.int32)
        tl.store(order + line * slots + begin + rank, slot.to(order.dtype.element_ty), mask=is_here)


@triton.jit(do_not_specialize=_SIZES)
def maxsim_sorted_gradient(
    queries,  # [A, Lq, d] or [Tq, d]
    query_weights,  # as queries without d, contiguous; or None
    document_mask,  # as documents without d, contiguous, under ZERO; or None
    query_offsets,  # [A + 1]; or None
    document_offsets,  # [B + 1]; or None
    grad_scores,  # [A, B], contiguous
    winners,  # [B, slots]
    ends,  # as in maxsim_sort_winners
    order,  # what maxsim_sort_winners wrote
    grad_documents,  # as documents, contiguous
    query_stride,
    query_row_stride,
    slots,
    chunks,
    first_document,
    query_count,
    documents_per_query,
    max_query_length,
    max_document_length,
    DIM: tl.constexpr,
    BIN: tl.constexpr,
    BINS: tl.constexpr,
    ENTRIES: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PIECES: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Write ``[BIN, BLOCK_D]`` of the gradient of one document: the sum of the query rows that its tokens won.

    ``ENTRIES`` rows at a time are multiplied with a matrix that holds each one's factor in the row of the token it
    belongs to. A factor is the sum of ``PIECES`` numbers of the embeddings' dtype, which together are as precise as it.
    """
    DIM_BLOCKS: tl.constexpr = (DIM + BLOCK_D - 1) // BLOCK_D
    EVEN: tl.constexpr = DIM % BLOCK_D == 0
    program = tl.program_id(0)
    blocks = tl.cdiv(max_document_length, BIN)
    dims = program % DIM_BLOCKS * BLOCK_D + tl.arange(0, BLOCK_D)
    number = program // DIM_BLOCKS % blocks
    line = (program // DIM_BLOCKS // blocks).to(tl.int64)
    document = first_document + line
    after = ends + (line * BINS + number) * chunks - 1
    begin = tl.load(after, mask=number > 0, other=0)
    end = tl.load(after + chunks)
    token = tl.arange(0, BIN)

    gradient = tl.zeros([BIN, BLOCK_D], tl.float32)
    for start in range(begin, end, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        live = entry < end
        slot = tl.load(order + line * slots + entry, mask=live, other=0).to(tl.int32)
        if order.dtype.element_ty == tl.int16:
            slot = slot & 0xFFFF
        winner = tl.load(winners + document * slots + slot, mask=live, other=0).to(tl.int32)
        query = (slot // max_query_length).to(tl.int64)
        query_token = slot % max_query_length
        rest = tl.load(grad_scores + query * documents_per_query + document, mask=live, other=0.0).to(tl.float32)
        query_first, _length, query_start = item_span(
            query, live, query_offsets, None, query_stride, query_row_stride, max_query_length
        )
        if query_weights is not None:
            rest *= load_factor(query_weights, query_first + query_token, live, INTERPRET).to(tl.float32)
        rows = queries + query_start + query_token.to(tl.int64) * query_row_stride
        query_tile = load_rows(rows, live, dims, DIM, EVEN, INTERPRET)
        is_won = (winner % BIN)[None, :] == token[:, None]
        for _piece in tl.static_range(PIECES):
            piece = rest.to(query_tile.dtype)
            matrix = tl.where(is_won, piece[None, :], 0.0).to(query_tile.dtype)
            gradient = tl.dot(matrix, query_tile, gradient, input_precision=PRECISION)
            # what is no number is whole in its first piece
            rest = tl.where(tl.abs(rest) < float("inf"), rest - piece.to(tl.float32), 0.0)

    token += number * BIN
    document_first, length, _start = item_span(document, True, document_offsets, None, 0, 0, max_document_length)
    if document_mask is not None:
        factor = load_factor(document_mask, document_first + token, token < length, INTERPRET)
        gradient *= factor.to(tl.float32)[:, None]
    target = grad_documents + (document_first + token)[:, None] * DIM + dims[None, :]
    live = (token < length)[:, None] & (dims < DIM)[None, :]
    tl.store(target, gradient.to(grad_documents.dtype.element_ty), mask=live)
