"""Where the parts of an index lie when colbert-ai searches it on a GPU: decided once, when it is loaded.

The library keeps codes, residuals and the inverted file in the memory of the host. For each query and stage of a
search it gathers there what the candidates have, padded, and copies that to the GPU, which waits. Here each part is
copied to the GPU once, what a query reads most of for its size first, as long as it fits; what does not stays on the
host, and of that each query copies the rows that it asks for, none padded, some documents' at a time.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor

from li_plugins.ops.spans import rows_of
from li_plugins_colbert.graphs import Searches

KEPT = "_li_plugins_stored"
"""Where a scorer has what was decided for its index."""
_holders: WeakSet[Any] = WeakSet()
"""The scorers that have something."""
TOKENS_TOGETHER = 2**21
"""Most tokens of which a stage of a search has rows from the host on the GPU, or those of one document."""
SPARED = 8
"""One part in so many of what is free is left to the model, to candidates and to everybody else."""


class Ragged(NamedTuple):
    """Rows of several owners, one after the other: ``values [T, ...]``, of owner ``i`` from ``offsets[i]`` on."""

    values: Tensor
    offsets: Tensor


class Stored(NamedTuple):
    """An index for searching: ``codes``, ``residuals`` and, of each centroid, the passages."""

    sources: tuple[Tensor, ...]
    """The library's own: codes, residuals, lengths of documents, passages of centroids, how many each has."""
    device: torch.device
    codes: Tensor
    residuals: Tensor
    offsets: Tensor
    """``[passages + 1]`` on the device: where each document begins among the codes."""
    cells: Ragged
    """The passages of the centroids; the offsets are on the device."""
    why: str
    """Where everything lies, and why."""
    searches: Searches | None = None
    """The graphs of searches, where everything lies on a GPU."""

    def runs(self, documents: Tensor, *, residuals: bool) -> list[slice]:
        """Return which of ``documents [n]`` to take together; all at once unless their rows come from the host."""
        if self._is_here(residuals) or not len(documents):
            return [slice(None)]
        lengths = self.offsets.index_select(0, documents + 1) - self.offsets.index_select(0, documents)
        ends, runs, start = [0, *lengths.cumsum(0).tolist()], [], 0
        while start < len(documents):
            stop = max(start + 1, bisect_right(ends, ends[start] + TOKENS_TOGETHER) - 1)
            runs.append(slice(start, stop))
            start = stop
        return runs

    def tokens(self, documents: Tensor, *, residuals: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return codes, residuals and offsets on the device, and where ``documents [n]`` are among them.

        Parameters
        ----------
        documents
            int64, on the device.
        residuals
            Whether they are needed too.
        """
        if self._is_here(residuals):
            return self.codes, self.residuals, self.offsets, documents
        begins, ends = self.offsets.index_select(0, documents), self.offsets.index_select(0, documents + 1)
        lengths = ends - begins
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        rows, _ = rows_of(begins, lengths)
        taken = [self.rows(part, rows) for part in ((self.codes, self.residuals) if residuals else (self.codes,))]
        every = torch.arange(len(documents), device=self.device)
        return taken[0], taken[-1], offsets, every

    def _is_here(self, residuals: bool) -> bool:
        return self.codes.device == self.device and not (residuals and self.residuals.device != self.device)

    def rows(self, part: Tensor, rows: Tensor) -> Tensor:
        """Return rows of one of the parts on the device; of a part on the host, it waits for which they are."""
        if part.device == self.device:
            return part.index_select(0, rows)
        on_host = rows.cpu()
        gathered = torch.empty(
            (len(on_host), *part.shape[1:]), dtype=part.dtype, device="cpu", pin_memory=self.device.type == "cuda"
        )
        torch.index_select(part, 0, on_host, out=gathered)
        return gathered.to(self.device, non_blocking=True)


def of(scorer: Any) -> Stored:
    """Return the index of a scorer that searches on a GPU; what changed since the last time is placed anew."""
    known: Stored | None = getattr(scorer, KEPT, None)
    sources = _sources(scorer)
    if known is not None and all(old is new for old, new in zip(known.sources, sources, strict=True)):
        return known
    kept = {} if known is None else _kept(known, sources)
    # what changed is let go before there is a look at how much room its successor has
    known = None
    setattr(scorer, KEPT, None)
    found = _placed(sources, scorer.codec.centroids.device, kept)
    setattr(scorer, KEPT, found)
    _holders.add(scorer)
    return found


def forget() -> None:
    """Let go of what was placed; a scorer that searches again places its index again."""
    for scorer in list(_holders):
        setattr(scorer, KEPT, None)
    _holders.clear()


def free_bytes(device: torch.device) -> int:
    """Return how many bytes of a GPU can be had, those that torch keeps for later among them."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _sources(scorer: Any) -> tuple[Tensor, ...]:
    stored, cells = scorer.embeddings, scorer.ivf
    return stored.codes, stored.residuals, scorer.doclens, cells.tensor, cells.lengths


def _kept(known: Stored, sources: tuple[Tensor, ...]) -> dict[int, Tensor]:
    """Return, by its source, where each part lies that an update left alone."""
    codes, residuals, _, passages, _ = known.sources
    parts = ((codes, known.codes), (residuals, known.residuals), (passages, known.cells.values))
    return {id(old): part for old, part in parts if any(old is new for new in sources)}


def _placed(sources: tuple[Tensor, ...], device: torch.device, kept: dict[int, Tensor]) -> Stored:
    codes, residuals, doclens, passages, counts = sources
    offsets, begins = _offsets(doclens).to(device), _offsets(counts).to(device)
    room = free_bytes(device)
    room -= room // SPARED
    said, placed = [], []
    for name, part in (("codes", codes), ("passages of centroids", passages), ("residuals", residuals)):
        there = kept.get(id(part), part)
        fits = there.device == device or part.nbytes <= room
        if fits and there.device != device:
            try:
                there = part.to(device)
                room -= part.nbytes
            except torch.OutOfMemoryError:  # somebody took what was free, or it is in pieces: the host has it as well
                fits, room = False, 0
        placed.append(there if fits else part)
        size = f"{_mebibytes(part.nbytes)} of {name}"
        said.append(f"{size} on {device}" if fits else f"{size} in the host's memory: {_mebibytes(room)} are left")
    codes, passages, residuals = placed
    everywhere = device.type == "cuda" and all(part.device == device for part in placed)
    searches = Searches() if everywhere else None
    return Stored(sources, device, codes, residuals, offsets, Ragged(passages, begins), ", ".join(said), searches)


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def _offsets(lengths: Tensor) -> Tensor:
    lengths = lengths.long()
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
