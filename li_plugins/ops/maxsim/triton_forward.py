"""MaxSim's forward in Triton: a program scores a tile of query tokens against several documents, one after the other.

With ``P`` pairs of a query and a document, ``s`` bytes per element and ``ROWS`` query tokens in a tile:

* operations: ``2 * P * Lq * Ld * d`` on tensor cores (fp16, bf16) or in fp32, one more per similarity for the maximum,
  three with winners;
* bytes: ``s * d`` for each query token and each document token, 4 per score, 2 or 4 ``* Lq`` per pair for winners. A
  document's tiles are read ``A * Lq / ROWS`` times: neighbours in the grid share the document, so all but the first
  find it in L2, whose bandwidth is what ROWS is chosen for.

No tile is masked at its end. The last one begins early enough to end with the document, and what it sees again cannot
win again: the first of equals stays.
"""

import triton
import triton.language as tl

from li_plugins.ops.maxsim.triton_kept import KEPT_FIELDS
from li_plugins.ops.maxsim.triton_similarities import load_own, similarities
from li_plugins.ops.maxsim.triton_tiles import (
    CLASSES,
    FORWARD_SIZES,
    best_and_column,
    best_of_classes,
    item_span,
    larger,
    largest,
    load_factor,
    place_of_program,
    store_scores,
    sum_by_query,
)

_CLASSES = tl.constexpr(CLASSES)
_FIELDS = tl.constexpr(KEPT_FIELDS)
_FAR = tl.constexpr(2**30)


@triton.jit
def _tile(
    documents,
    document_factors,
    document_first,
    document_start,
    first,
    column,
    end,
    row_stride,
    query_rows,
    query_live,
    near_query,
    far_query,
    near_low,
    far_low,
    query_factor,
    DIM: tl.constexpr,
    NEAR: tl.constexpr,
    FAR: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Return the similarities ``[ROWS, BLOCK_N]`` of the query tile with the tokens from ``first`` on, up to ``end``.

    A document shorter than a tile repeats its last token.
    """
    token = tl.minimum(column, end - 1)
    rows = documents + document_start + first.to(tl.int64) * row_stride + token.to(tl.int64) * row_stride
    factor = 0.0
    if document_factors is not None:
        factor = tl.load(document_factors + document_first + first + token)
    similarity, _near, _low, _far, _far_low = similarities(
        query_rows,
        query_live,
        near_query,
        near_low,
        far_query,
        far_low,
        query_factor,
        rows,
        end > 0,
        token >= 0,
        document_factors,
        factor,
        DIM,
        NEAR,
        FAR,
        ROWS,
        BLOCK_N,
        PRECISION,
        INTERPRET,
    )
    return similarity, first + token


@triton.jit
def _ruled(
    similarity,
    weight,
    query_weights,
    document_mask,
    mask_token,
    is_full,
    fill,
    RULE: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Return the similarities as the mask rule has them; ``is_full`` says that no mask of this document matters."""
    if RULE == "ZERO" and query_weights is not None:
        similarity *= weight[:, None]
    if document_mask is not None:
        factor = load_factor(document_mask, mask_token, is_full == 0, INTERPRET)
        if is_full == 0:
            if RULE == "ZERO":
                similarity *= factor.to(tl.float32)[None, :]
            elif RULE == "FILL":
                similarity = tl.where((factor != 0)[None, :], similarity, fill)
            else:
                similarity = tl.where((factor != 0)[None, :], similarity, float("-inf"))
    return similarity


@triton.jit
def _document(
    number,
    pair,
    first_query,
    documents_per_query,
    pair_documents,
    document_offsets,
    document_lengths,
    kept,
    document_outer_stride,
    document_stride,
    document_row_stride,
    max_document_length,
    RULE: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """Return what there is to know of the ``number``-th document of a program.

    These are: its index, its first token, its length, the element where it begins, the end of what there is to look at
    (a document without any token to choose from has length 0), whether no mask matters before that, and the first token
    that is kept.
    """
    if LAYOUT == "PAIRS":
        document = tl.load(pair_documents + pair)
    elif LAYOUT == "CANDIDATES":
        document = first_query * documents_per_query + number
    else:
        document = number
    document_first, length, document_start = item_span(
        document, True, document_offsets, document_lengths, document_stride, document_row_stride, max_document_length
    )
    if LAYOUT == "CANDIDATES":
        document_start = first_query * document_outer_stride + number * document_stride
    end, is_full, first_kept = length, 1, 0
    if kept is not None:
        first_kept = tl.load(kept + document * _FIELDS)
        end = tl.load(kept + document * _FIELDS + 1)
        is_full = tl.load(kept + document * _FIELDS + 2)
        if RULE == "EXCLUDE":
            length = end
    return document, document_first, length, document_start, end, is_full, first_kept


@triton.jit(do_not_specialize=FORWARD_SIZES)
def maxsim_forward(
    queries,  # [A, Lq, d] or [Tq, d]; as maxsim_halves splits them where there are factors
    documents,  # [B, Ld, d], [A, K, Ld, d] or [Td, d]; likewise
    query_factors,  # as queries without d, contiguous; or None
    document_factors,  # as documents without d, contiguous; or None
    query_weights,  # as queries without d, contiguous; or None
    document_mask,  # as documents without d, contiguous; or None
    kept,  # [documents, KEPT_FIELDS], what maxsim_kept says of the mask; or None
    document_lengths,  # [B] or [A * K]; or None
    query_offsets,  # [A + 1] int64, for packed layouts; or None
    document_offsets,  # [B + 1] int64, for packed layouts; or None
    pair_queries,  # [P] int64, for PACKED_PAIRS; or None
    pair_documents,  # [P] int64, for PACKED_PAIRS; or None
    floor,  # [B] or [P], for packed layouts; or None
    scores,  # [A, B], [A, K] or [P]; before it a dimension of parts where a query is spread over tiles
    winners,  # [B, A, max_query_length], or scores' shape and [max_query_length]; or None
    query_stride,
    query_row_stride,
    document_outer_stride,
    document_stride,
    document_row_stride,
    query_count,
    documents_per_query,
    documents_per_program,
    max_query_length,
    max_document_length,
    first_item,
    score_count,
    fill,
    empty_score,
    RULE: tl.constexpr,
    LAYOUT: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    SLOTS: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NEAR: tl.constexpr,
    FAR: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Write the scores, and the winners unless None, of a tile of query tokens and ``documents_per_program`` documents.

    A tile's ``ROWS`` are ``TOKENS`` tokens of each of ``SLOTS`` queries (of one query unless ``LAYOUT`` is CROSS); a
    longer query takes several tiles. With ``FLAT`` they are the next rows of the batch, wherever its queries begin and
    end, and at most ``SLOTS`` queries meet in a tile. Where a query is spread over tiles, each writes its part of the
    score, and the caller adds them up. Products, maxima and the sum over query tokens are fp32; a score is rounded
    once, when it is stored.
    """
    tile, first_query, query, token, part, first_document, document_count = place_of_program(
        query_count,
        documents_per_query,
        documents_per_program,
        max_query_length,
        first_item,
        LAYOUT,
        ROWS,
        TOKENS,
        SLOTS,
        FLAT,
    )
    pair = first_query
    if LAYOUT == "PAIRS":
        first_query = tl.load(pair_queries + pair)
        query = first_query + tl.zeros([ROWS], tl.int64)
    is_query = query < query_count
    query_first, query_length, query_start = item_span(
        query, is_query, query_offsets, None, query_stride, query_row_stride, max_query_length
    )
    live = token < query_length

    query_rows = queries + query_start + token.to(tl.int64) * query_row_stride
    near_query, near_low, far_query, far_low, query_factor = load_own(
        query_rows, live, query_factors, query_first + token, DIM, NEAR, FAR, INTERPRET
    )
    weight = 0.0
    if query_weights is not None:
        weight = load_factor(query_weights, query_first + token, live, INTERPRET).to(tl.float32)

    column = tl.arange(0, BLOCK_N)
    has_nan = tl.zeros([ROWS], tl.int32)
    for step in range(0, document_count):
        number = first_document + step
        document, document_first, length, document_start, end, is_full, first_kept = _document(
            number,
            pair,
            first_query,
            documents_per_query,
            pair_documents,
            document_offsets,
            document_lengths,
            kept,
            document_outer_stride,
            document_stride,
            document_row_stride,
            max_document_length,
            RULE,
            LAYOUT,
        )
        if LAYOUT == "CROSS":
            score = first_query * documents_per_query + document
            winner_row = (document * query_count + query) * max_query_length + token
        else:
            score = document if LAYOUT == "CANDIDATES" else pair
            winner_row = score * max_query_length + token

        # Running maxima by row and class of columns, and where they are
        best = tl.full([ROWS, _CLASSES], float("-inf"), tl.float32)
        where_best = tl.zeros([ROWS, _CLASSES], tl.int32)
        for start in range(0, end, BLOCK_N):
            first = tl.minimum(start, tl.maximum(end - BLOCK_N, 0))
            similarity, at = _tile(
                documents,
                document_factors,
                document_first,
                document_start,
                first,
                column,
                end,
                document_row_stride,
                query_rows,
                live,
                near_query,
                far_query,
                near_low,
                far_low,
                query_factor,
                DIM,
                NEAR,
                FAR,
                ROWS,
                BLOCK_N,
                PRECISION,
                INTERPRET,
            )
            similarity = _ruled(
                similarity, weight, query_weights, document_mask, document_first + at, is_full, fill, RULE, INTERPRET
            )
            if winners is not None:
                found, at_column = best_and_column(similarity, ROWS, BLOCK_N, INTERPRET)
                where_best = tl.where(found > best, first + at_column, where_best)
            else:
                found = best_of_classes(similarity, ROWS, BLOCK_N, INTERPRET)
            best = larger(best, found)
        value = largest(best, INTERPRET)

        if winners is not None:
            winner = tl.min(tl.where(best == value[:, None], where_best, _FAR), axis=1)
            # of a token that is repeated, any copy may win: two columns of a product need not be rounded alike
            winner = tl.minimum(winner, end - 1)
            winner = tl.where(value == float("-inf"), first_kept, winner)
            has_nan |= (live & (value != value)).to(tl.int32)
            if document_mask is not None and RULE != "EXCLUDE":
                is_asked = live & (is_full == 0) & (winner < end)
                factor = load_factor(document_mask, document_first + winner, is_asked, INTERPRET)
                winner = tl.where(is_asked & (factor == 0), -1, winner)
        # What is masked from the end on is one candidate, not looked at
        if document_mask is not None and RULE != "EXCLUDE":
            bound = fill if RULE == "FILL" else 0.0
            is_bound = value < tl.where(end < length, bound, float("-inf"))
            if winners is not None:
                winner = tl.where(is_bound, -1, winner)
            value = tl.where(is_bound, bound, value)
        if floor is not None:
            is_floored = tl.load(floor + (pair if LAYOUT == "PAIRS" else document)) != 0
            floored = value < tl.where(is_floored, 0.0, float("-inf"))
            value = tl.where(floored, 0.0, value)
            if winners is not None:
                winner = tl.where(floored, -1, winner)

        if winners is not None:
            winner = tl.where(length > 0, winner, -1)
            tl.store(winners + winner_row, winner.to(winners.dtype.element_ty), mask=live)
        if RULE != "ZERO" and query_weights is not None:
            value *= weight
        value = tl.where(live, value, 0.0)
        total = sum_by_query(value, query, first_query, TOKENS, SLOTS, FLAT)
        total = tl.where(length > 0, total, tl.where(part == 0, empty_score, 0.0))
        store_scores(
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
            LAYOUT,
            ROWS,
            SLOTS,
            FLAT,
        )

    # NaN is rare: who met it looks for the first one again
    if winners is not None:  # noqa: SIM102 - triton 3.1 compiles what is behind an `and` in any case
        if tl.max(has_nan, axis=0) > 0:
            for step in range(0, document_count):
                number = first_document + step
                document, document_first, length, document_start, end, is_full, first_kept = _document(
                    number,
                    pair,
                    first_query,
                    documents_per_query,
                    pair_documents,
                    document_offsets,
                    document_lengths,
                    kept,
                    document_outer_stride,
                    document_stride,
                    document_row_stride,
                    max_document_length,
                    RULE,
                    LAYOUT,
                )
                if LAYOUT == "CROSS":
                    winner_row = (document * query_count + query) * max_query_length + token
                else:
                    winner_row = (document if LAYOUT == "CANDIDATES" else pair) * max_query_length + token
                winner = tl.full([ROWS], _FAR, tl.int32)
                for start in range(0, end, BLOCK_N):
                    first = tl.minimum(start, tl.maximum(end - BLOCK_N, 0))
                    similarity, at = _tile(
                        documents,
                        document_factors,
                        document_first,
                        document_start,
                        first,
                        column,
                        end,
                        document_row_stride,
                        query_rows,
                        live,
                        near_query,
                        far_query,
                        near_low,
                        far_low,
                        query_factor,
                        DIM,
                        NEAR,
                        FAR,
                        ROWS,
                        BLOCK_N,
                        PRECISION,
                        INTERPRET,
                    )
                    similarity = _ruled(
                        similarity,
                        weight,
                        query_weights,
                        document_mask,
                        document_first + at,
                        is_full,
                        fill,
                        RULE,
                        INTERPRET,
                    )
                    is_nan = tl.where(similarity != similarity, at[None, :], _FAR)
                    winner = tl.minimum(winner, tl.min(is_nan, axis=1))
                met = live & (winner < _FAR)
                if document_mask is not None and RULE != "EXCLUDE":
                    factor = load_factor(document_mask, document_first + winner, met & (is_full == 0), INTERPRET)
                    winner = tl.where((is_full == 0) & (factor == 0), -1, winner)
                tl.store(winners + winner_row, winner.to(winners.dtype.element_ty), mask=met)
