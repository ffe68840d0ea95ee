"""The k greatest numbers of each row, without a look at all of them again and again."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

WORTHWHILE = {"cpu": range(16, 64), "cuda": range(16, 2**31)}
"""How many times ``k`` a row is long where groups save time, by device.

``torch.topk`` partitions copies on the CPU, and from 64 on keeps a heap, which is quick; on a GPU it reads all numbers
once for every two bits.
"""


def greatest(tiles: Iterable[Tensor], count: int, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` greatest of each row and their places, ``[R, k]`` each, in no order.

    Of groups of ``c`` numbers, those with the ``k`` greatest maxima hold every number that is greater than the least of
    these maxima; so it is enough to look at ``n / c`` and then ``c * k`` numbers. Where the least of the ``k`` stands
    elsewhere too, or NaN is among them, the places on the CPU are those of ``torch.topk``; on a GPU, which would have
    to be waited for, they are the same in every run.

    Parameters
    ----------
    tiles
        ``[rows, n]`` each, ``R`` rows in all, at least one tile; one is not read after the next was asked for.
    count
        ``n``.
    """
    values, places, chosen = zip(*map(partial(_of_tile, k=k), tiles), strict=True)
    if chosen[0] is None:
        return _joined(values), _joined(places)
    return _joined(values), _among_all(_joined(places), _joined(chosen), count)


def _of_tile(rows: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return values and places; and on a GPU, where the places are those among the members of groups, these groups."""
    count = rows.shape[1]
    if count // k not in WORTHWHILE.get(rows.device.type, ()):
        return *rows.topk(k, sorted=False), None
    share, groups = _shares(count, k)
    whole = groups * share
    grouped = rows[:, :whole].view(len(rows), share, groups)  # a group's members are strided: maxima run down rows
    chosen = grouped.amax(1).topk(k, sorted=False).indices
    members = grouped.gather(2, chosen[:, None].expand(-1, share, -1)).flatten(1)
    values, places = torch.cat([members, rows[:, whole:]], 1).topk(k, sorted=False)
    if rows.device.type != "cpu":
        return values, places, chosen
    places = _among_all(places, chosen, count)
    unclear = ((rows >= values.amin(1, keepdim=True)).sum(1) != k).nonzero()[:, 0]
    if len(unclear):
        values[unclear], places[unclear] = rows[unclear].topk(k, sorted=False)
    return values, places, None


def _shares(count: int, k: int) -> tuple[int, int]:
    """Return how many numbers a group has, for the least sum of groups and members, and how many groups there are."""
    share = math.isqrt(count // k)
    return share, count // share


def _among_all(places: Tensor, chosen: Tensor, count: int) -> Tensor:
    """Return the places among ``count`` numbers of places among the members of ``chosen`` groups and what is beyond."""
    k = chosen.shape[1]
    share, groups = _shares(count, k)
    beyond = places - share * k
    turn = places.div(k, rounding_mode="floor")
    group = chosen.gather(1, places - turn * k)
    return torch.where(beyond < 0, turn * groups + group, groups * share + beyond)


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
