"""The seam where colpali-engine calls a fused kernel: in-batch scores and those of each query's own candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import arguments, explain_maxsim, maxsim
from li_plugins_colpali import _requests

if TYPE_CHECKING:
    from li_plugins.ops.arguments import Request


def maxsim_inbatch_lik(query: Tensor, doc: Tensor) -> Tensor | Decline:
    """Score every query against every document: ``[A, Lq, d]`` and ``[B, Ld, d]`` to ``[A, B]``.

    Where this declines, the library's own function runs: it raises ``LIKUnsupportedError`` or calls that kernel.
    """
    return arguments.answered(_request(query, doc, document_rank=3), maxsim)


def explain_maxsim_inbatch_lik(query: Tensor, doc: Tensor) -> object:
    """Say which kernel ``maxsim_inbatch_lik`` would use, or why the library's own code would run."""
    return arguments.answered(_request(query, doc, document_rank=3), explain_maxsim)


def maxsim_kd_lik(query: Tensor, doc: Tensor) -> Tensor | Decline:
    """Score each query against its own candidates: ``[A, Lq, d]`` and ``[A, K, Ld, d]`` to ``[A, K]``."""
    return arguments.answered(_request(query, doc, document_rank=4), maxsim)


def explain_maxsim_kd_lik(query: Tensor, doc: Tensor) -> object:
    """Say which kernel ``maxsim_kd_lik`` would use, or why the library's own code would run."""
    return arguments.answered(_request(query, doc, document_rank=4), explain_maxsim)


def _request(query: Tensor, doc: Tensor, *, document_rank: int) -> Request | Decline:
    return _requests.named_backend() or _requests.dense(query, doc, document_rank=document_rank)
