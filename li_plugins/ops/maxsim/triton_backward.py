"""MaxSim's backward in Triton: each program owns a block of one gradient and visits the pairs that reach it.

Deterministic and without atomics, for every layout. With ``P`` pairs and ``s`` bytes per element:

* queries: ``2 * P * Lq * d`` operations; reads a winner (2 or 4 bytes) and a document row (``s * d``, mostly from L2,
  whose bandwidth is the limit) per query token and pair, writes ``s * d`` per query token;
* documents that one query meets each (candidates): ``2 * P * Lq**2 * d`` operations on tensor cores into a gradient
  that is all zeros; writes ``s * d`` per document token, and again per query token (in L2 where it writes the zeros
  itself);
* documents, where few query tokens meet each (pairs, a handful of queries): ``2 * P * Lq * Ld * d`` operations on
  tensor cores, because rows are added by a product with a 0/1 matrix; reads each winner ``Ld / BLOCK_N`` times and each
  winning query row once per block of ``d``, writes ``s * d`` per document token. Where many do, triton_sorted takes
  over.

A pair whose score has gradient 0 reads neither rows nor winners.
"""

import triton
import triton.language as tl

from li_plugins.ops.maxsim.triton_tiles import item_span, load_factor, load_rows

_ZEROED = tl.constexpr(64)
"""Tokens whose zeros are written at a time."""

_SIZES = ("query_count", "documents_per_query", "max_query_length", "max_document_length")


@triton.jit(do_not_specialize=_SIZES)
def maxsim_query_gradient(
    documents,  # [B, Ld, d], [A, K, Ld, d] or [Td, d]
    query_weights,  # as queries without d, contiguous; or None
    document_mask,  # as documents without d, contiguous, under ZERO; or None
    query_offsets,  # [A + 1]; or None
    document_offsets,  # [B + 1]; or None
    order,  # [P] pairs sorted by query, for PACKED_PAIRS; or None
    segments,  # [A + 1] where each query's pairs begin in `order`; or None
    pair_documents,  # [P]; or None
    grad_scores,  # [A, B], [A, K] or [P], contiguous
    winners,  # [B, A, max_query_length], or grad_scores' shape and [max_query_length]
    grad_queries,  # as queries, contiguous
    document_outer_stride,
    document_stride,
    document_row_stride,
    query_count,
    documents_per_query,
    max_query_length,
    max_document_length,
    LAYOUT: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    VISITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Write ``[ROWS, BLOCK_D]`` of the gradient of one query: the sum of its winners' rows, in fp32, rounded once.

    ``VISITS`` documents are visited at a time, so that as many loads are under way.
    """
    DIM_BLOCKS: tl.constexpr = (DIM + BLOCK_D - 1) // BLOCK_D
    EVEN: tl.constexpr = DIM % BLOCK_D == 0
    program = tl.program_id(0)
    token_blocks = tl.cdiv(max_query_length, ROWS)
    dims = program % DIM_BLOCKS * BLOCK_D + tl.arange(0, BLOCK_D)
    first_token = program // DIM_BLOCKS % token_blocks * ROWS
    query = (program // DIM_BLOCKS // token_blocks).to(tl.int64)
    query_first, query_length, _query_start = item_span(query, True, query_offsets, None, 0, 0, max_query_length)

    begin, count = query * documents_per_query, documents_per_query
    if LAYOUT == "PAIRS":
        begin = tl.load(segments + query)
        count = (tl.load(segments + query + 1) - begin).to(tl.int32)
    # An entry is one of ROWS tokens with one of VISITS documents
    entry = tl.arange(0, VISITS * ROWS)
    entry_token = first_token + entry % ROWS
    gradient = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for first_visit in range(0, count, VISITS):
        visit = first_visit + entry // ROWS
        is_visit = visit < count
        pair = begin + visit
        if LAYOUT == "PAIRS":
            pair = tl.load(order + pair, mask=is_visit, other=0)
            document = tl.load(pair_documents + pair, mask=is_visit, other=0)
        elif LAYOUT == "CANDIDATES":
            document = pair
        else:
            document = visit.to(tl.int64)
        document_first, _length, document_start = item_span(
            document, is_visit, document_offsets, None, document_stride, document_row_stride, max_document_length
        )
        if LAYOUT == "CANDIDATES":
            document_start = query * document_outer_stride + visit * document_stride
        winner_row = (document * query_count + query) if LAYOUT == "CROSS" else pair
        grad_score = tl.load(grad_scores + pair, mask=is_visit, other=0.0).to(tl.float32)
        live = (grad_score != 0) & (entry_token < query_length)
        winner = tl.load(winners + winner_row * max_query_length + entry_token, mask=live, other=-1).to(tl.int32)
        won = winner >= 0
        share = tl.where(won, grad_score, 0.0)
        if document_mask is not None:
            share *= load_factor(document_mask, document_first + winner, won, INTERPRET).to(tl.float32)
        rows = documents + document_start + winner.to(tl.int64) * document_row_stride
        terms = share[:, None] * load_rows(rows, won, dims, DIM, EVEN, INTERPRET).to(tl.float32)
        gradient += tl.sum(tl.reshape(terms, [VISITS, ROWS, BLOCK_D]), axis=0)

    token = first_token + tl.arange(0, ROWS)
    live = token < query_length
    if query_weights is not None:
        gradient *= load_factor(query_weights, query_first + token, live, INTERPRET).to(tl.float32)[:, None]
    target = grad_queries + (query_first + token)[:, None] * DIM + dims[None, :]
    tl.store(target, gradient.to(grad_queries.dtype.element_ty), mask=live[:, None] & (dims < DIM)[None, :])


@triton.jit(do_not_specialize=_SIZES)
def maxsim_document_gradient(
    queries,  # [A, Lq, d] or [Tq, d]
    query_weights,  # as queries without d, contiguous; or None
    document_mask,  # as documents without d, contiguous, under ZERO; or None
    document_lengths,  # [B] or [A * K]; or None
    query_offsets,  # [A + 1]; or None
    document_offsets,  # [B + 1]; or None
    order,  # [P] pairs sorted by document, for PACKED_PAIRS; or None
    segments,  # [B + 1] where each document's pairs begin in `order`; or None
    pair_queries,  # [P]; or None
    grad_scores,  # [A, B], [A, K] or [P], contiguous
    winners,  # [B, A, max_query_length], or grad_scores' shape and [max_query_length]
    grad_documents,  # as documents, contiguous
    query_stride,
    query_row_stride,
    query_count,
    documents_per_query,
    max_query_length,
    max_document_length,
    LAYOUT: tl.constexpr,
    DIM: tl.constexpr,
    QUERY_TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EXACT_WEIGHTS: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Write ``[BLOCK_N, BLOCK_D]`` of the gradient of one document: the sum of the query rows that its tokens won.

    For each pair a matrix ``[BLOCK_N, QUERY_TOKENS]`` that says who won what (times the query weights) is multiplied
    with the query's rows; the pair's gradient multiplies the product in fp32. 0 and 1 and ``EXACT_WEIGHTS`` are exact
    in 16 bits; other weights take the product to fp32 operands.
    """
    DIM_BLOCKS: tl.constexpr = (DIM + BLOCK_D - 1) // BLOCK_D
    EVEN: tl.constexpr = DIM % BLOCK_D == 0
    program = tl.program_id(0)
    document_blocks = tl.cdiv(max_document_length, BLOCK_N)
    query_blocks = tl.cdiv(max_query_length, QUERY_TOKENS)
    dims = program % DIM_BLOCKS * BLOCK_D + tl.arange(0, BLOCK_D)
    block_start = program // DIM_BLOCKS % document_blocks * BLOCK_N
    document = (program // DIM_BLOCKS // document_blocks).to(tl.int64)
    document_first, length, _document_start = item_span(
        document, True, document_offsets, document_lengths, 0, 0, max_document_length
    )
    token = block_start + tl.arange(0, BLOCK_N)

    gradient = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if LAYOUT == "CANDIDATES":
        begin, count = document, 1
    elif LAYOUT == "PAIRS":
        begin = tl.load(segments + document)
        count = (tl.load(segments + document + 1) - begin).to(tl.int32)
    else:
        begin, count = document, query_count
    # One flat loop over the blocks of all queries; a block without a token of this document visits nobody
    steps = tl.where(block_start < length, count * query_blocks, 0)
    for step in range(0, steps):
        visit = step // query_blocks
        if LAYOUT == "PAIRS":
            pair = tl.load(order + begin + visit)
            query = tl.load(pair_queries + pair)
            winner_row = pair * max_query_length
        elif LAYOUT == "CANDIDATES":
            pair = begin
            query = document // documents_per_query
            winner_row = pair * max_query_length
        else:
            query = visit.to(tl.int64)
            pair = query * documents_per_query + document
            winner_row = (document * query_count + query) * max_query_length
        query_first, query_length, query_start = item_span(
            query, True, query_offsets, None, query_stride, query_row_stride, max_query_length
        )
        query_token = step % query_blocks * QUERY_TOKENS + tl.arange(0, QUERY_TOKENS)
        grad_score = tl.load(grad_scores + pair).to(tl.float32)
        live = query_token < tl.where(grad_score != 0, query_length, 0)
        winner = tl.load(winners + winner_row + query_token, mask=live, other=-1).to(tl.int32)
        here = (winner >= block_start) & (winner < block_start + BLOCK_N)
        rows = queries + query_start + query_token.to(tl.int64) * query_row_stride
        query_tile = load_rows(rows, here, dims, DIM, EVEN, INTERPRET)
        is_won = winner[None, :] == token[:, None]
        share = tl.where(is_won, 1.0, 0.0)
        if query_weights is not None:
            weight = load_factor(query_weights, query_first + query_token, here, INTERPRET).to(tl.float32)
            share = tl.where(is_won, weight[None, :], 0.0)
            if not EXACT_WEIGHTS:
                query_tile = query_tile.to(tl.float32)
        product = tl.dot(share.to(query_tile.dtype), query_tile, input_precision=PRECISION)
        # a gradient of Inf or NaN reaches the tokens that won, not those whose product is 0
        has_won = tl.max(is_won.to(tl.int32), axis=1) > 0
        gradient += tl.where(has_won, grad_score, 0.0)[:, None] * product

    if document_mask is not None:
        gradient *= load_factor(document_mask, document_first + token, token < length, INTERPRET).to(tl.float32)[
            :, None
        ]
    # in a padded document the tokens past its length get the zeros that were not added to
    end = length if document_offsets is not None else max_document_length
    target = grad_documents + (document_first + token)[:, None] * DIM + dims[None, :]
    tl.store(target, gradient.to(grad_documents.dtype.element_ty), mask=(token < end)[:, None] & (dims < DIM)[None, :])


@triton.jit(do_not_specialize=_SIZES)
def maxsim_candidate_gradient(
    queries,  # [A, Lq, d]
    query_weights,  # [A, Lq], contiguous; or None
    document_mask,  # [A, K, Ld], contiguous, under ZERO; or None
    grad_scores,  # [A, K], contiguous
    winners,  # [A, K, Lq]
    grad_documents,  # [A, K, Ld, d], contiguous; zeros unless IS_ALONE
    query_stride,
    query_row_stride,
    query_count,
    documents_per_query,
    max_query_length,
    max_document_length,
    DIM: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    IS_ALONE: tl.constexpr,
    EXACT_WEIGHTS: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Write the gradient of the tokens that ``TOKENS`` tokens of a query chose in one of its candidates.

    A matrix that says who chose the same token is multiplied with the query's rows. So everybody who did writes the
    same sum to the same place. The pair's gradient multiplies it in fp32. A program that ``IS_ALONE`` with a candidate
    writes zeros to all of its tokens before.
    """
    DIM_BLOCKS: tl.constexpr = (DIM + BLOCK_D - 1) // BLOCK_D
    EVEN: tl.constexpr = DIM % BLOCK_D == 0
    program = tl.program_id(0)
    token_blocks = tl.cdiv(max_query_length, TOKENS)
    dims = program % DIM_BLOCKS * BLOCK_D + tl.arange(0, BLOCK_D)
    token = program // DIM_BLOCKS % token_blocks * TOKENS + tl.arange(0, TOKENS)
    document = (program // DIM_BLOCKS // token_blocks).to(tl.int64)
    query = document // documents_per_query
    grad_score = tl.load(grad_scores + document).to(tl.float32)
    length = tl.where(grad_score != 0, max_query_length, 0)
    chosen = tl.load(winners + document * max_query_length + token, mask=token < length, other=-1).to(tl.int32)

    if IS_ALONE:
        nothing = tl.zeros([_ZEROED, BLOCK_D], grad_documents.dtype.element_ty)
        for first in range(0, max_document_length, _ZEROED):
            at = first + tl.arange(0, _ZEROED)
            target = grad_documents + (document * max_document_length + at)[:, None] * DIM + dims[None, :]
            tl.store(target, nothing, mask=(at < max_document_length)[:, None] & (dims < DIM)[None, :])
        tl.debug_barrier()  # what is written over them comes after

    gradient = tl.zeros([TOKENS, BLOCK_D], tl.float32)
    for start in range(0, length, TOKENS):
        other = start + tl.arange(0, TOKENS)
        live = other < length
        winner = tl.load(winners + document * max_query_length + other, mask=live, other=-1).to(tl.int32)
        rows = queries + query * query_stride + other.to(tl.int64) * query_row_stride
        query_tile = load_rows(rows, winner >= 0, dims, DIM, EVEN, INTERPRET)
        is_same = chosen[:, None] == winner[None, :]
        share = tl.where(is_same, 1.0, 0.0)
        if query_weights is not None:
            weight = load_factor(query_weights, query * max_query_length + other, live, INTERPRET).to(tl.float32)
            share = tl.where(is_same, weight[None, :], 0.0)
            if not EXACT_WEIGHTS:
                query_tile = query_tile.to(tl.float32)
        gradient = tl.dot(share.to(query_tile.dtype), query_tile, gradient, input_precision=PRECISION)
    gradient *= grad_score
    place = document * max_document_length + chosen
    if document_mask is not None:
        factor = load_factor(document_mask, place, chosen >= 0, INTERPRET)
        gradient *= factor.to(tl.float32)[:, None]
    target = grad_documents + place[:, None] * DIM + dims[None, :]
    live = (chosen >= 0)[:, None] & (dims < DIM)[None, :]
    tl.store(target, gradient.to(grad_documents.dtype.element_ty), mask=live)
