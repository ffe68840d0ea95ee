"""The tokens of two indexes side by side, in blocks, however each is cut into chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from li_plugins.index_diff.folder import IndexFolder

TOKENS = 2**14
"""Most tokens of a block: what is computed of one is a few times this many embeddings."""


class Stored(NamedTuple):
    """Tokens of one index: ``codes [n]`` int64 and, where asked for, ``residuals [n, bytes]`` uint8."""

    codes: Tensor
    residuals: Tensor


def comparable(a: IndexFolder, b: IndexFolder) -> Tensor:
    """Return which passages, of those that both have, have as many tokens in both: ``[passages]`` bool."""
    both = min(len(a.lengths), len(b.lengths))
    return a.lengths[:both] == b.lengths[:both]


def aligned(
    a: IndexFolder, b: IndexFolder, kept: Tensor, on_tokens: Callable[[int], object] = lambda tokens: None
) -> Iterator[tuple[Stored, Stored]]:
    """Yield blocks of the tokens of passages that are ``kept``; a chunk of each folder is mapped at a time.

    Parameters
    ----------
    a, b
        The folders.
    kept
        ``[passages]`` bool, as ``comparable`` returns it: passages beyond are left out.
    on_tokens
        Is told of the tokens that are behind.
    """
    sides = [_Side(folder, kept) for folder in (a, b)]
    while sides[0].fill() and sides[1].fill():
        count = min(TOKENS, *(side.left for side in sides))
        first, second = (side.take(count) for side in sides)
        yield first, second
        on_tokens(count)


class _Side:
    """One folder's tokens, taken from the front."""

    def __init__(self, folder: IndexFolder, kept: Tensor) -> None:
        self._chunks = self._read(folder, kept)
        self._now: tuple[Tensor, Tensor, Tensor | None] | None = None
        self._place = 0

    @property
    def left(self) -> int:
        """How many tokens are at hand."""
        if self._now is None:
            return 0
        codes, _, rows = self._now
        return (len(codes) if rows is None else len(rows)) - self._place

    def fill(self) -> bool:
        """Map the next chunk when nothing is at hand; False at the end."""
        while not self.left:
            self._now, self._place = next(self._chunks, None), 0
            if self._now is None:
                return False
        return True

    def take(self, count: int) -> Stored:
        """Return the next tokens."""
        assert self._now is not None  # fill() was true
        codes, residuals, rows = self._now
        span = slice(self._place, self._place + count)
        self._place += count
        if rows is None:
            return Stored(codes[span].long(), residuals[span])
        return Stored(codes[rows[span]].long(), residuals[rows[span]])

    @staticmethod
    def _read(folder: IndexFolder, kept: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        passage = 0
        for chunk in range(folder.chunks):
            lengths = folder.doclens(chunk)
            flags = kept[passage : passage + len(lengths)]
            flags = torch.cat([flags, flags.new_zeros(len(lengths) - len(flags))])
            passage += len(lengths)
            rows = None if bool(flags.all()) else flags.repeat_interleave(lengths).nonzero()[:, 0]
            yield folder.codes(chunk), folder.residuals(chunk), rows
