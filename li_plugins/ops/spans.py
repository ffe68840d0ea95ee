"""Runs of rows, wherever each begins: which rows they are, and how those of one owner come together."""

from __future__ import annotations

import torch
from torch import Tensor


def rows_of(begins: Tensor, lengths: Tensor, total: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the rows of all runs and whose each is.

    Parameters
    ----------
    begins, lengths
        ``[n]``, int64: the first row of each run, and how many it has.
    total
        The sum of the lengths; read from them when not given, which waits for the device.

    Returns
    -------
    rows, owners
        ``[total]`` each, int64; owners count from 0.
    """
    owners = torch.arange(lengths.shape[0], device=lengths.device).repeat_interleave(lengths, output_size=total)
    shifts = begins - (lengths.cumsum(0) - lengths)
    rows = torch.arange(owners.shape[0], device=lengths.device) + shifts.index_select(0, owners)
    return rows, owners


def grouped(owners: Tensor | None) -> Tensor | None:
    """Return an order in which the entries of each of ``owners [n]`` are together; ``None``: they are already."""
    if owners is None or bool((owners[1:] >= owners[:-1]).all()):
        return None
    return owners.argsort(stable=True)
