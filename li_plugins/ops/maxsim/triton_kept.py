"""Which part of each document a mask leaves to look at, found once in place of once for each query."""

import triton
import triton.language as tl

from li_plugins.ops.maxsim.triton_tiles import item_span, load_factor

KEPT_FIELDS = 4
"""Numbers for each document: the first kept token, the end of the last, whether those before it all count in full."""

_FIELDS = tl.constexpr(KEPT_FIELDS)


@triton.jit(do_not_specialize=("max_document_length",))
def maxsim_kept(
    document_mask,  # as documents without d, contiguous
    document_lengths,  # [B] or [A * K]; or None
    document_offsets,  # [B + 1]; or None
    kept,  # [documents, KEPT_FIELDS] int32
    max_document_length,
    WEIGHS: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Describe the mask of one document; a token counts in full when its factor is 1, or with ``WEIGHS`` off not 0.

    Bytes: the mask once. A document without a kept token has end 0.
    """
    document = tl.program_id(0).to(tl.int64)
    first_token, length, _ = item_span(document, True, document_offsets, document_lengths, 0, 0, max_document_length)
    first, end, full = length, length * 0, length * 0
    for start in range(0, length, BLOCK):
        token = start + tl.arange(0, BLOCK)
        exists = token < length
        factor = load_factor(document_mask, first_token + token, exists, INTERPRET)
        is_kept = exists & (factor != 0)
        first = tl.minimum(first, tl.min(tl.where(is_kept, token, length), axis=0))
        end = tl.maximum(end, tl.max(tl.where(is_kept, token + 1, 0), axis=0))
        is_full = exists & (factor == 1) if WEIGHS else is_kept
        full += tl.sum(is_full.to(tl.int32), axis=0)
    fields = kept + document * _FIELDS
    tl.store(fields, first)
    tl.store(fields + 1, end)
    tl.store(fields + 2, (full == end).to(tl.int32))
