"""How MaxSim's Triton kernels are cut into programs: by card, dtype and sizes, without measuring at call time."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from li_plugins.ops.launch import Options


class Card(NamedTuple):
    """What decides about blocks on a device."""

    capability: int
    """Compute capability, ``10 * major + minor``."""
    processors: int
    shared_memory: int
    """Bytes that one program may have."""


class Sizes(NamedTuple):
    """What decides about blocks in a problem."""

    layout: str
    """``CROSS``, ``CANDIDATES`` or ``PAIRS``."""
    is_packed: bool
    element_size: int
    """Bytes of an element of the embeddings."""
    width: int
    queries: int
    query_length: int
    documents: int
    """All of them, or the candidates of one query; 1 for pairs."""
    document_length: int


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
    """How a document's winners are sorted: into ``BINS`` bins of ``BIN`` tokens; ``TOKENS`` number those of a query."""

    BIN: int
    BINS: int
    TOKENS: int
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


def power_of_two(number: int, least: int = 1) -> int:
    """Return the smallest power of two that is at least ``number`` and ``least``."""
    return max(least, 1 << max(number - 1, 0).bit_length())


@lru_cache(maxsize=4096)
def forward(sizes: Sizes, want_winners: bool, card: Card) -> Forward:
    """Choose the forward's blocks.

    Tall tiles, so that a document's tokens travel to a multiprocessor seldom; few registers, so that two programs share
    it and one multiplies while the other looks for maxima.
    """
    near, far = dimensions(sizes.width, sizes.element_size)
    row_bytes = (near + far) * sizes.element_size
    in_one = near + far >= sizes.width
    is_cross = sizes.layout == "CROSS"
    most = 128
    if in_one and row_bytes <= 256 and card.shared_memory >= 200_000:
        most = 256
    elif sizes.element_size == 2 and (not in_one or row_bytes > 640):
        most = 64
    tokens = min(power_of_two(sizes.query_length, 16), most)
    rows = min(most, power_of_two(sizes.queries * tokens, tokens)) if is_cross else tokens
    slots, flat = rows // tokens, False
    padded = -(-sizes.query_length // tokens) * tokens
    rows_of_batch = sizes.queries * sizes.query_length
    if is_cross and not sizes.is_packed and 1.1 * sizes.query_length < padded > 16 and tokens < rows_of_batch < 2**31:
        flat = True
        rows = min(most, power_of_two(rows_of_batch))
        tokens, slots = rows, power_of_two((rows - 1) // sizes.query_length + 2)
    columns = 64 if sizes.document_length > 32 else 32
    is_wide = row_bytes > 256 or sizes.element_size == 4
    warps = 8 if rows == 256 or (is_wide and rows >= 64) else 4 if rows > 32 else 2
    # in one piece the query tile stays, in several it comes with the document's
    waiting = rows + 3 * columns if in_one else 3 * (rows + columns)
    stages = 3 if row_bytes * waiting <= min(card.shared_memory, 116_000) else 2
    blocks = ForwardBlocks(rows, tokens, slots, flat, columns, near, far)
    return Forward(blocks, _documents(sizes, blocks, card), Options(warps, stages, 128 if rows == 256 else None))


def tiles(blocks: ForwardBlocks, queries: int, query_length: int) -> int:
    """Return how many tiles the tokens of all queries (or of all pairs, each with a tile of its own) take."""
    if blocks.FLAT:
        return -(-queries * query_length // blocks.ROWS)
    return -(-queries // blocks.SLOTS) * max(1, -(-query_length // blocks.TOKENS))


def _documents(sizes: Sizes, blocks: ForwardBlocks, card: Card) -> int:
    """Return how many documents a program scores: the query tile is read once for all of them.

    The programs run in rounds, as many at a time as the card has places; the last round should not be nearly empty.
    """
    if sizes.layout == "PAIRS":
        return 1
    rows_of_tiles = tiles(blocks, sizes.queries, sizes.query_length)
    per_document = -(-sizes.document_length // blocks.BLOCK_N)
    read_queries = blocks.ROWS // blocks.BLOCK_N
    places = 2 * card.processors

    def duration(documents: int) -> int:
        rounds = -(-rows_of_tiles * -(-sizes.documents // documents) // places)
        return rounds * (documents * per_document + read_queries)

    most = 16 if sizes.layout == "CROSS" and blocks.ROWS >= 128 else 4
    return min((n for n in (1, 2, 3, 4, 6, 8, 12, 16) if n <= min(most, max(sizes.documents, 1))), key=duration)


@lru_cache(maxsize=4096)
def query_gradient(sizes: Sizes) -> QueryGradient:
    """Choose the blocks of the queries' gradient: few rows, so that many programs gather at once."""
    block_d = min(power_of_two(sizes.width, 16), 128)
    if sizes.queries * sizes.query_length >= 16_384 and sizes.query_length > 8:
        return QueryGradient(16, 2, block_d, Options(4, 3))
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
    tokens = power_of_two(sizes.query_length)
    if sizes.layout != "CROSS" or sizes.queries * sizes.query_length < SORTED_FROM:
        return None
    if sizes.queries * tokens * SORTED_BIN >= 2**31:
        return None
    bins = power_of_two(-(-sizes.document_length // SORTED_BIN) + 1, 16)
    return Sorting(SORTED_BIN, bins, tokens, Options(4, 1))


@lru_cache(maxsize=4096)
def sorted_gradient(sizes: Sizes) -> SortedGradient:
    """Choose how sorted rows are added: few warps each, which leaves room for many."""
    return SortedGradient(64, min(power_of_two(sizes.width, 16), 128), Options(2, 3, 168))


def dimensions(width: int, element_size: int) -> tuple[int, int]:
    """Return the powers of two whose sum holds ``width`` with little to spare, or a step that goes through it."""
    if element_size == 4:
        return 16, 0  # few sums at a time round less
    if width > 384:
        return 64, 0
    near = power_of_two(width, 16)
    if near == width or width <= 16:
        return near, 0
    near //= 2
    far = power_of_two(width - near, 16)
    return (near, far) if far < near else (2 * near, 0)
