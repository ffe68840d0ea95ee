"""How smooth MaxSim's gradients are cut into programs: by card, dtype and sizes; its forward is cut as MaxSim's."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from li_plugins.ops.launch import Options
from li_plugins.ops.maxsim.tuning import dimensions
from li_plugins.ops.maxsim.tuning_sizes import Card, Sizes, power_of_two

MOST_IN_ONE = 256
"""Widest rows of which a program owns all dimensions: their gradient stays in its registers."""


class GradientBlocks(NamedTuple):
    """How a gradient's tiles are cut: ``ROWS`` tokens that are owned meet ``COLUMNS`` that are visited at a time.

    ``NEAR + FAR`` dimensions are multiplied at once and all owned; if that is less than there are, ``NEAR`` at a time
    are multiplied and ``BLOCK_D`` owned.
    """

    ROWS: int
    COLUMNS: int
    NEAR: int
    FAR: int
    BLOCK_D: int


class Gradient(NamedTuple):
    """How a gradient is launched."""

    blocks: GradientBlocks
    options: Options


@lru_cache(maxsize=4096)
def gradient(sizes: Sizes, owned: int, visited: int) -> Gradient:
    """Choose the blocks of a gradient whose tiles own at most ``owned`` tokens, and visit ``visited`` one by one."""
    width = sizes.width
    near, far = dimensions(sizes)
    if width > MOST_IN_ONE and sizes.element_size == 2:
        near, far = 64, 0
    in_one = near + far >= width
    rows = min(power_of_two(owned, 16), 64)
    wide = (sizes.element_size == 4 and not sizes.is_halved) or near + far > 128
    columns = min(power_of_two(visited, 16), 32 if wide else 64)
    blocks = GradientBlocks(rows, columns, near, far, min(power_of_two(width, 16), 128))
    return Gradient(blocks, Options(4, 3 if in_one and not sizes.is_halved else 2))


def dimension_blocks(width: int, blocks: GradientBlocks) -> int:
    """Return how many programs share the dimensions of a tile."""
    return 1 if width <= blocks.NEAR + blocks.FAR else -(-width // blocks.BLOCK_D)


def parts(programs: int, visits: int, card: Card) -> tuple[int, int]:
    """Return by how many programs each tile is shared so that they fill the card, and how many visits each makes."""
    wanted = max(1, min(visits, 2 * card.processors // max(programs, 1)))
    each = -(-visits // wanted)
    return -(-visits // each), each
