"""The two functions in which sentence-transformers multiplies: one padded chunk, in one launch, without the grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import arguments, explain_maxsim, maxsim
from li_plugins_sentence_transformers import _requests

if TYPE_CHECKING:
    from li_plugins.ops.arguments import Request


def score_documents(a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None) -> Tensor | Decline:
    """Score every query against every document: ``[A, Lq, d]`` and ``[B, Ld, d]`` to ``[A, B]``."""
    request = _requests.dense(a, b, a_mask, b_mask, document_rank=3)
    if isinstance(request, Decline):
        return request
    return _requests.filled(maxsim(**request), _requests.without_tokens(b_mask))


def explain_score_documents(a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None) -> object:
    """Say which kernel ``score_documents`` would use, or why the library's own code would run."""
    request = _requests.dense(a, b, a_mask, b_mask, document_rank=3)
    return request if isinstance(request, Decline) else explain_maxsim(**request)


def score_pairs(a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None) -> Tensor | Decline:
    """Score the first query against the first document and so on: ``[B, Lq, d]`` and ``[B, Ld, d]`` to ``[B]``."""
    request = pairs(a, b, a_mask, b_mask)
    if isinstance(request, Decline):
        return request
    return _requests.filled(arguments.flat(maxsim(**request)), _requests.without_tokens(b_mask))


def explain_score_pairs(a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None) -> object:
    """Say which kernel ``score_pairs`` would use, or why the library's own code would run."""
    request = pairs(a, b, a_mask, b_mask)
    return request if isinstance(request, Decline) else explain_maxsim(**request)


def pairs(a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None) -> Request | Decline:
    """Return pairs as queries with one candidate each."""
    if not isinstance(b, Tensor) or b.ndim != 3:
        return Decline("documents are no tensor of rank 3")
    if b_mask is not None and (not isinstance(b_mask, Tensor) or b_mask.ndim != 2):
        return Decline("the documents' mask is no tensor of rank 2")
    return _requests.dense(a, b.unsqueeze(1), a_mask, _requests.one_candidate(b_mask), document_rank=4)
