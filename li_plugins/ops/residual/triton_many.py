"""MaxSim of stored documents for more queries than a tile holds: decoded once, multiplied with tile after tile.

With ``T`` tokens of the documents, ``s`` bytes per element of a centroid and ``GROUPS`` tiles of query tokens:

* operations: ``2 * A * Lq * T * d`` on tensor cores, and ``T * d`` elements are decoded;
* bytes: codes, residuals and centroids once; ``s * d`` a token written and ``GROUPS`` times read, in L2, where the
  scratch of all programs fits; the queries from L2, once for each few documents.

Programs take the next few documents as they become free. Which program scores a document changes nothing about it.
"""

import triton
import triton.language as tl

from li_plugins.ops.codec.triton_weights import weight_tables
from li_plugins.ops.maxsim.triton_tiles import CLASSES, best_of_classes, larger, largest, load_rows, sum_by_query
from li_plugins.ops.residual.triton_residual import decode

MANY_SIZES = (
    "residual_stride",
    "document_count",
    "documents_at_once",
    "query_count",
    "query_length",
)
"""Sizes that are not compiled apart for multiples of 16, for ``do_not_specialize``."""

_CLASSES = tl.constexpr(CLASSES)


@triton.jit(do_not_specialize=MANY_SIZES)
def residual_maxsim_many(
    queries,  # [A, Lq, d]
    codes,  # [T] int32 or int64, contiguous
    residuals,  # [T, d * NBITS / 8] uint8, rows contiguous
    centroids,  # [K, d], rows contiguous
    bucket_weights,  # [2**NBITS], contiguous
    document_offsets,  # [B + 1] int64, contiguous
    scratch,  # [programs, CAPACITY, BLOCK_D], of the centroids' dtype
    taken,  # [1] int32: how often programs have taken documents, 0
    scores,  # [A, B]
    query_stride,
    query_row_stride,
    centroid_stride,
    residual_stride,
    document_count,
    documents_at_once,
    query_count,
    query_length,
    least,
    least_norm,
    DIM: tl.constexpr,
    NBITS: tl.constexpr,
    NORMALIZED: tl.constexpr,
    BLOCK_D: tl.constexpr,
    IN_WORDS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    QUERIES: tl.constexpr,
    FLAT: tl.constexpr,
    CAPACITY: tl.constexpr,
    DECODED: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Write the scores of all documents, ``documents_at_once`` at a time.

    With the first tile of query tokens they are decoded into the program's scratch, ``DECODED`` tokens at a time, where
    every other tile finds them; ``TOKENS`` are multiplied at a time. If they have more than ``CAPACITY`` tokens, the
    scratch holds as many of one document, which are decoded again for each tile of query tokens.

    Of the ``SLOTS`` queries that a tile has room for, ``QUERIES`` are there; ``FLAT``: one right behind the other.
    """
    TOKENS_OF_SLOT: tl.constexpr = 0 if FLAT else ROWS // SLOTS
    IN_PAIRS: tl.constexpr = NBITS < 8 and centroids.dtype.element_ty.primitive_bitwidth == 16
    dims = tl.arange(0, BLOCK_D)
    row = tl.arange(0, ROWS)
    slot = tl.arange(0, SLOTS)
    column = tl.arange(0, TOKENS)
    part = tl.arange(0, DECODED)
    tokens_of_query = query_length if FLAT else TOKENS_OF_SLOT
    of_tile = row // tokens_of_query
    token = row % tokens_of_query
    tables = 0
    if IN_PAIRS:
        tables = weight_tables(bucket_weights, NBITS)
    own = scratch + tl.program_id(0).to(tl.int64) * (CAPACITY * BLOCK_D)
    first_document = tl.atomic_add(taken, 1, sem="relaxed") * documents_at_once
    while first_document < document_count:
        count = tl.minimum(document_count - first_document, documents_at_once)
        origin = tl.load(document_offsets + first_document)
        is_whole = tl.load(document_offsets + first_document + count) - origin <= CAPACITY
        for first_query in range(0, query_count, QUERIES):
            query = first_query + of_tile
            live = (query < query_count) & (of_tile < QUERIES) & (token < query_length)
            query_rows = queries + query.to(tl.int64) * query_stride + token.to(tl.int64) * query_row_stride
            query_tile = load_rows(query_rows, live, dims, DIM, DIM == BLOCK_D, INTERPRET)
            for step in range(0, count):
                document = first_document + step
                begin = tl.load(document_offsets + document)
                length = (tl.load(document_offsets + document + 1) - begin).to(tl.int32)
                behind = tl.where(is_whole, begin - origin, 0).to(tl.int32)
                best = tl.full([ROWS, _CLASSES], float("-inf"), tl.float32)
                for first in range(0, length, CAPACITY):
                    here = tl.minimum(length - first, CAPACITY)
                    if (first_query == 0) | (is_whole == 0):
                        tl.debug_barrier()  # what was there has been read
                        place = begin + first + tl.minimum(part, here - 1)
                        code = tl.load(codes + place)
                        for start in tl.range(0, here, DECODED, num_stages=1):
                            # codes of the next tokens meanwhile: a centroid is asked for when its code is there
                            next_place = begin + first + tl.minimum(start + DECODED + part, here - 1)
                            next_code = tl.load(codes + next_place)
                            decoded = decode(
                                code,
                                residuals + place * residual_stride,
                                centroids,
                                bucket_weights,
                                tables,
                                centroid_stride,
                                least_norm,
                                DIM,
                                NBITS,
                                NORMALIZED,
                                BLOCK_D,
                                IN_WORDS,
                                IN_PAIRS,
                                INTERPRET,
                            )
                            target = own + ((behind + start + part) * BLOCK_D)[:, None] + dims[None, :]
                            exists = (start + part < here)[:, None]
                            tl.store(target, decoded.to(scratch.dtype.element_ty), mask=exists)
                            place = next_place
                            code = next_code
                        tl.debug_barrier()  # and this can be
                    for start in range(0, here, TOKENS):
                        found = behind + tl.minimum(start + column, here - 1)
                        tile = tl.load(own + (found * BLOCK_D)[:, None] + dims[None, :])
                        if INTERPRET:
                            tile = tile.to(tl.float32)
                        similarity = tl.dot(query_tile, tl.trans(tile), input_precision="ieee")
                        best = larger(best, best_of_classes(similarity, ROWS, TOKENS, INTERPRET))
                value = tl.where(live, larger(largest(best, INTERPRET), least), 0.0)
                total = sum_by_query(value, of_tile, 0, TOKENS_OF_SLOT, SLOTS, FLAT)
                target = scores + (first_query + slot).to(tl.int64) * document_count + document
                tl.store(
                    target,
                    total.to(scores.dtype.element_ty),
                    mask=(slot < QUERIES) & (first_query + slot < query_count),
                )
        first_document = tl.atomic_add(taken, 1, sem="relaxed") * documents_at_once
