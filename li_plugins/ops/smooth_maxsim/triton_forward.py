"""Smooth MaxSim's forward in Triton: as maxsim_forward, with a running logarithm of a sum in the place of a maximum.

With ``P`` pairs of a query and a document, ``s`` bytes per element and ``ROWS`` query tokens in a tile:

* operations: ``2 * P * Lq * Ld * d`` on tensor cores (fp32: 6 in halves, 12 in pieces), one exponential and three more
  per similarity; exponentials are a limit of their own: a multiprocessor takes 16 a clock, as many as similarities of
  ``d = 128`` come out of its tensor cores;
* bytes: ``s * d`` for each query token and each document token, 4 per score, ``4 * Lq`` per pair for the sums that a
  backward reads. A document's tiles are read ``A * Lq / ROWS`` times, mostly from L2.

Logarithms are to the base 2 until they are stored: ``2^x`` is what the hardware has.
"""

import math

import triton
import triton.language as tl

from li_plugins.ops.maxsim.triton_similarities import load_own, similarities
from li_plugins.ops.maxsim.triton_tiles import (
    CLASSES,
    FORWARD_SIZES,
    best_of_classes,
    larger,
    place_of_program,
    store_scores,
    sum_by_query,
)

_CLASSES = tl.constexpr(CLASSES)
_LN2 = tl.constexpr(math.log(2))


@triton.jit
def _origin(highest):
    """Return what to subtract before exponents are taken: the highest, but nothing of an infinity."""
    return tl.where(tl.abs(highest) == float("inf"), 0.0, highest)


@triton.jit(do_not_specialize=FORWARD_SIZES)
def smooth_maxsim_forward(
    queries,  # [A, Lq, d]; as maxsim_halves splits them where there are factors
    documents,  # [B, Ld, d] or [A, K, Ld, d]; likewise
    query_factors,  # as queries without d, contiguous; or None
    document_factors,  # as documents without d, contiguous; or None
    scores,  # [A, B] or [A, K]; before it a dimension of parts where a query is spread over tiles
    sums,  # [B, A, Lq] or [A, K, Lq] float32, logsumexp(similarities / tau); or None
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
    scale,  # log2(e) / tau
    unscale,  # tau * ln(2)
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
    """Write the scores, and the sums unless None, of a tile of query tokens and ``documents_per_program`` documents.

    Tiles are those of maxsim_forward. For each row and class of columns a thread keeps the highest similarity so far
    and the sum of what the others are to it; the classes meet when the document ends. Everything is fp32 but the score,
    which is rounded once, when it is stored.
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
    live = (query < query_count) & (token < max_query_length)
    query_rows = queries + query * query_stride + token.to(tl.int64) * query_row_stride
    near_query, near_low, far_query, far_low, query_factor = load_own(
        query_rows, live, query_factors, query * max_query_length + token, DIM, NEAR, FAR, INTERPRET
    )
    column = tl.arange(0, BLOCK_N)
    for step in range(0, document_count):
        document = tl.cast(first_document + step, tl.int64)
        document_rows = documents + first_query * document_outer_stride + document * document_stride
        item = document if LAYOUT == "CROSS" else first_query * documents_per_query + document
        highest = tl.full([ROWS, _CLASSES], float("-inf"), tl.float32)
        total = tl.zeros([ROWS, _CLASSES], tl.float32)
        for first in range(0, max_document_length, BLOCK_N):
            left = max_document_length - first
            # the last tile repeats the last token, and does not count it again
            at = first + tl.minimum(column, left - 1)
            rows = document_rows + at.to(tl.int64) * document_row_stride
            factor = 0.0
            if document_factors is not None:
                factor = tl.load(document_factors + item * max_document_length + at)
            similarity, _near, _low, _far, _far_low = similarities(
                query_rows,
                live,
                near_query,
                near_low,
                far_query,
                far_low,
                query_factor,
                rows,
                left > 0,
                at >= 0,
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
            if left < BLOCK_N:
                similarity = tl.where((column < left)[None, :], similarity, float("-inf"))
            found = larger(highest, best_of_classes(similarity, ROWS, BLOCK_N, INTERPRET) * scale)
            origin = _origin(found)
            by_class = tl.reshape(similarity, [ROWS, BLOCK_N // _CLASSES, _CLASSES])
            terms = tl.exp2(by_class * scale - origin[:, None, :])
            total = total * tl.exp2(highest - origin) + tl.sum(terms, axis=1)
            highest = found

        origin = _origin(tl.max(highest, axis=1))
        value = origin + tl.log2(tl.sum(total * tl.exp2(highest - origin[:, None]), axis=1))
        if sums is not None:
            pair = document * query_count + query if LAYOUT == "CROSS" else query * documents_per_query + document
            tl.store(sums + pair * max_query_length + token, value * _LN2, mask=live)
        score = first_query * documents_per_query + document
        total_by_query = sum_by_query(tl.where(live, value * unscale, 0.0), query, first_query, TOKENS, SLOTS, FLAT)
        store_scores(
            scores,
            total_by_query,
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
