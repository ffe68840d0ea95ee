"""The k greatest numbers of each row, without a look at all of them again and again."""

from __future__ import annotations

import math

import torch
from torch import Tensor

WORTHWHILE = {"cpu": range(16, 64), "cuda": range(16, 2**31)}
"""How many times ``k`` a row is long where groups save time, by device.

``torch.topk`` partitions copies on the CPU, and from 64 on keeps a heap, which is quick; on a GPU it reads all numbers
once for every two bits.
"""


def greatest(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` greatest of each of ``rows [R, n]`` and their places, ``[R, k]`` each, in no order.

    Of groups of ``c`` numbers, those with the ``k`` greatest maxima hold every number that is greater than the least of
    these maxima; so it is enough to look at ``n / c`` and then ``c * k`` numbers. Where the least of the ``k`` stands
    elsewhere too, or NaN is among them, the places on the CPU are those of ``torch.topk``; on a GPU, which would have
    to be waited for, they are the same in every run.
    """
    count = rows.shape[1]
    if count // k not in WORTHWHILE.get(rows.device.type, ()):
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
    if rows.device.type != "cpu":
        return values, places
    unclear = ((rows >= values.amin(1, keepdim=True)).sum(1) != k).nonzero()[:, 0]
    if len(unclear):
        values[unclear], places[unclear] = rows[unclear].topk(k, sorted=False)
    return values, places
