"""The tokens of two indexes side by side, in blocks, however each is cut into chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from li_plugins.index_diff.folder import IndexFolder

TOKENS = 2**14
"""Most tokens of a block: what is computed of one is a few times this many embeddings."""

Rows = tuple[Tensor, ...]
"""Tensors with a row for each token, ``[n, ...]``."""


def comparable(a: IndexFolder, b: IndexFolder) -> Tensor:
    """Return which passages, of those that both have, have as many tokens in both: ``[passages]`` bool."""
    both = min(len(a.lengths), len(b.lengths))
    return a.lengths[:both] == b.lengths[:both]


def aligned(
    a: IndexFolder,
    b: IndexFolder,
    kept: Tensor,
    read: Callable[[IndexFolder, int], Rows],
    on_tokens: Callable[[int], object] = lambda tokens: None,
) -> Iterator[tuple[Rows, Rows]]:
    """Yield blocks of the tokens of passages that are ``kept``; a chunk of each folder is mapped at a time.

    Parameters
    ----------
    a, b
        The folders.
    kept
        ``[passages]`` bool, as ``comparable`` returns it: passages beyond are left out.
    read
        Returns what is wanted of a folder's chunk.
    on_tokens
        Is told of the tokens that are behind.
    """
    sides = [_Side(folder, kept, read) for folder in (a, b)]
    while sides[0].fill() and sides[1].fill():
        count = min(TOKENS, *(side.left for side in sides))
        first, second = (side.take(count) for side in sides)
        yield first, second
        on_tokens(count)


class _Side:
    """One folder's tokens, taken from the front."""

    def __init__(self, folder: IndexFolder, kept: Tensor, read: Callable[[IndexFolder, int], Rows]) -> None:
        self._chunks = self._read(folder, kept, read)
        self._now: Rows = ()
        self._places: Tensor | None = None
        self.left = 0

    def fill(self) -> bool:
        """Map the next chunk when nothing is at hand; False at the end."""
        while not self.left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self._now, self._places = chunk
            self.left = len(self._now[0] if self._places is None else self._places)
        return True

    def take(self, count: int) -> Rows:
        """Return the next tokens."""
        if self._places is None:
            start = len(self._now[0]) - self.left
            found = tuple(tensor[start : start + count] for tensor in self._now)
        else:
            start = len(self._places) - self.left
            rows = self._places[start : start + count]
            found = tuple(tensor[rows] for tensor in self._now)
        self.left -= count
        return found

    @staticmethod
    def _read(
        folder: IndexFolder, kept: Tensor, read: Callable[[IndexFolder, int], Rows]
    ) -> Iterator[tuple[Rows, Tensor | None]]:
        passage = 0
        for chunk in range(folder.chunks):
            lengths = folder.doclens(chunk)
            flags = kept[passage : passage + len(lengths)]
            flags = torch.cat([flags, flags.new_zeros(len(lengths) - len(flags))])
            passage += len(lengths)
            places = None if bool(flags.all()) else flags.repeat_interleave(lengths).nonzero()[:, 0]
            yield read(folder, chunk), places
