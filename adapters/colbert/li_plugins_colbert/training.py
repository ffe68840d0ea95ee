"""colbert-ai's loss over in-batch negatives, without the grid of similarities and the list of its pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from li_plugins.api import Decline
from li_plugins.ops import arguments, explain_maxsim, maxsim, supports_maxsim
from li_plugins_colbert._config import unserved
from li_plugins_colbert.scoring import PADDED

if TYPE_CHECKING:
    from li_plugins.ops.arguments import Request


def compute_ib_loss(self: Any, Q: Tensor, D: Tensor, D_mask: Tensor) -> Tensor | Decline:
    """Return the cross entropy of each query ``[A, Lq, d]`` with its first of ``nway`` documents ``[A * nway, Ld, d]``.

    Against it stand the documents of all other queries; its own further documents are left out.
    """
    request = _request(self, Q, D, D_mask)
    if isinstance(request, Decline):
        return request
    scores = maxsim(**request)
    count, documents = scores.shape
    first = torch.arange(count, device=scores.device) * (documents // count)
    column, own = torch.arange(documents, device=scores.device), first[:, None]
    left_out = (column > own) & (column < own + documents // count)
    return cross_entropy(scores.masked_fill(left_out, -torch.inf), first)


def explain_compute_ib_loss(self: Any, Q: Tensor, D: Tensor, D_mask: Tensor) -> object:
    """Say which kernel ``compute_ib_loss`` would use, or why colbert-ai's own code would run."""
    request = _request(self, Q, D, D_mask)
    return request if isinstance(request, Decline) else explain_maxsim(**request)


def _request(model: Any, queries: Any, documents: Any, mask: Any) -> Request | Decline:
    multiplied = arguments.as_multiplied(queries, documents, query_rank=3, document_rank=3)
    if isinstance(multiplied, Decline):
        return multiplied
    queries, documents = multiplied
    refusal = unserved(documents.is_cuda, model.colbert_config.interaction)
    if refusal:
        return refusal
    count, nway = queries.shape[0], model.colbert_config.nway
    if not count or documents.shape[0] != count * nway or not documents.shape[1]:
        return Decline(f"{count} queries with nway={nway} for documents {list(documents.shape)}")
    if type(mask) is not Tensor or mask.shape != (*documents.shape[:2], 1):
        return Decline(f"D_mask is no plain tensor {[*documents.shape[:2], 1]}")
    request = {
        "queries": queries,
        "documents": documents,
        "document_mask": mask.bool().squeeze(-1),
        "mask_rule": PADDED,
    }
    return arguments.supported(request, supports_maxsim)
