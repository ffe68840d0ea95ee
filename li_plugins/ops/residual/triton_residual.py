"""MaxSim of stored documents in Triton: a program decodes a document, tile by tile, for a tile of query tokens.

With ``T`` tokens of the documents that are asked for, ``s`` bytes per element of a centroid and ``GROUPS`` tiles of
query tokens, for documents that all queries meet:

* operations: ``2 * A * Lq * T * d`` on tensor cores, and ``GROUPS * T * d`` elements are decoded, some ten instructions
  each: with one query these are the limit;
* bytes: a code and ``d * nbits / 8`` bytes of residuals per token, once from memory; a centroid of ``s * d`` bytes per
  token, from L2 where all centroids fit; both once for each of ``GROUPS``, all but the first from L2. No embedding is
  written.

As in MaxSim's forward, query tokens are the rows of the product and a document's tokens its columns. A query alone
fills half of the 64 rows that the tensor cores take, whose other half costs nothing next to decoding.
"""

import triton
import triton.language as tl

from li_plugins.ops.codec.triton_weights import number, stored_weights, weight_tables
from li_plugins.ops.maxsim.triton_tiles import CLASSES, best_of_classes, larger, largest

SIZES = (
    "residual_stride",
    "document_count",
    "documents_per_program",
    "query_count",
    "query_length",
    "first_item",
)
"""What is not to be compiled apart for multiples of 16, for ``do_not_specialize``.

Of the residuals it would even be slower: each thread would read more bytes than its dimensions have, for others.
"""

_CLASSES = tl.constexpr(CLASSES)


@triton.jit
def _divided(rows, least_norm):
    """Return ``rows [rows, dims]`` divided by their norms, which are rounded to their dtype, as torch does."""
    wide = rows.to(tl.float32)
    norm = tl.sqrt(tl.sum(wide * wide, axis=1)).to(rows.dtype).to(tl.float32)
    inverse = 1.0 / larger(norm, least_norm)
    return (wide * inverse[:, None]).to(rows.dtype)


@triton.jit
def decode(
    code,
    residual_rows,
    centroids,
    bucket_weights,
    tables,
    centroid_stride,
    least_norm,
    DIM: tl.constexpr,
    NBITS: tl.constexpr,
    NORMALIZED: tl.constexpr,
    BLOCK_D: tl.constexpr,
    IN_WORDS: tl.constexpr,
    IN_PAIRS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Return the embeddings ``[rows, BLOCK_D]`` of codes and rows of bytes ``[rows]``, zeros from ``DIM`` on."""
    dims = tl.arange(0, BLOCK_D)
    begins = code.to(tl.int32).to(tl.int64) * centroid_stride
    exists = (dims < DIM)[None, :]
    centers = number(tl.load(centroids + begins[:, None] + dims[None, :], mask=exists, other=0.0), INTERPRET)
    weights = stored_weights(residual_rows, bucket_weights, tables, DIM, NBITS, BLOCK_D, IN_WORDS, IN_PAIRS, INTERPRET)
    rows = centers + weights
    if DIM < BLOCK_D:
        rows = tl.where((dims < DIM)[None, :], rows, 0.0).to(rows.dtype)
    return _divided(rows, least_norm) if NORMALIZED else rows


@triton.jit(do_not_specialize=SIZES)
def residual_maxsim_forward(
    queries,  # [A, Lq, d]
    codes,  # [T] int32 or int64, contiguous
    residuals,  # [T, d * NBITS / 8] uint8, rows contiguous
    centroids,  # [K, d], rows contiguous
    bucket_weights,  # [2**NBITS], contiguous
    document_offsets,  # [B + 1] int64, contiguous
    pair_queries,  # [P] int64, contiguous; or None
    pair_documents,  # [P] int64, contiguous; or None
    scores,  # [A, B], or [P] with pairs
    query_stride,
    query_row_stride,
    centroid_stride,
    residual_stride,
    document_count,
    documents_per_program,
    query_count,
    query_length,
    first_item,
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
    IN_FP32: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Write the scores of ``documents_per_program`` documents for ``SLOTS`` queries, or of one pair.

    A document is decoded ``TOKENS`` tokens at a time; what goes beyond its end is its last token again. The ``ROWS`` of
    a product are as many tokens of each of the queries; of queries that have more, some at a time, and documents are
    decoded anew for each. Rows are decoded in the dtype of the centroids, and multiplied in it if the queries have it,
    else in fp32 (``IN_FP32``).
    """
    TOKENS_OF_SLOT: tl.constexpr = ROWS // SLOTS
    IN_PAIRS: tl.constexpr = NBITS < 8 and centroids.dtype.element_ty.primitive_bitwidth == 16
    program = tl.program_id(0)
    if pair_queries is not None:
        item = program.to(tl.int64) + first_item
        first_query = tl.load(pair_queries + item)
        first_document = tl.load(pair_documents + item)
        count = 1
    else:
        item = 0
        groups = tl.cdiv(query_count, SLOTS)
        first_query = (program % groups).to(tl.int64) * SLOTS
        first_document = (program // groups).to(tl.int64) * documents_per_program + first_item
        count = tl.minimum(document_count - first_document, documents_per_program).to(tl.int32)

    row = tl.arange(0, ROWS)
    slot = tl.arange(0, SLOTS)
    query = first_query + row // TOKENS_OF_SLOT
    dims = tl.arange(0, BLOCK_D)
    column = tl.arange(0, TOKENS)
    tables = 0
    if IN_PAIRS:
        tables = weight_tables(bucket_weights, NBITS)
    total = tl.zeros([SLOTS], tl.float32)
    for first_token in range(0, tl.maximum(query_length, 1), TOKENS_OF_SLOT):
        token = first_token + row % TOKENS_OF_SLOT
        live = (query < query_count) & (token < query_length)
        query_rows = queries + query * query_stride + token.to(tl.int64) * query_row_stride
        query_tile = tl.load(query_rows[:, None] + dims[None, :], mask=live[:, None] & (dims < DIM)[None, :], other=0.0)
        query_tile = number(query_tile, INTERPRET)
        if IN_FP32:
            query_tile = query_tile.to(tl.float32)
        for step in range(0, count):
            document = first_document + step
            begin = tl.load(document_offsets + document)
            length = (tl.load(document_offsets + document + 1) - begin).to(tl.int32)
            best = tl.full([ROWS, _CLASSES], float("-inf"), tl.float32)
            for start in range(0, length, TOKENS):
                place = begin + tl.minimum(start + column, length - 1)
                decoded = decode(
                    tl.load(codes + place),
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
                if IN_FP32:
                    decoded = decoded.to(tl.float32)
                similarity = tl.dot(query_tile, tl.trans(decoded), input_precision=PRECISION)
                best = larger(best, best_of_classes(similarity, ROWS, TOKENS, INTERPRET))
            value = tl.where(live, larger(largest(best, INTERPRET), least), 0.0)
            # a query of several blocks of tokens has one document a program: the last sum is the whole one
            total = tl.where(first_token == 0, 0.0, total) + tl.sum(tl.reshape(value, [SLOTS, TOKENS_OF_SLOT]), axis=1)
            if pair_queries is not None:
                tl.store(scores + item + slot, total.to(scores.dtype.element_ty), mask=slot == 0)
            else:
                target = scores + (first_query + slot) * document_count + document
                tl.store(target, total.to(scores.dtype.element_ty), mask=first_query + slot < query_count)
