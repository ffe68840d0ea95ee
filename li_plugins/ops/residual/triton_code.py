"""Scores of documents by their codes alone in Triton: a program adds up one pair of a query and a document.

With ``T`` codes of the pairs that are asked for and ``s`` bytes per score: ``T * Lq`` comparisons, and ``s * Lq`` bytes
per code, from L2 where the scores of a query fit it; 4 or 8 bytes per code from memory, and one more where codes are
kept or not. What is not kept is not read. The rows of scores are the limit.
"""

import triton
import triton.language as tl

from li_plugins.ops.maxsim.triton_tiles import larger

CODE_SIZES = ("document_count", "query_length", "first_item")
"""Sizes that change from call to call, for ``do_not_specialize``."""


@triton.jit(do_not_specialize=CODE_SIZES)
def code_maxsim_forward(
    centroid_scores,  # [A, K, Lq], rows contiguous
    kept,  # [A, K] uint8, rows contiguous; or None
    codes,  # [T] int32 or int64, contiguous
    document_offsets,  # [B + 1] int64, contiguous
    pair_queries,  # [P] int64, contiguous; or None
    pair_documents,  # [P] int64, contiguous; or None
    scores,  # [A, B], or [P] with pairs; float32
    query_stride,
    centroid_stride,
    kept_stride,
    document_count,
    query_length,
    first_item,
    least,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EVEN: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Write the score of one pair: ``COLUMNS`` query tokens and ``TOKENS`` codes at a time.

    The maxima are added one after the other, in the order of the query tokens and in fp32: each is brought to every
    thread by a sum of which all other terms are zero. ``EVEN`` says that no query token is beyond the last.
    """
    item = tl.program_id(0).to(tl.int64) + first_item
    if pair_queries is not None:
        query = tl.load(pair_queries + item)
        document = tl.load(pair_documents + item)
    else:
        query = item // document_count
        document = item % document_count
    begin = tl.load(document_offsets + document)
    length = (tl.load(document_offsets + document + 1) - begin).to(tl.int32)
    rows = centroid_scores + query * query_stride

    column = tl.arange(0, COLUMNS)
    row = tl.arange(0, TOKENS)
    total = tl.zeros([1], tl.float32)
    for first_token in range(0, query_length, COLUMNS):
        exists = first_token + column < query_length
        best = tl.full([TOKENS, COLUMNS], float("-inf"), tl.float32)
        for start in range(0, length, TOKENS):
            is_code = start + row < length
            code = tl.load(codes + begin + start + row, mask=is_code, other=0).to(tl.int64)
            if kept is not None:
                is_code = is_code & (tl.load(kept + query * kept_stride + code, mask=is_code, other=0) != 0)
            place = (code * centroid_stride)[:, None] + (first_token + column)[None, :]
            mask = is_code[:, None] if EVEN else is_code[:, None] & exists[None, :]
            found = tl.load(rows + place, mask=mask, other=float("-inf"))
            if INTERPRET and found.dtype == tl.bfloat16:
                found = found.to(tl.float32)
            best = larger(best, found.to(tl.float32))
        if INTERPRET:  # its general reductions take a Python call per element
            has_nan = tl.max((best != best).to(tl.int32), axis=0) > 0
            value = tl.where(has_nan, float("nan"), tl.max(best, axis=0))
        else:
            value = tl.reduce(best, 0, larger)
        value = tl.where(exists, larger(value, least), 0.0)
        for token in tl.static_range(COLUMNS):
            total += tl.sum(tl.where(column == token, value, 0.0), axis=0)
    tl.store(scores + item + tl.arange(0, 1), total)
