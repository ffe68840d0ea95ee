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
def _number(value, INTERPRET: tl.constexpr):
    """Return a value that was loaded; the interpreter does not compute in bf16, and gets fp32."""
    if INTERPRET and value.dtype == tl.bfloat16:
        value = value.to(tl.float32)
    return value


@triton.jit
def _words(residual_rows, DIM: tl.constexpr, NBITS: tl.constexpr, UNITS: tl.constexpr, IN_WORDS: tl.constexpr):
    """Return the bytes at ``residual_rows [rows]``, those of 8 dimensions as one number: ``[rows, UNITS]`` int32.

    The first byte is the lowest. ``IN_WORDS`` says that each number lies where it can be read at once.
    """
    unit = tl.arange(0, UNITS)
    exists = (unit * 8 < DIM)[None, :]
    if IN_WORDS:
        kind: tl.constexpr = tl.int32 if NBITS == 4 else tl.int16 if NBITS == 2 else tl.uint8
        words = residual_rows.to(tl.pointer_type(kind), bitcast=True)
        return tl.load(words[:, None] + unit[None, :], mask=exists, other=0).to(tl.int32)
    word = tl.zeros([residual_rows.shape[0], UNITS], tl.int32)
    for place in tl.static_range(NBITS):
        byte = tl.load(residual_rows[:, None] + unit[None, :] * NBITS + place, mask=exists, other=0)
        word |= byte.to(tl.int32) << (8 * place)
    return word


@triton.jit
def _permuted(low, high, selector, INTERPRET: tl.constexpr):
    """Return four of the eight bytes of ``low`` and ``high``: which, say the four lowest digits of ``selector``."""
    if not INTERPRET:
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [low, high, selector], dtype=tl.int32, is_pure=True, pack=1
        )
    chosen = selector & 0
    for place in tl.static_range(4):
        which = (selector >> (4 * place)) & 7
        byte = tl.where(which < 4, low >> (8 * (which & 3)), high >> (8 * (which & 3))) & 255
        chosen |= byte << (8 * place)
    return chosen


@triton.jit
def _weight_bits(bucket_weights, field: tl.constexpr, NBITS: tl.constexpr):
    """Return the 16 bits of the weight that a field stands for: the bits of its bucket are reversed."""
    bucket = 0
    for place in tl.static_range(NBITS):
        bucket |= ((field >> place) & 1) << (NBITS - 1 - place)
    return tl.load(bucket_weights.to(tl.pointer_type(tl.int16), bitcast=True) + bucket).to(tl.int32) & 0xFFFF


@triton.jit
def _four(bucket_weights, first: tl.constexpr):
    """Return the low bytes of the weights of four fields of 4 bits, and the high bytes."""
    low, high = 0, 0
    for place in tl.static_range(4):
        bits = _weight_bits(bucket_weights, first + place, 4)
        low |= (bits & 255) << (8 * place)
        high |= (bits >> 8) << (8 * place)
    return low, high


@triton.jit
def weight_tables(bucket_weights, NBITS: tl.constexpr):
    """Return the weights as ``_pairs_of_weights`` looks them up: low and high bytes, or whole ones below 4 bits."""
    if NBITS == 4:
        low0, high0 = _four(bucket_weights, 0)
        low1, high1 = _four(bucket_weights, 4)
        low2, high2 = _four(bucket_weights, 8)
        low3, high3 = _four(bucket_weights, 12)
        return low0, low1, low2, low3, high0, high1, high2, high3
    first = _weight_bits(bucket_weights, 0, NBITS) | (_weight_bits(bucket_weights, 1, NBITS) << 16)
    second = first
    if NBITS == 2:
        second = _weight_bits(bucket_weights, 2, NBITS) | (_weight_bits(bucket_weights, 3, NBITS) << 16)
    return first, second, 0, 0, 0, 0, 0, 0


@triton.jit
def _pairs_of_weights(word, tables, NBITS: tl.constexpr, INTERPRET: tl.constexpr):
    """Return the 16 bits of the weights of the 8 dimensions of each of ``[rows, UNITS]``: ``[rows, UNITS, 8]`` int16.

    Weights are looked up by permuting the bytes of registers: two weights of 1 or 2 bits in one instruction, the low or
    the high bytes of four of 4 bits in one for each half of the table.
    """
    pair = tl.arange(0, 4)[None, None, :]
    by_pair = word[:, :, None]
    if NBITS <= 2:
        byte = by_pair
        lowest = 6 - 2 * pair
        if NBITS == 2:
            byte = (by_pair >> (pair // 2 * 8)) & 255
            lowest = 5 - pair % 2 * 4
        # twice the first field in the first digit, twice the second in the third
        doubled = ((byte | (byte << (8 + NBITS))) >> lowest) & (0x0202 if NBITS == 1 else 0x0606)
        weights = _permuted(tables[0], tables[1], doubled * 0x11 + 0x1010, INTERPRET)
    else:
        four = by_pair >> (pair // 2 * 16)
        which = four & 0x7777
        is_late = _permuted(0xFF00, 0, (four >> 3) & 0x1111, INTERPRET)
        low = _permuted(tables[0], tables[1], which, INTERPRET)
        low ^= (low ^ _permuted(tables[2], tables[3], which, INTERPRET)) & is_late
        high = _permuted(tables[4], tables[5], which, INTERPRET)
        high ^= (high ^ _permuted(tables[6], tables[7], which, INTERPRET)) & is_late
        # of two dimensions the first has the higher digit
        weights = _permuted(low, high, tl.where(pair % 2 == 0, 0x4051, 0x6273), INTERPRET)
    halves = tl.join(weights.to(tl.int16), (weights >> 16).to(tl.int16))
    return tl.reshape(halves, [word.shape[0], word.shape[1], 8])


@triton.jit
def _weights(bucket_weights, fields, NBITS: tl.constexpr, INTERPRET: tl.constexpr):
    """Load the weight of each field; the bits of its bucket are reversed."""
    if NBITS >= 2:
        fields = ((fields >> 1) & 0x55) | ((fields & 0x55) << 1)
    if NBITS >= 4:
        fields = ((fields >> 2) & 0x33) | ((fields & 0x33) << 2)
    if NBITS >= 8:
        fields = ((fields >> 4) & 0x0F) | ((fields & 0x0F) << 4)
    return _number(tl.load(bucket_weights + fields), INTERPRET)


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
    centers = _number(tl.load(centroids + begins[:, None] + dims[None, :], mask=exists, other=0.0), INTERPRET)
    if NBITS == 8:
        fields = tl.load(residual_rows[:, None] + dims[None, :], mask=exists, other=0).to(tl.int32)
        weights = _weights(bucket_weights, fields, NBITS, INTERPRET)
    else:
        word = _words(residual_rows, DIM, NBITS, BLOCK_D // 8, IN_WORDS)
        if IN_PAIRS:
            weights = _pairs_of_weights(word, tables, NBITS, INTERPRET)
            weights = _number(weights.to(centroids.dtype.element_ty, bitcast=True), INTERPRET)
        else:
            bit = tl.arange(0, 8) * NBITS
            shift = bit // 8 * 8 + 8 - NBITS - bit % 8
            fields = (word[:, :, None] >> shift[None, None, :]) & ((1 << NBITS) - 1)
            weights = _weights(bucket_weights, fields, NBITS, INTERPRET)
        weights = tl.reshape(weights, [code.shape[0], BLOCK_D])
    rows = centers + weights
    if DIM < BLOCK_D:
        rows = tl.where((dims < DIM)[None, :], rows, 0.0)
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
        query_tile = _number(query_tile, INTERPRET)
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
