"""colbert-ai's mask of padding and skipped tokens in one comparison."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from li_plugins.api import Decline

INTEGERS = (torch.int64, torch.int32, torch.int16)


def mask(self: Any, input_ids: Tensor, skiplist: Any) -> list[list[bool]] | Decline:
    """Return for each token of ``input_ids [texts, length]`` whether it is neither padding nor in ``skiplist``."""
    refusal = _unmasked(self, input_ids, skiplist)
    if refusal:
        return refusal
    # the keys of a skiplist are the punctuation marks and their ids; only an id can equal a token
    skipped = [token for token in (*skiplist, self.pad_token) if isinstance(token, int)]
    ids = input_ids.cpu().long()
    return torch.isin(ids, torch.tensor(skipped, dtype=torch.int64), invert=True).tolist()


def explain_mask(self: Any, input_ids: Tensor, skiplist: Any) -> object:
    """Say whether ``mask`` is one comparison."""
    return _unmasked(self, input_ids, skiplist) or f"one torch.isin with up to {len(skiplist) + 1} tokens on the CPU"


def _unmasked(model: Any, input_ids: Any, skiplist: Any) -> Decline | None:
    if type(input_ids) is not Tensor or input_ids.dim() != 2 or input_ids.dtype not in INTEGERS:
        return Decline("input_ids are no plain tensor [texts, length] of int64, int32 or int16")
    if type(skiplist) not in (list, dict, set, tuple):
        return Decline(f"skiplist of type {type(skiplist).__name__}: needs a list, a set or a dictionary")
    tokens = (*skiplist, getattr(model, "pad_token", None))
    if not all(token is None or isinstance(token, (str, int)) for token in tokens):
        return Decline("skiplist holds something else than ids and the marks that they stand for")
    return None
