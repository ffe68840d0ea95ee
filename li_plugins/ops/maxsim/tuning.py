"""How MaxSim's Triton kernels are cut into programs: by card, dtype and sizes, without measuring at call time.

A row that ``li-plugins tune`` stored on this machine goes before what is written here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from li_plugins.ops.launch import Options
from li_plugins.ops.maxsim import tuning_rows
from li_plugins.ops.maxsim.tuning_file import Row
from li_plugins.ops.maxsim.tuning_sizes import Card, Sizes, power_of_two


class ForwardBlocks(NamedTuple):
    """How the forward's tiles are cut: ``ROWS`` query tokens by ``BLOCK_N`` document tokens.

    ``TOKENS`` are those of one query in a tile, ``SLOTS`` the most queries that meet in one. ``FLAT``: rows are taken
    as they come. ``NEAR + FAR`` dimensions are multiplied at once; if that is less than there are, ``NEAR`` at a time.
    """

    ROWS: int
    TOKENS: int
    SLOTS: int
    FLAT: bool
    BLOCK_N: int
    NEAR: int
    FAR: int


class Forward(NamedTuple):
    """How the forward is launched."""

    blocks: ForwardBlocks
    documents: int
    """Documents that a program scores one after the other."""
    options: Options


class QueryGradient(NamedTuple):
    """How the queries' gradient is cut: ``ROWS`` tokens by ``BLOCK_D`` dimensions, ``VISITS`` documents at a time."""

    ROWS: int
    VISITS: int
    BLOCK_D: int
    options: Options


class DocumentGradient(NamedTuple):
    """How the documents' gradient is cut into programs of ``BLOCK_N`` tokens by ``BLOCK_D`` dimensions."""

    QUERY_TOKENS: int
    BLOCK_N: int
    BLOCK_D: int
    options: Options


class Sorting(NamedTuple):
    """How a document's winners are sorted: into ``BINS`` bins of ``BIN`` tokens."""

    BIN: int
    BINS: int
    options: Options


class SortedGradient(NamedTuple):
    """How the sorted rows are added: ``ENTRIES`` at a time, ``BLOCK_D`` dimensions."""

    ENTRIES: int
    BLOCK_D: int
    options: Options


SORTED_FROM = 256
"""Query tokens that meet each document, from which on sorting them pays."""


SORTED_BIN = 16
"""Document tokens in a bin: the fewest rows that a product on tensor cores has."""


@tuning_rows.chooses_by_row
@lru_cache(maxsize=4096)
def forward(sizes: Sizes, want_winners: bool, card: Card) -> Forward:
    """Choose the forward's blocks: those of a stored row, else the built-in ones."""
    row = tuning_rows.stored("winners" if want_winners else "scores", sizes, card)
    if row is None:
        built_in = built_in_forward(sizes, card)
        return _streamed(sizes, built_in) if _is_streamed(sizes, want_winners, card) else built_in
    blocks = _cut(sizes, tuning_rows.number(row, "ROWS"), tuning_rows.number(row, "BLOCK_N"))
    asked = row["documents"]
    if asked is None and _is_streamed(sizes, want_winners, card):
        asked = 1
    return Forward(blocks, _documents(sizes, blocks, card, asked), tuning_rows.options(row))


def _streamed(sizes: Sizes, chosen: Forward) -> Forward:
    """Return as many programs as fit, of one warp and one document each, with small tiles.

    A program waits for where its document begins, then for its tokens; of the tile that a document ends in, the part
    that was there before is read again.
    """
    columns = 16 if sizes.document_length <= 64 else 32
    return Forward(chosen.blocks._replace(BLOCK_N=columns), 1, Options(1, 3))


@lru_cache(maxsize=4096)
def built_in_forward(sizes: Sizes, card: Card) -> Forward:
    """Choose blocks for any kernel that scores tiles of query tokens, MaxSim's and the smooth one's.

    Tall tiles, so that a document's tokens travel to a multiprocessor seldom; few registers, so that two programs share
    it and one multiplies while the other looks for maxima.
    """
    near, far = dimensions(sizes)
    row_bytes = (near + far) * sizes.element_size
    in_one = near + far >= sizes.width
    most = 128
    if sizes.is_halved:
        most = 128
    elif in_one and row_bytes <= 256 and card.shared_memory >= 200_000:
        most = 256
    elif sizes.element_size == 2 and (not in_one or row_bytes > 640):
        most = 64
    columns = 64 if sizes.document_length > 32 else 32
    blocks = _cut(sizes, most, columns)
    rows = blocks.ROWS
    is_wide = row_bytes > 256 or sizes.element_size == 4
    warps = 8 if rows == 256 or (is_wide and rows >= 64) else 4 if rows > 32 else 2
    # in one piece the query tile stays, in several it comes with the document's
    waiting = rows + 3 * columns if in_one else 3 * (rows + columns)
    # two programs share a multiprocessor, but for halves: those take a whole one
    room = card.shared_memory if sizes.is_halved else min(card.shared_memory, 116_000)
    stages = 3 if row_bytes * waiting <= room else 2
    return Forward(blocks, _documents(sizes, blocks, card), Options(warps, stages, 128 if rows == 256 else None))


def _is_streamed(sizes: Sizes, want_winners: bool, card: Card) -> bool:
    """Tell whether few query tokens, in 16 bits and up to 128 dimensions, meet so much that memory is the limit.

    Ragged documents are that where none of them is long, for scores alone; dense ones where they fill the card.
    """
    near, far = dimensions(sizes)
    in_one = sizes.width <= near + far <= 128
    if sizes.element_size != 2 or not in_one or _cut(sizes, 128, 64).ROWS > 32:
        return False
    if sizes.is_packed:
        return sizes.document_length <= 512 and not want_winners
    met = sizes.documents * (sizes.queries if sizes.layout == "CANDIDATES" else 1)
    return met >= 4 * card.processors


def _cut(sizes: Sizes, most: int, columns: int) -> ForwardBlocks:
    """Return tiles of ``most`` rows, or fewer where there is less to fill them."""
    is_cross = sizes.layout == "CROSS"
    tokens = min(power_of_two(sizes.query_length, 16), most)
    rows = min(most, power_of_two(sizes.queries * tokens, tokens)) if is_cross else tokens
    slots, flat = rows // tokens, False
    padded = -(-sizes.query_length // tokens) * tokens
    rows_of_batch = sizes.queries * sizes.query_length
    if is_cross and not sizes.is_packed and 1.1 * sizes.query_length < padded > 16 and tokens < rows_of_batch < 2**31:
        flat = True
        rows = min(most, power_of_two(rows_of_batch))
        tokens, slots = rows, power_of_two((rows - 1) // sizes.query_length + 2)
    return ForwardBlocks(rows, tokens, slots, flat, columns, *dimensions(sizes))


def tiles(blocks: ForwardBlocks, queries: int, query_length: int) -> int:
    """Return how many tiles the tokens of all queries (or of all pairs, each with a tile of its own) take."""
    if blocks.FLAT:
        return -(-queries * query_length // blocks.ROWS)
    return -(-queries // blocks.SLOTS) * max(1, -(-query_length // blocks.TOKENS))


def _documents(sizes: Sizes, blocks: ForwardBlocks, card: Card, asked: int | None = None) -> int:
    """Return how many documents a program scores, if it is not ``asked``: the query tile is read once for all of them.

    The programs run in rounds, as many at a time as the card has places; the last round should not be nearly empty.
    """
    if sizes.layout == "PAIRS":
        return 1
    if asked is not None:
        return min(asked, max(sizes.documents, 1))
    rows_of_tiles = tiles(blocks, sizes.queries, sizes.query_length)
    per_document = -(-sizes.document_length // blocks.BLOCK_N)
    read_queries = blocks.ROWS // blocks.BLOCK_N
    places = card.processors if sizes.is_halved else 2 * card.processors

    def duration(documents: int) -> int:
        rounds = -(-rows_of_tiles * -(-sizes.documents // documents) // places)
        return rounds * (documents * per_document + read_queries)

    most = 16 if sizes.layout == "CROSS" and blocks.ROWS >= 128 else 4
    return min((n for n in (1, 2, 3, 4, 6, 8, 12, 16) if n <= min(most, max(sizes.documents, 1))), key=duration)


@tuning_rows.chooses_by_row
@lru_cache(maxsize=4096)
def query_gradient(sizes: Sizes, card: Card) -> QueryGradient:
    """Choose the blocks of the queries' gradient: few rows, so that many programs gather at once."""
    row = tuning_rows.stored("queries", sizes, card)
    if row is not None:
        block_d = min(tuning_rows.number(row, "BLOCK_D"), power_of_two(sizes.width, 16))
        rows, visits = tuning_rows.number(row, "ROWS"), tuning_rows.number(row, "VISITS")
        return QueryGradient(rows, visits, block_d, tuning_rows.options(row))
    block_d = min(power_of_two(sizes.width, 16), 128)
    if sizes.queries * sizes.query_length >= 16_384 and sizes.query_length > 8:
        return QueryGradient(16, 2, block_d, Options(4, 3))
    if sizes.layout == "CANDIDATES":
        return QueryGradient(min(power_of_two(sizes.query_length), 4), 8, block_d, Options(2, 1))
    return QueryGradient(min(power_of_two(sizes.query_length), 8), 8, block_d, Options(4, 1))


@lru_cache(maxsize=4096)
def document_gradient(sizes: Sizes) -> DocumentGradient:
    """Choose the blocks of the documents' gradient: as many tokens of a query as it has, up to 64, in one product."""
    tokens = min(power_of_two(sizes.query_length, 16), 64)
    block_n = min(power_of_two(sizes.document_length, 16), 64)
    block_d = min(power_of_two(sizes.width, 16), 128)
    return DocumentGradient(tokens, block_n, block_d, Options(8 if sizes.element_size == 4 else 4, 1))


@lru_cache(maxsize=4096)
def sorting(sizes: Sizes) -> Sorting | None:
    """Choose how winners are sorted; ``None`` where sorting does not pay, or a place among them needs 64 bits."""
    if sizes.layout != "CROSS" or not SORTED_FROM <= sizes.queries * sizes.query_length < 2**31:
        return None
    bins = power_of_two(-(-sizes.document_length // SORTED_BIN) + 1, 16)
    return Sorting(SORTED_BIN, bins, Options(4, 1))


@tuning_rows.chooses_by_row
@lru_cache(maxsize=4096)
def sorted_gradient(sizes: Sizes, card: Card) -> SortedGradient:
    """Choose how sorted rows are added: few warps each, which leaves room for many."""
    row = tuning_rows.stored("documents", sizes, card)
    if row is not None:
        block_d = min(tuning_rows.number(row, "BLOCK_D"), power_of_two(sizes.width, 16))
        return SortedGradient(tuning_rows.number(row, "ENTRIES"), block_d, tuning_rows.options(row))
    return SortedGradient(64, min(power_of_two(sizes.width, 16), 128), Options(2, 3, 168))


def dimensions(sizes: Sizes) -> tuple[int, int]:
    """Return the powers of two whose sum holds the width with little to spare, or a step that goes through it."""
    width = sizes.width
    if sizes.is_halved:
        padded = power_of_two(width, 16)
        return min(padded, 64), max(padded - 64, 0)
    if sizes.element_size == 4:
        return 16, 0  # few sums at a time round less
    if width > 384:
        return 64, 0
    near = power_of_two(width, 16)
    if near == width or width <= 16:
        return near, 0
    near //= 2
    far = power_of_two(width - near, 16)
    return (near, far) if far < near else (2 * near, 0)


def as_row(chosen: Forward | QueryGradient | SortedGradient) -> Row:
    """Return a choice as it is stored; a forward's documents per program are left to this module."""
    if isinstance(chosen, Forward):
        cut: dict[str, int | None] = {"ROWS": chosen.blocks.ROWS, "BLOCK_N": chosen.blocks.BLOCK_N, "documents": None}
        return {**cut, **chosen.options._asdict()}
    return {**{name: value for name, value in chosen._asdict().items() if name != "options"},
            **chosen.options._asdict()}  # fmt: skip
