"""Lists of ragged texts, as sentence-transformers' ``encode`` returns them: read, and how many a launch takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sentence_transformers.util import similarity as _similarity
from sentence_transformers.util.tensor import _convert_to_tensor
from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import arguments

ELEMENTS_PER_LAUNCH = {"cpu": 2**21, "cuda": 2**24}
"""Embedding elements that one launch puts one after the other, by device.

On the CPU small enough for the C library to keep the memory for the next launch: what it maps anew costs a page fault
per page.
"""


def texts(side: str, embeddings: list[Any], mask: Any) -> list[Tensor] | Decline:
    """Return the texts of one side, ``[length, d]`` each, as floating tensors; at least one has a token."""
    if mask is not None:
        return Decline(f"a mask for a list of {side}: it may unmask the padding that the library adds")
    if not all(isinstance(text, (Tensor, np.ndarray, list)) for text in embeddings):
        return Decline(f"{side}: a text is no tensor, array or list")
    tensors = [text if type(text) is Tensor else _convert_to_tensor(text) for text in embeddings]
    refusal = arguments.unlike(side, tensors)
    if refusal:
        return refusal
    if not tensors[0].is_floating_point():
        return Decline(f"{side} of dtype {tensors[0].dtype}: the library converts them chunk by chunk")
    return tensors if any(map(len, tensors)) else Decline(f"{side} without tokens")


def elements(chunk_elements: int | None, taken: int, device: torch.device) -> int | Decline:
    """Return how many elements a launch may copy: what the caller's or the library's budget leaves."""
    budget = _similarity._MAXSIM_CHUNK_ELEMENT_BUDGET if chunk_elements is None else chunk_elements
    if taken > budget:
        return Decline(f"queries of {taken} elements exceed the budget of {budget}: the library cuts them too")
    return min(budget - taken, ELEMENTS_PER_LAUNCH.get(device.type, budget))
