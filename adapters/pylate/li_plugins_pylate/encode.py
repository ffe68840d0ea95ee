"""PyLate's encoding: the mask of skipped tokens in one comparison."""

from __future__ import annotations

import torch
from torch import Tensor

from li_plugins.api import Decline

SERVED = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.float32, torch.float64)


def skiplist_mask(input_ids: Tensor, skiplist: list[int]) -> Tensor | Decline:
    """Return a bool mask in the shape of ``input_ids``: false where the token is in ``skiplist``."""
    refusal = _refusal(input_ids, skiplist)
    if refusal:
        return refusal
    skipped = torch.tensor(data=skiplist, dtype=torch.long, device=input_ids.device)
    # PyLate compares with one 0-dimensional int64 tensor after the other, to which torch promotes no integers with a
    # dimension: it compares in their dtype, which may be narrower.
    is_promoted = input_ids.ndim == 0 and not input_ids.is_floating_point()
    compared = torch.int64 if is_promoted else input_ids.dtype
    return torch.isin(input_ids.to(compared), skipped.to(compared), invert=True)


def explain_skiplist_mask(input_ids: Tensor, skiplist: list[int]) -> object:
    """Say whether ``skiplist_mask`` is one comparison."""
    return _refusal(input_ids, skiplist) or f"one torch.isin with {len(skiplist)} tokens on {input_ids.device}"


def _refusal(input_ids: object, skiplist: object) -> Decline | None:
    if type(input_ids) is not Tensor or input_ids.layout is not torch.strided:
        return Decline(f"input_ids of type {type(input_ids).__name__}: needs a plain dense tensor")
    if input_ids.dtype not in SERVED:
        return Decline(f"input_ids of dtype {input_ids.dtype}: torch.isin takes {', '.join(map(str, SERVED))}")
    if not isinstance(skiplist, (list, tuple)) or not all(isinstance(token, int) for token in skiplist):
        return Decline("skiplist is no list of int")
    return None
