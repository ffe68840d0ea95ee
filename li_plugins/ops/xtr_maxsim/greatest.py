"""The k greatest numbers of each row, from the places that ``torch.topk`` takes them from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

WORTHWHILE = range(16, 64)
"""How many times ``k`` a row is long where groups save time; from 64 on ``torch.topk`` keeps a heap, which is quick."""


def greatest(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` greatest of each of ``rows [R, n]`` and their places, ``[R, k]`` each, in no order.

    ``torch.topk`` copies and partitions all numbers of such a row on the CPU. Of groups of ``c``, those with the ``k``
    greatest maxima hold every number that is greater than the least of these maxima; so it is enough to look at
    ``n / c`` and then ``c * k`` numbers. Where the least of the ``k`` stands elsewhere too, or NaN is among them,
    ``torch.topk`` says which it takes.
    """
    count = rows.shape[1]
    if rows.device.type != "cpu" or count // k not in WORTHWHILE:
        return rows.topk(k, sorted=False)
    share = math.isqrt(count // k)  # the least sum of both
    groups = count // share
    whole = groups * share
    grouped = rows[:, :whole].view(len(rows), share, groups)  # a group's members are strided: maxima run down rows
    chosen = grouped.amax(1).topk(k, sorted=False).indices
    members = grouped.gather(2, chosen[:, None].expand(-1, share, -1)).flatten(1)
    values, places = torch.cat([members, rows[:, whole:]], 1).topk(k, sorted=False)
    beyond = places - members.shape[1]
    turn = places.div(k, rounding_mode="floor")
    group = chosen.gather(1, places - turn * k)
    places = torch.where(beyond < 0, turn * groups + group, whole + beyond)
    unclear = ((rows >= values.amin(1, keepdim=True)).sum(1) != k).nonzero()[:, 0]
    if len(unclear):
        values[unclear], places[unclear] = rows[unclear].topk(k, sorted=False)
    return values, places
