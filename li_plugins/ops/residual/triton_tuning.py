"""How scores of stored documents are cut into programs, by sizes."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from li_plugins.ops.launch import Options
from li_plugins.ops.maxsim.tuning_sizes import Card, power_of_two

WIDEST = 256
"""Dimensions of the widest row that a program decodes at once."""

WIDEST_IN_FP32 = 128
"""The same where products are fp32's, whose three numbers for each fill the registers."""

LEAST_ROWS, MOST_ROWS = 64, 256
"""Query tokens that meet a tile of a document: what tensor cores take, and whose products fill the registers."""

_ROUNDS = 4
"""Programs for each that runs at a time, so that documents of different lengths even out."""


class ResidualBlocks(NamedTuple):
    """How ``residual_maxsim`` is cut: ``TOKENS`` of a document meet ``ROWS``, as many of each of ``SLOTS`` queries."""

    BLOCK_D: int
    TOKENS: int
    ROWS: int
    SLOTS: int


class Residual(NamedTuple):
    """How ``residual_maxsim`` is launched."""

    blocks: ResidualBlocks
    documents: int
    """How many a program decodes, one after the other."""
    options: Options


class CodeBlocks(NamedTuple):
    """How ``code_maxsim`` is cut: so many codes of a document meet so many query tokens at a time."""

    TOKENS: int
    COLUMNS: int


@lru_cache(maxsize=4096)
def residual(queries: int, query_length: int, documents: int, width: int, in_fp32: bool, card: Card) -> Residual:
    """Choose the blocks of ``residual_maxsim``.

    Parameters
    ----------
    queries
        How many meet the same documents; 1 for pairs.
    query_length, documents, width
        ``Lq``, ``B``, ``d``.
    in_fp32
        Whether products are fp32's, which take three numbers for each.
    card
        Where.
    """
    most = LEAST_ROWS if in_fp32 else MOST_ROWS if width <= 128 else MOST_ROWS // 2
    tokens = min(power_of_two(query_length, 16), most)
    slots = min(power_of_two(queries, 1), most // tokens)
    rows = max(tokens * slots, LEAST_ROWS)
    is_small = rows == LEAST_ROWS
    groups = -(-queries // slots)
    at_a_time = card.processors * (8 if is_small else 2)
    # few rows are read quickly, many are read for several documents; a query that does not fit for one
    most_documents = 1 if is_small or query_length > rows else 8
    each = max(1, min(most_documents, documents * groups // (at_a_time * _ROUNDS)))
    return Residual(
        # where decoding is the limit, few tokens beyond a document's end, and 64 registers; else products in full
        ResidualBlocks(power_of_two(width, 16), 32 if is_small else 64, rows, slots),
        each,
        Options(num_warps=8 if width > 128 and not is_small else 4, num_stages=1),
    )


def code(query_length: int) -> CodeBlocks:
    """Choose the blocks of ``code_maxsim``: 1024 scores are on their way to each warp."""
    columns = min(power_of_two(query_length, 16), 64)
    return CodeBlocks(1024 // columns, columns)


CODE_OPTIONS = Options(num_warps=1, num_stages=1)
"""A pair is a warp's work: thousands of them fill a card, and their maxima meet without a barrier."""
