"""What colpali-engine's tensors mean to MaxSim: padding is zero rows, there is no mask."""

from __future__ import annotations

import os
from typing import Any

from li_plugins.api import Decline
from li_plugins.ops import arguments
from li_plugins.ops.arguments import Request

BACKEND_VARIABLE = "COLPALI_SCORES_BACKEND"


def named_backend() -> Decline | None:
    """Decline where the user names a backend by the library's variable; ``auto`` leaves the choice to us.

    An unknown name is declined as well, so that the library raises its own error. Releases before 0.3.17 do not read
    the variable; here it means the same for all of them.
    """
    asked = os.environ.get(BACKEND_VARIABLE, "auto")
    if asked.lower() == "auto":
        return None
    return Decline(f"{BACKEND_VARIABLE}={asked!r} names a backend; only 'auto' leaves the choice to li-plugins")


def replaced(module: Any, *methods: str) -> Decline | None:
    """Decline a loss one of whose methods is not the library's own: a subclass's, the user's, or another loss's."""
    for name in methods:
        # Looked up as the library does: what was compiled is then compiled anew when it is replaced.
        method = getattr(module, name)
        refusal = arguments.foreign(method, name, "colpali_engine")
        if refusal:
            return refusal
        if getattr(method, "__self__", None) is not module:
            return Decline(f"{name} of this {type(module).__name__} was replaced")
    return None


def dense(queries: Any, documents: Any, *, document_rank: int) -> Request | Decline:
    """Return what zero-padded batches ask of ``maxsim``, and with a ``tau`` of ``smooth_maxsim``.

    Parameters
    ----------
    queries, documents
        ``[A, Lq, d]`` against ``[B, Ld, d]`` or, at a ``document_rank`` of 4, ``[A, K, Ld, d]``.
    """
    multiplied = arguments.padded(queries, documents, document_rank=document_rank)
    if isinstance(multiplied, Decline):
        return multiplied
    queries, documents = multiplied
    return {"queries": queries, "documents": documents, "out_dtype": arguments.score_dtype(queries)}
