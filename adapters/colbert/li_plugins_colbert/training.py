"""colbert-ai's scores and its loss over in-batch negatives, from one matrix of all queries and documents.

The library scores each query with its own documents, then all queries with all documents once more, and keeps the grid
of similarities and a list of the pairs that it wants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from colbert.modeling import colbert
from torch import Tensor
from torch.nn.functional import cross_entropy

from li_plugins.api import Decline
from li_plugins.ops import arguments, explain_maxsim, maxsim, supports_maxsim
from li_plugins_colbert._config import unserved
from li_plugins_colbert.scoring import PADDED

if TYPE_CHECKING:
    from li_plugins.ops.arguments import Request


def forward(self: Any, Q: Any, D: Any) -> Any:
    """Return the scores of each query with its ``nway`` documents, ``[A * nway]``, and the loss of ``compute_ib_loss``.

    Both come from one matrix; what no kernel serves, the model's own methods do, as in the library.
    """
    refusal = _unshared(self)
    if refusal:
        return refusal
    queries = self.query(*Q)
    documents, mask = self.doc(*D, keep_dims="return_mask")
    request = _request(self, queries, documents, mask)
    if isinstance(request, Decline):
        repeated = queries.repeat_interleave(self.colbert_config.nway, dim=0).contiguous()
        return self.score(repeated, documents, mask), self.compute_ib_loss(queries, documents, mask)
    scores = maxsim(**request)
    count = len(scores)
    own = scores.view(count, count, -1).diagonal().T  # the library's order: a query's documents together
    return own.reshape(-1), _loss(scores)


def explain_forward(self: Any, Q: Any, D: Any) -> object:
    """Say whether scores and loss would come from one matrix."""
    return _unshared(self) or "one maxsim of all queries and documents for the scores and the loss"


def compute_ib_loss(self: Any, Q: Tensor, D: Tensor, D_mask: Tensor) -> Tensor | Decline:
    """Return the cross entropy of each query ``[A, Lq, d]`` with its first of ``nway`` documents ``[A * nway, Ld, d]``.

    Against it stand the documents of all other queries; its own further documents are left out.
    """
    request = _request(self, Q, D, D_mask)
    return request if isinstance(request, Decline) else _loss(maxsim(**request))


def explain_compute_ib_loss(self: Any, Q: Tensor, D: Tensor, D_mask: Tensor) -> object:
    """Say which kernel ``compute_ib_loss`` would use, or why colbert-ai's own code would run."""
    request = _request(self, Q, D, D_mask)
    return request if isinstance(request, Decline) else explain_maxsim(**request)


def _loss(scores: Tensor) -> Tensor:
    """Return the loss of ``scores [A, A * nway]``."""
    count, documents = scores.shape
    first = torch.arange(count, device=scores.device) * (documents // count)
    column, own = torch.arange(documents, device=scores.device), first[:, None]
    left_out = (column > own) & (column < own + documents // count)
    return cross_entropy(scores.masked_fill(left_out, -torch.inf), first)


def _unshared(model: Any) -> Decline | None:
    """Decline where scores and loss are not both the library's over one matrix of MaxSim."""
    if not isinstance(model, colbert.ColBERT):
        return Decline(f"called on {type(model).__name__}, which is no ColBERT")
    config = model.colbert_config
    if not config.use_ib_negatives:
        return Decline("no in-batch negatives: each query is scored with its own documents alone, by colbert_score")
    if config.similarity == "l2":
        return Decline("similarity='l2': scores are distances, and the loss is of dot products")
    for name in ("score", "compute_ib_loss"):
        found = getattr(getattr(model, name), "__func__", None)
        if found is not getattr(colbert.ColBERT, name):
            return Decline(f"{name} of {type(model).__name__} is not ColBERT's")
    return unserved(config.interaction)


def _request(model: Any, queries: Any, documents: Any, mask: Any) -> Request | Decline:
    multiplied = arguments.as_multiplied(queries, documents, query_rank=3, document_rank=3)
    if isinstance(multiplied, Decline):
        return multiplied
    queries, documents = multiplied
    refusal = unserved(model.colbert_config.interaction)
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
        "out_dtype": arguments.score_dtype(queries),
    }
    return arguments.supported(request, supports_maxsim)
