"""What colbert-ai's configuration says about a call that may be served."""

from __future__ import annotations

from typing import Any

from li_plugins.api import Decline


def unserved(use_gpu: Any, interaction: str = "colbert") -> Decline | None:
    """Decline what runs on a GPU, and ``flipr``, whose score is no sum over all query tokens."""
    if use_gpu:
        return Decline("colbert-ai sees a GPU: its own code runs there")
    if interaction != "colbert":
        return Decline(f"interaction={interaction!r}: MaxSim sums over all query tokens")
    return None
