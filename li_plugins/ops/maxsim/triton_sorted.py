"""The documents' gradient where many query tokens meet each document: their rows sorted by winner, then added up.

With ``R = A * Lq`` query tokens, ``B`` documents and ``s`` bytes per element:

* sorting (``maxsim_sort_winners``): each winner is read ``Ld / (4 * BIN)`` times, 8 bytes written per query token and
  document whose score has a gradient; no floating-point operation;
* adding (``maxsim_sorted_gradient``): ``2 * R * B * BIN * d`` operations on tensor cores instead of the
  ``2 * R * B * Ld * d`` of a product with all tokens, and ``s * d + 8`` bytes (from L2, whose bandwidth is the limit)
  per query token and document; writes ``s * d`` per document token.

The order within a bin is that of the query tokens, so two runs add in the same order.
"""

import triton
import triton.language as tl

from li_plugins.ops.maxsim.triton_tiles import item_span, load_factor, load_rows

_SIZES = ("first_document", "query_count", "documents_per_query", "max_query_length", "max_document_length")


@triton.jit
def _block_of_winners(
    grad_scores,
    winners,
    document,
    first_query,
    first_token,
    query_count,
    documents_per_query,
    max_query_length,
    QUERIES: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Return a block of a document's winners ``[QUERIES * TOKENS]``, -1 where the score has no gradient."""
    query = first_query + tl.arange(0, QUERIES)
    token = first_token + tl.arange(0, TOKENS)
    place = query.to(tl.int64) * documents_per_query + document
    grad_score = tl.load(grad_scores + place, mask=query < query_count, other=0.0)
    live = (grad_score != 0)[:, None] & (token < max_query_length)[None, :]
    slot = query[:, None] * max_query_length + token[None, :]
    winner = tl.load(winners + document * query_count * max_query_length + slot, mask=live, other=-1)
    return tl.reshape(winner.to(tl.int32), [QUERIES * TOKENS])


@triton.jit(do_not_specialize=_SIZES)
def maxsim_sort_winners(
    query_weights,  # as queries without d, contiguous; or None
    query_offsets,  # [A + 1]; or None
    grad_scores,  # [A, B], contiguous
    winners,  # [B, A, max_query_length]
    order,  # [documents of this launch, A * max_query_length] int32: query row * BIN + token within the bin
    factors,  # the same, fp32: what multiplies the query row
    bins,  # [documents of this launch, BINS] int32: where each bin begins in `order`
    first_document,
    query_count,
    documents_per_query,
    max_query_length,
    max_document_length,
    QUERIES: tl.constexpr,
    TOKENS: tl.constexpr,
    BIN: tl.constexpr,
    BINS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Sort the query tokens of one document by bins of ``BIN`` document tokens; program (document, share of the bins).

    A stable counting sort: a histogram first, then for four bins at a time a running count of each in 16 bits of a
    64-bit number. ``BINS`` is a power of two above the number of bins; the last one takes who won nothing.
    """
    line = tl.program_id(0).to(tl.int64)
    document = first_document + line
    entries = line * query_count * max_query_length
    counts = tl.zeros([BINS], tl.int32)
    for first_query in range(0, query_count, QUERIES):
        for first_token in range(0, max_query_length, TOKENS):
            winner = _block_of_winners(
                grad_scores,
                winners,
                document,
                first_query,
                first_token,
                query_count,
                documents_per_query,
                max_query_length,
                QUERIES,
                TOKENS,
            )
            counts += tl.histogram(tl.where(winner < 0, BINS - 1, winner // BIN), BINS)
    begins = tl.cumsum(counts, 0) - counts
    number = tl.arange(0, BINS)
    if tl.program_id(1) == 0:
        tl.store(bins + line * BINS + number, begins)

    for four in range(tl.program_id(1), tl.cdiv(tl.cdiv(max_document_length, BIN), 4), tl.num_programs(1)):
        place0 = tl.sum(tl.where(number == four * 4, begins, 0), 0)
        place1 = tl.sum(tl.where(number == four * 4 + 1, begins, 0), 0)
        place2 = tl.sum(tl.where(number == four * 4 + 2, begins, 0), 0)
        place3 = tl.sum(tl.where(number == four * 4 + 3, begins, 0), 0)
        for first_query in range(0, query_count, QUERIES):
            for first_token in range(0, max_query_length, TOKENS):
                winner = _block_of_winners(
                    grad_scores,
                    winners,
                    document,
                    first_query,
                    first_token,
                    query_count,
                    documents_per_query,
                    max_query_length,
                    QUERIES,
                    TOKENS,
                )
                token = winner - four * (4 * BIN)
                is_here = (winner >= 0) & (token >= 0) & (token < 4 * BIN)
                which = tl.where(is_here, token // BIN, 0)
                shift = which.to(tl.int64) * 16
                one = tl.where(is_here, tl.full([QUERIES * TOKENS], 1, tl.int64) << shift, 0)
                rank = ((tl.cumsum(one, 0) >> shift) & 0xFFFF).to(tl.int32) - 1
                total = tl.sum(one, 0)
                place = tl.where(which < 2, tl.where(which == 0, place0, place1), tl.where(which == 2, place2, place3))

                query = first_query + tl.arange(0, QUERIES)
                is_query = query < query_count
                query_first, _length, _start = item_span(
                    query.to(tl.int64), is_query, query_offsets, None, 0, 0, max_query_length
                )
                row = query_first[:, None].to(tl.int32) + (first_token + tl.arange(0, TOKENS))[None, :]
                row = tl.reshape(row, [QUERIES * TOKENS])
                where_scored = query.to(tl.int64) * documents_per_query + document
                grad_score = tl.load(grad_scores + where_scored, mask=is_query, other=0.0).to(tl.float32)
                factor = tl.reshape(tl.broadcast_to(grad_score[:, None], [QUERIES, TOKENS]), [QUERIES * TOKENS])
                if query_weights is not None:
                    factor *= load_factor(query_weights, row, is_here, INTERPRET).to(tl.float32)
                tl.store(order + entries + place + rank, row * BIN + token % BIN, mask=is_here)
                tl.store(factors + entries + place + rank, factor, mask=is_here)
                place0 += (total & 0xFFFF).to(tl.int32)
                place1 += ((total >> 16) & 0xFFFF).to(tl.int32)
                place2 += ((total >> 32) & 0xFFFF).to(tl.int32)
                place3 += ((total >> 48) & 0xFFFF).to(tl.int32)


@triton.jit(do_not_specialize=_SIZES)
def maxsim_sorted_gradient(
    queries,  # [A * Lq, d] or [Tq, d]
    document_mask,  # as documents without d, contiguous, under ZERO; or None
    document_offsets,  # [B + 1]; or None
    order,  # what maxsim_sort_winners wrote
    factors,
    bins,
    grad_documents,  # as documents, contiguous
    query_row_stride,
    first_document,
    query_count,
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
    begin = tl.load(bins + line * BINS + number)
    end = tl.load(bins + line * BINS + number + 1)
    first_entry = line * query_count * max_query_length
    token = tl.arange(0, BIN)

    gradient = tl.zeros([BIN, BLOCK_D], tl.float32)
    for start in range(begin, end, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        live = entry < end
        code = tl.load(order + first_entry + entry, mask=live, other=0)
        rest = tl.load(factors + first_entry + entry, mask=live, other=0.0)
        rows = queries + (code // BIN).to(tl.int64) * query_row_stride
        query_tile = load_rows(rows, live, dims, DIM, EVEN, INTERPRET)
        is_won = (code % BIN)[None, :] == token[:, None]
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
