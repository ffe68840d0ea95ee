"""The same numbers in other places of memory: tensors that a kernel has to read through their strides."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STRIDED: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "sparse last dimension": lambda x: torch.stack([x, x], -1)[..., 0],
    "sliced": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "not aligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}
"""Each returns a tensor equal to the one it is given, two dimensions or more."""
