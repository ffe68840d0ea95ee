"""Rows that are spread over the ranks of a process group: what k-means has to know of the others' rows.

Every rank ends up with the same bits: what is added up is gathered and added in the order of the ranks, whatever the
backend's own reduction does. The classes differ in nothing else than where rows are.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Alone:
    """All rows are here."""

    def span(self, rows: Tensor) -> tuple[int, int]:
        """Return the number of the first row that is here among those of all ranks, and how many these are."""
        return 0, rows.shape[0]

    def added(self, tensor: Tensor) -> Tensor:
        """Return the sum of the ranks' tensors, which have one shape and dtype."""
        return tensor

    def greatest(self, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the ``count`` greatest of the keys ``[N]`` of all rows, or all of them, and whose they are."""
        return keys.topk(min(count, keys.shape[0]))

    def rows(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """Return the rows with these numbers ``[n]``: ``[n, d]``."""
        return rows[numbers]


class Ranks(Alone):
    """Each rank of ``group`` has some rows, numbered in the order of the ranks; every rank calls the same methods."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def span(self, rows: Tensor) -> tuple[int, int]:
        """Return the number of the first row that is here among those of all ranks, and how many these are."""
        counts = self._gathered(torch.tensor(rows.shape[0], device=rows.device)).tolist()
        return sum(counts[: dist.get_rank(self._group)]), sum(counts)

    def added(self, tensor: Tensor) -> Tensor:
        """Return the sum of the ranks' tensors, added in their order."""
        total, *others = self._gathered(tensor).unbind()
        for other in others:
            total = total + other
        return total

    def greatest(self, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the ``count`` greatest keys of all rows and whose they are; negative keys fill up what is missing."""
        begin, _ = self.span(keys)
        own, numbers = keys.topk(min(count, keys.shape[0]))
        missing = count - own.shape[0]
        own = torch.nn.functional.pad(own, (0, missing), value=-1.0)
        numbers = torch.nn.functional.pad(numbers + begin, (0, missing))
        values, places = self._gathered(own).flatten().topk(count)
        return values, self._gathered(numbers).flatten()[places]

    def rows(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """Return the rows with these numbers, from whichever rank has them."""
        begin, _ = self.span(rows)
        is_here = (numbers >= begin) & (numbers < begin + rows.shape[0])
        found = rows.new_zeros(numbers.shape[0], rows.shape[1])
        found[is_here] = rows[numbers[is_here] - begin]
        return self.added(found)

    def _gathered(self, tensor: Tensor) -> Tensor:
        """Return the ranks' tensors in a new first dimension."""
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(parts, tensor.contiguous(), group=self._group)
        return torch.stack(parts)
