"""Each rank of a training has examples of its own.

``colbert/data/examples.py``: ``Examples.tolist(rank, nranks)`` takes every ``nranks``-th example from the first one on,
whatever the rank: all ranks train on the same ones, and the others are never seen.
"""

from __future__ import annotations

from typing import Any

from li_plugins.api import Decline


def tolist(self: Any, rank: Any = None, nranks: Any = None, *, original: Any = None) -> Any:
    """Return every ``nranks``-th example from the ``rank``-th on, for every rank as many.

    Up to ``nranks - 1`` examples at the end are left out: a rank with one step more would wait for the others forever.
    """
    if nranks in (None, 0, 1):
        return original(self, rank, nranks)
    if rank not in range(nranks):
        return Decline(f"rank={rank} of {nranks}: the library's own error is the answer")
    shared = len(self.data) // nranks * nranks
    return [self.data[index] for index in range(rank, shared, nranks)]
