"""What colbert-ai's configuration says about a call: whether it may be served, and where its tensors go."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from li_plugins.api import Decline


def unserved(interaction: str) -> Decline | None:
    """Decline ``flipr``, whose score is no sum over all query tokens."""
    if interaction != "colbert":
        return Decline(f"interaction={interaction!r}: MaxSim sums over all query tokens")
    return None


def taken(config: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return tensors where colbert-ai takes them: on the current GPU if it sees any, else where they are."""
    return tuple(tensor.cuda() for tensor in tensors) if config.total_visible_gpus > 0 else tensors
