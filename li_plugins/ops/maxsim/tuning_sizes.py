"""What decides about a kernel's blocks: the card, and the sizes of a problem."""

from __future__ import annotations

from typing import NamedTuple


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
    is_halved: bool = False
    """Whether fp32 embeddings are multiplied as two fp16 numbers each (``triton_halves``)."""


def power_of_two(number: int, least: int = 1) -> int:
    """Return the smallest power of two that is at least ``number`` and ``least``."""
    return max(least, 1 << max(number - 1, 0).bit_length())
