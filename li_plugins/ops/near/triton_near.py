"""The documents near queries in Triton: the nearest centroids of each block, then the nearest of all and their lists.

The first kernel reads ``A * K * Lq`` scores once and writes ``ncells`` numbers of 8 bytes for each block of
centroids and query token, a 64th of that in half precision. The second has a program for each query token and place
among its nearest; it reads these numbers ``place + 1`` times, from L2, and writes a byte for each document of the
centroid that it finds. The scores are the limit, and the byte for each document of the index, written and read.

A score and its place are one number of 64 bits, the greatest of which is the greatest score and, of equal ones, the
first: no two are equal, so that the next one is the greatest of what is below the last.
"""

import triton
import triton.language as tl

LAST = tl.constexpr(0x7FFFFFFF)
LEAST = tl.constexpr(-(2**63))
GREATEST = tl.constexpr(2**63 - 1)


@triton.jit
def greatest_below(keys, last, AXIS: tl.constexpr):
    """Return the greatest of the keys below the last ones."""
    return tl.max(tl.where(keys < last, keys, LEAST), axis=AXIS)


@triton.jit(do_not_specialize=("centroid_count", "query_length", "ncells", "block_count"))
def near_in_blocks(
    centroid_scores,  # [A, K, Lq], rows contiguous
    keys,  # [A, Lq, blocks * ncells] int64, contiguous
    query_stride,
    centroid_stride,
    centroid_count,
    query_length,
    ncells,
    block_count,
    CENTROIDS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the keys of the nearest centroids among ``CENTROIDS``, for ``COLUMNS`` query tokens."""
    block = tl.program_id(0)
    query = tl.program_id(2).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    centroid = block * CENTROIDS + tl.arange(0, CENTROIDS)
    exists = (centroid < centroid_count)[:, None] & (column < query_length)[None, :]
    place = (centroid.to(tl.int64) * centroid_stride)[:, None] + column[None, :]
    found = tl.load(centroid_scores + query * query_stride + place, mask=exists, other=0.0)
    found = found.to(tl.float32)
    # one zero, and one NaN above all numbers, whatever their signs
    bits = tl.where(found == 0.0, 0, found.to(tl.int32, bitcast=True))
    bits = tl.where(found != found, 0x7FC00000, bits)
    # as integers, negative floats descend; and the bits of the first centroids are the greatest
    ordered = tl.where(bits < 0, bits ^ LAST, bits).to(tl.int64)
    key = tl.where(exists, (ordered << 32) | (centroid ^ LAST).to(tl.int64)[:, None], LEAST)
    last = tl.full([COLUMNS], GREATEST, tl.int64)
    row = (query * query_length + column) * block_count * ncells + block * ncells
    for rank in range(0, ncells):
        last = greatest_below(key, last[None, :], 0)
        tl.store(keys + row + rank, last, mask=column < query_length)


@triton.jit(do_not_specialize=("query_length", "ncells", "key_count", "document_count"))
def mark_near(
    keys,  # [A, Lq, keys] int64, contiguous
    listed,  # [M] int32 or int64, contiguous
    centroid_offsets,  # [K + 1] int64, contiguous
    is_near,  # [A, B] uint8, contiguous, zero
    query_length,
    ncells,
    key_count,
    document_count,
    KEYS: tl.constexpr,
    DOCUMENTS: tl.constexpr,
):
    """Mark the documents that one of the nearest centroids of one query token lists."""
    token = tl.program_id(0) // ncells
    rank = tl.program_id(0) % ncells
    query = tl.program_id(1).to(tl.int64)
    row = keys + (query * query_length + token) * key_count
    last = tl.max(tl.full([KEYS], GREATEST, tl.int64), axis=0)
    for _ in range(0, rank + 1):
        best = tl.full([KEYS], LEAST, tl.int64)
        for start in range(0, key_count, KEYS):
            place = start + tl.arange(0, KEYS)
            key = tl.load(row + place, mask=place < key_count, other=LEAST)
            best = tl.maximum(best, tl.where(key < last, key, LEAST))
        last = tl.max(best, axis=0)
    centroid = (last & LAST) ^ LAST
    begin = tl.load(centroid_offsets + centroid)
    length = (tl.load(centroid_offsets + centroid + 1) - begin).to(tl.int32)
    for start in range(0, length, DOCUMENTS):
        place = start + tl.arange(0, DOCUMENTS)
        document = tl.load(listed + begin + place, mask=place < length, other=0).to(tl.int64)
        one = tl.full([DOCUMENTS], 1, tl.uint8)
        tl.store(is_near + query * document_count + document, one, mask=place < length)
