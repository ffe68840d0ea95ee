"""What colpali-engine's tensors mean to MaxSim: padding is zero rows, there is no mask."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import arguments, supports_maxsim

Request = dict[str, Any]
"""Keyword arguments of ``maxsim``, ``maxsim_packed`` or ``smooth_maxsim``."""

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


def dense(queries: Any, documents: Any, *, document_rank: int) -> Request | Decline:
    """Return the ``maxsim`` of zero-padded batches.

    Parameters
    ----------
    queries, documents
        ``[A, Lq, d]`` against ``[B, Ld, d]`` or, at a ``document_rank`` of 4, ``[A, K, Ld, d]``.
    """
    multiplied = as_scored(queries, documents, document_rank=document_rank)
    if isinstance(multiplied, Decline):
        return multiplied
    request: Request = {
        "queries": multiplied[0],
        "documents": multiplied[1],
        "out_dtype": arguments.score_dtype(multiplied[0]),
    }
    support = supports_maxsim(**request)
    return request if support else Decline(support.reason)


def as_scored(queries: Any, documents: Any, *, document_rank: int) -> tuple[Tensor, Tensor] | Decline:
    """Return padded batches as the library multiplies them, or why its own code has to say what is wrong."""
    multiplied = arguments.as_multiplied(queries, documents, query_rank=3, document_rank=document_rank)
    if isinstance(multiplied, Decline):
        return multiplied
    if multiplied[1].shape[-2] == 0:
        return Decline("documents without tokens have no best token")
    if document_rank == 4 and multiplied[0].shape[0] != multiplied[1].shape[0]:
        return Decline(f"{multiplied[0].shape[0]} queries, candidates for {multiplied[1].shape[0]}")
    return multiplied
