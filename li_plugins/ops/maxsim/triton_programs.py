"""The programs of a forward that scores tiles of query tokens: in which launches, and how their parts make scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from li_plugins.ops import recipes
from li_plugins.ops.maxsim import tuning
from li_plugins.ops.maxsim.problem import Problem
from li_plugins.ops.maxsim.triton_arguments import rounded, stored
from li_plugins.ops.maxsim.tuning_sizes import Sizes

MAX_PROGRAMS = 2**31 - 1
"""Programs of one launch: CUDA's limit for the first dimension of a grid, and what 32 bits can number."""


def launches(sizes: Sizes, chosen: tuning.Forward, items: int) -> Iterator[tuple[int, int]]:
    """Yield each launch's number of programs and its first item, for ``items`` queries (or pairs).

    A launch takes all tiles of some blocks of documents, or all documents of some tiles.
    """
    tiles = tuning.tiles(chosen.blocks, items, sizes.query_length)
    blocks_of_documents = -(-sizes.documents // chosen.documents)
    inner, outer, step = blocks_of_documents, tiles, 1
    if sizes.layout == "CROSS":
        inner, outer, step = tiles, blocks_of_documents, chosen.documents
    at_once = max(1, MAX_PROGRAMS // max(inner, 1))
    for first in range(0, outer if inner else 0, at_once):
        yield min(outer - first, at_once) * inner, first * step


def scores(problem: Problem, sizes: Sizes, blocks: tuning.ForwardBlocks, write: Callable[[Tensor], None]) -> Tensor:
    """Return the scores that ``write`` puts into memory, where a query is spread over tiles one part of each."""
    parts = _parts(sizes, blocks)
    if parts == 1:
        whole = recipes.empty(problem.scores_shape, stored(problem.out_dtype), problem.queries.device)
        write(whole)
        return rounded(whole, problem.out_dtype)
    # a tile that a query does not reach writes nothing
    allocate = torch.zeros if blocks.FLAT else torch.empty
    spread = allocate((parts, *problem.scores_shape), dtype=torch.float32, device=problem.queries.device)
    write(spread)
    return rounded(spread.sum(0), problem.out_dtype)


def _parts(sizes: Sizes, blocks: tuning.ForwardBlocks) -> int:
    """Return over how many tiles a query may be spread."""
    if blocks.FLAT:
        return 1 if blocks.ROWS % sizes.query_length == 0 else (sizes.query_length + blocks.ROWS - 2) // blocks.ROWS + 1
    return max(1, -(-sizes.query_length // blocks.TOKENS))
