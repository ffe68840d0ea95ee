"""The inverted file: passages of each cell as sets, and whether each folder's is what its codes say."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from li_plugins.index_diff.finding import Finding, State, share
from li_plugins.index_diff.folder import IndexFolder
from li_plugins.index_diff.matching import Matching

ENTRIES = 2**22
"""Most passages of cells that are in the making at a time."""


def compare_ivf(a: IndexFolder, b: IndexFolder, matching: Matching, codes: Finding) -> Finding:
    """Compare the cells of paired centroids as sets of passages."""
    (passages_a, lengths_a), (passages_b, lengths_b) = a.ivf, b.ivf
    inconsistent = [_inconsistent(folder) for folder in (a, b)]
    figures: dict[str, object] = {
        "cells": [len(lengths_a), len(lengths_b)],
        "entries": [len(passages_a), len(passages_b)],
        "cells_that_codes_contradict": inconsistent,
    }
    wrong = [f"{count} cells of {side} are not what its codes say" for side, count in zip("AB", inconsistent,
             strict=True) if count]  # fmt: skip
    if torch.equal(lengths_a, lengths_b) and torch.equal(passages_a, passages_b):
        return Finding("ivf", "identical", "; ".join(["the same passages in each cell", *wrong]), figures)
    common, total, changed = _overlap(a, b, matching)
    figures |= {"overlap": common / total if total else 1.0, "changed_cells": changed}
    state: State
    if not changed:
        state, text = "reordered", "the same passages in each cell once centroids are numbered alike"
    else:
        state = "close" if codes.state == "close" and not any(inconsistent) else "differs"
        text = f"{share(changed, len(lengths_a))} of cells hold other passages, {share(common, total)} of entries agree"
    if any(inconsistent):
        state = "differs"
    follows = [] if wrong else ["as the codes of each folder say"]
    return Finding("ivf", state, "; ".join([text, *wrong, *follows]), figures)


def _overlap(a: IndexFolder, b: IndexFolder, matching: Matching) -> tuple[int, int, int]:
    """Return entries in both, entries in either, and cells of A, or of B alone, that are not the same set."""
    (passages_a, lengths_a), (passages_b, lengths_b) = a.ivf, b.ivf
    begins_a, begins_b = (_begins(lengths) for lengths in (lengths_a, lengths_b))
    paired = matching.b_of_a >= 0
    theirs = matching.b_of_a.clamp(min=0)
    lengths_of_pair = torch.where(paired, lengths_b[theirs], 0)
    common = torch.zeros(len(lengths_a), dtype=torch.int64)
    for cells in _runs(lengths_a + lengths_of_pair):
        keys_a = _keys(passages_a, begins_a[:-1][cells], lengths_a[cells])
        keys_b = _keys(passages_b, begins_b[:-1][theirs[cells]], lengths_of_pair[cells])
        both, counts = torch.cat([keys_a.unique(), keys_b.unique()]).unique(return_counts=True)
        common[cells] = torch.bincount(both[counts == 2] >> 32, minlength=len(common[cells]))
    agree = paired & (common == lengths_a) & (common == lengths_of_pair)
    alone = int((matching.a_of_b < 0).sum())
    entries = int(common.sum())
    return entries, len(passages_a) + len(passages_b) - entries, int((~agree).sum()) + alone


def _keys(passages: Tensor, begins: Tensor, lengths: Tensor) -> Tensor:
    """Return one number for each entry of cells: the cell's place in the high bits, the passage in the low ones."""
    cells = torch.arange(len(lengths)).repeat_interleave(lengths)
    places = torch.arange(len(cells)) - _begins(lengths)[:-1][cells] + begins[cells]
    return (cells << 32) | passages[places].long()


def _runs(lengths: Tensor) -> Iterator[slice]:
    """Yield runs of cells of at most ``ENTRIES`` entries, or of one cell."""
    ends, start = lengths.cumsum(0), 0
    while start < len(lengths):
        limit = (int(ends[start - 1]) if start else 0) + ENTRIES
        stop = max(start + 1, int(torch.searchsorted(ends, limit, right=True)))
        yield slice(start, stop)
        start = stop


def _begins(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def _inconsistent(folder: IndexFolder) -> int:
    """Return how many cells are not the passages whose tokens have the cell's code.

    By number of passages and a sum of their hashes, which wants a chunk of codes in memory and no more.
    """
    passages, lengths = folder.ivf
    sums, counts = torch.zeros_like(lengths), torch.zeros_like(lengths)
    offset = 0
    for chunk in range(folder.chunks):
        doclens = folder.doclens(chunk)
        owners = torch.arange(offset, offset + len(doclens)).repeat_interleave(doclens)
        keys = ((folder.codes(chunk).long() << 32) | owners).unique()
        sums.index_add_(0, keys >> 32, _hash(keys & (2**32 - 1)))
        counts += torch.bincount(keys >> 32, minlength=len(counts))
        offset += len(doclens)
    begins = _begins(lengths)
    for cells in _runs(lengths):
        owners = torch.arange(cells.start, cells.stop).repeat_interleave(lengths[cells])
        sums.index_add_(0, owners, -_hash(passages[begins[cells.start] : begins[cells.stop]].long()))
    return int(((sums != 0) | (counts != lengths)).sum())


def _hash(values: Tensor) -> Tensor:
    """Mix the bits of numbers (splitmix64's finaliser, in int64 that wraps around)."""
    values = (values + 1) * -7046029254386353131
    values = (values ^ ((values >> 30) & (2**34 - 1))) * -4658895280553007687
    values = (values ^ ((values >> 27) & (2**37 - 1))) * -7723592293110705685
    return values ^ ((values >> 31) & (2**33 - 1))
