"""MaxSim's forward in Triton: one program scores a few queries against one document.

With ``P`` pairs of a query and a document, ``s`` bytes per element and ``QUERIES`` queries per program:

* operations: ``2 * P * Lq * Ld * d`` on tensor cores (fp16, bf16) or on fp32 units, at least two more per similarity
  for the running maximum, five with winners;
* bytes: ``s * d`` for each query token and each document token, 4 per score, ``4 * Lq`` per pair for winners. A
  document's tiles are read once per program that meets it, ``A / QUERIES`` times: neighbours in the grid share the
  document, so all but the first find it in L2.
"""

import triton
import triton.language as tl

from li_plugins.ops.maxsim.triton_tiles import item_span, load_factor, load_rows

# Sizes that change from call to call: without this each multiple of 16, and 1, would be compiled apart.
_SIZES = ("query_count", "documents_per_query", "max_query_length", "max_document_length", "first_program")


@triton.jit(do_not_specialize=_SIZES)
def maxsim_forward(
    queries,  # [A, Lq, d] or [Tq, d]
    documents,  # [B, Ld, d], [A, K, Ld, d] or [Td, d]
    query_weights,  # as queries without d, contiguous; or None
    document_mask,  # as documents without d, contiguous; or None
    document_lengths,  # [B] or [A * K]; or None
    query_offsets,  # [A + 1] int64, for packed layouts; or None
    document_offsets,  # [B + 1] int64, for packed layouts; or None
    pair_queries,  # [P] int64, for PACKED_PAIRS; or None
    pair_documents,  # [P] int64, for PACKED_PAIRS; or None
    floor,  # [B] or [P], for packed layouts; or None
    scores,  # [A, B], [A, K] or [P]
    winners,  # scores' shape and [max_query_length] int32; or None
    query_stride,
    query_row_stride,
    document_outer_stride,
    document_stride,
    document_row_stride,
    query_count,
    documents_per_query,
    max_query_length,
    max_document_length,
    first_program,
    fill,
    empty_score,
    RULE: tl.constexpr,
    CANDIDATES: tl.constexpr,
    DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Write the scores, and the winners unless None, of ``QUERIES`` queries (1 unless crossed) and one document.

    A tile's rows are ``TOKENS`` tokens of each of the queries; longer queries (``QUERIES`` is 1 then) take several
    rounds over the document. Products, maxima and the sum over query tokens are fp32; the score is rounded once, when
    it is stored.
    """
    # Which pair
    program = tl.program_id(0).to(tl.int64) + first_program
    if pair_queries is not None:
        first_query = tl.load(pair_queries + program)
        document = tl.load(pair_documents + program)
        pair, pair_step = program, 0
    elif CANDIDATES:
        first_query = program // documents_per_query
        document = program
        pair, pair_step = program, 0
    else:
        groups = tl.cdiv(query_count, QUERIES)
        first_query = program % groups * QUERIES
        document = program // groups
        pair, pair_step = first_query * documents_per_query + document, documents_per_query

    # Where it lies
    document_first, length, document_start = item_span(
        document, True, document_offsets, document_lengths, document_stride, document_row_stride, max_document_length
    )
    if CANDIDATES:
        document_start = first_query * document_outer_stride + program % documents_per_query * document_stride
    row = tl.arange(0, QUERIES * TOKENS)
    query = first_query + row // TOKENS
    query_live = query < query_count
    query_first, query_length, query_start = item_span(
        query, query_live, query_offsets, None, query_stride, query_row_stride, max_query_length
    )
    column = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_K)
    EVEN: tl.constexpr = DIM % BLOCK_K == 0 and DIM > 0

    # A document without any token to choose from has length 0
    if RULE == "EXCLUDE" and document_mask is not None:
        first_kept = length
        for start in range(0, length, BLOCK_N):
            token = start + column
            mask = load_factor(document_mask, document_first + token, token < length, INTERPRET)
            first_kept = tl.minimum(first_kept, tl.min(tl.where(mask != 0, token, length), axis=0))
        length = tl.where(first_kept < length, length, 0)

    total = tl.zeros([QUERIES], tl.float32)
    for round_start in range(0, tl.max(query_length, axis=0), TOKENS):
        query_token = round_start + row % TOKENS
        live = query_token < query_length
        query_rows = queries + query_start + query_token.to(tl.int64) * query_row_stride
        if DIM <= BLOCK_K:
            query_tile = load_rows(query_rows, live, dims, DIM, EVEN, INTERPRET)
        if query_weights is not None:
            weight = load_factor(query_weights, query_first + query_token, live, INTERPRET).to(tl.float32)

        # Running maxima per row and column, and the tile they came from; one reduction over the columns at the end
        best = tl.full([QUERIES * TOKENS, BLOCK_N], float("-inf"), tl.float32)
        best_start = tl.zeros([QUERIES * TOKENS, BLOCK_N], tl.int32)
        for start in range(0, length, BLOCK_N):
            token = start + column
            exists = token < length
            document_rows = documents + document_start + token.to(tl.int64) * document_row_stride
            if DIM <= BLOCK_K:
                document_tile = load_rows(document_rows, exists, dims, DIM, EVEN, INTERPRET)
                similarity = tl.dot(query_tile, tl.trans(document_tile), input_precision=PRECISION)
            else:
                similarity = tl.zeros([QUERIES * TOKENS, BLOCK_N], tl.float32)
                for k in range(0, DIM, BLOCK_K):
                    query_tile = load_rows(query_rows, live, k + dims, DIM, EVEN, INTERPRET)
                    document_tile = load_rows(document_rows, exists, k + dims, DIM, EVEN, INTERPRET)
                    similarity = tl.dot(query_tile, tl.trans(document_tile), similarity, input_precision=PRECISION)
            if RULE == "ZERO" and query_weights is not None:
                similarity *= weight[:, None]
            if document_mask is not None:
                mask = load_factor(document_mask, document_first + token, exists, INTERPRET)
                if RULE == "ZERO":
                    similarity *= mask.to(tl.float32)[None, :]
                elif RULE == "FILL":
                    similarity = tl.where((mask != 0)[None, :], similarity, fill)
                else:
                    exists = exists & (mask != 0)
            similarity = tl.where(exists[None, :], similarity, float("-inf"))
            if winners is not None:
                stays = (similarity <= best) | (
                    best != best
                )  # the first of equals stays; the first NaN comes and stays
                best = tl.where(stays, best, similarity)
                best_start = tl.where(stays, best_start, start)
            else:
                best = tl.maximum(best, similarity, propagate_nan=tl.PropagateNan.ALL)

        value = tl.max(best, axis=1)  # drops NaN
        is_nan = tl.max((best != best).to(tl.int32), axis=1) > 0
        value = tl.where(is_nan, float("nan"), value)
        if winners is not None:
            is_best = (best == value[:, None]) | (best != best)
            winner = tl.min(tl.where(is_best, best_start + column[None, :], 2147483647), axis=1)
            if document_mask is not None:
                if RULE == "EXCLUDE":
                    winner = tl.where(value == float("-inf"), first_kept, winner)
                else:
                    kept = load_factor(document_mask, document_first + winner, live & (winner < length), INTERPRET)
                    winner = tl.where(kept != 0, winner, -1)
            winner = tl.where(length > 0, winner, -1)
        if floor is not None:
            is_floored = tl.load(floor + (document if pair_queries is None else program)) != 0
            floored = value < tl.where(is_floored, 0.0, float("-inf"))
            value = tl.where(floored, 0.0, value)
            if winners is not None:
                winner = tl.where(floored, -1, winner)
        if winners is not None:
            winner_row = (pair + (row // TOKENS).to(tl.int64) * pair_step) * max_query_length
            tl.store(winners + winner_row + query_token, winner, mask=live)
        if RULE != "ZERO" and query_weights is not None:
            value *= weight
        total += tl.sum(tl.reshape(tl.where(live, value, 0.0), [QUERIES, TOKENS]), axis=1)

    slot = tl.arange(0, QUERIES)
    score = tl.where(length > 0, total, empty_score)
    tl.store(
        scores + pair + slot.to(tl.int64) * pair_step,
        score.to(scores.dtype.element_ty),
        mask=first_query + slot < query_count,
    )
