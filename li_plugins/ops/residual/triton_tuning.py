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


_TWO_OF_8_WARPS = Options(num_warps=8, num_stages=2, maxnreg=128)
"""Two programs share a multiprocessor: one multiplies while the other decodes or looks for maxima."""


class ResidualBlocks(NamedTuple):
    """How ``residual_maxsim`` is cut: ``TOKENS`` of a document meet ``ROWS``, as many of each of ``SLOTS`` queries."""

    TOKENS: int
    ROWS: int
    SLOTS: int


class Residual(NamedTuple):
    """How ``residual_maxsim`` is launched."""

    blocks: ResidualBlocks
    documents: int
    """How many a program decodes, one after the other."""
    options: Options


class ManyBlocks(NamedTuple):
    """How it is cut where documents are decoded once for several tiles of query tokens.

    A program decodes ``DECODED`` tokens at a time into its scratch of ``CAPACITY``. A tile has room for ``SLOTS``
    queries, of which ``QUERIES`` are there; ``FLAT``: one right behind the other.
    """

    TOKENS: int
    ROWS: int
    SLOTS: int
    QUERIES: int
    FLAT: bool
    CAPACITY: int
    DECODED: int


class Many(NamedTuple):
    """How that is launched."""

    blocks: ManyBlocks
    programs: int
    documents: int
    """How many a program takes at once."""
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
        ResidualBlocks(32 if is_small else 64, rows, slots),
        each,
        _TWO_OF_8_WARPS._replace(num_stages=1)
        if rows == MOST_ROWS
        else Options(num_warps=8 if width > 128 and not is_small else 4, num_stages=1),
    )


@lru_cache(maxsize=4096)
def many(
    queries: int, query_length: int, documents: int, stored: int, width: int, in_fp32: bool, card: Card
) -> Many | None:
    """Choose the blocks of ``residual_maxsim`` where it pays to decode once for several tiles; elsewhere None.

    Parameters
    ----------
    stored
        How many tokens the documents have; more than that where an index goes on behind the last.
    queries, query_length, documents, width, in_fp32, card
        As for ``residual``, no pairs.
    """
    in_each = MOST_ROWS // power_of_two(query_length, 16)
    is_flat = query_length >= 16 and MOST_ROWS // query_length > in_each
    if is_flat:
        in_each = MOST_ROWS // query_length
    programs = 2 * card.processors
    if in_fp32 or width > 128 or queries <= in_each or not in_each:
        return None
    if card.shared_memory < 200_000 or documents < 2 * programs:  # two programs a multiprocessor, all of them busy
        return None
    length = -(-stored // documents)
    capacity = min(max(power_of_two(6 * length), 512), 2048)
    each = max(1, min(4, 2 * capacity // (3 * max(length, 1)), documents // (programs * _ROUNDS)))
    blocks = ManyBlocks(64, MOST_ROWS, power_of_two(in_each), in_each, is_flat, capacity, 64)
    return Many(blocks, programs, each, _TWO_OF_8_WARPS)


def code(query_length: int) -> CodeBlocks:
    """Choose the blocks of ``code_maxsim``: 1024 scores are on their way to each warp."""
    columns = min(power_of_two(query_length, 16), 64)
    return CodeBlocks(1024 // columns, columns)


CODE_OPTIONS = Options(num_warps=1, num_stages=1)
"""A pair is a warp's work: thousands of them fill a card, and their maxima meet without a barrier."""
