"""colbert-ai's scores through MaxSim, with what each of its branches means by padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import (
    MaskRule,
    arguments,
    explain_maxsim,
    explain_maxsim_packed,
    maxsim,
    maxsim_packed,
    supports_maxsim,
    supports_maxsim_packed,
)
from li_plugins_colbert._config import unserved

if TYPE_CHECKING:
    from li_plugins.ops.arguments import Request

PADDED = MaskRule.FILL(-9999.0)
"""On padded tensors a masked token is a candidate with this similarity."""

FLIPR_TOKENS, FLIPR_BEST, FLIPR_BEST_CONTEXT = 64, 32, 8


def colbert_score(Q: Tensor, D_padded: Tensor, D_mask: Tensor, config: Any = None) -> Tensor | Decline:
    """Score one query ``[1, Lq, d]`` against all documents ``[B, Ld, d]``, or each of ``[B, Lq, d]`` against its own.

    ``D_mask`` has ``B * Ld`` entries; the scores are ``[B]``.
    """
    request = _padded(Q, D_padded, D_mask, config)
    return request if isinstance(request, Decline) else maxsim(**request).view(-1)


def explain_colbert_score(Q: Tensor, D_padded: Tensor, D_mask: Tensor, config: Any = None) -> object:
    """Say which kernel ``colbert_score`` would use, or why colbert-ai's own code would run."""
    request = _padded(Q, D_padded, D_mask, config)
    return request if isinstance(request, Decline) else explain_maxsim(**request)


def colbert_score_packed(Q: Tensor, D_packed: Tensor, D_lengths: Tensor, config: Any = None) -> Tensor | Decline:
    """Score one query ``[1, Lq, d]`` against ragged documents ``[T, d]``, each token's maximum at least 0: ``[B]``."""
    request = _packed(Q, D_packed, D_lengths, config)
    return request if isinstance(request, Decline) else maxsim_packed(**request).view(-1)


def explain_colbert_score_packed(Q: Tensor, D_packed: Tensor, D_lengths: Tensor, config: Any = None) -> object:
    """Say which kernel ``colbert_score_packed`` would use, or why colbert-ai's own code would run."""
    request = _packed(Q, D_packed, D_lengths, config)
    return request if isinstance(request, Decline) else explain_maxsim_packed(**request)


def colbert_score_reduce(scores_padded: Tensor, D_mask: Tensor, config: Any) -> Tensor | Decline:
    """Sum the maxima of ``scores_padded [B, Ld, Lq]`` over the document tokens, masked ones overwritten: ``[B]``."""
    refusal = _irreducible(scores_padded, D_mask, config)
    if refusal:
        return refusal
    is_masked = ~D_mask.view(scores_padded.shape[:2]).bool()
    best = scores_padded.masked_fill_(is_masked[:, :, None], PADDED.fill).amax(1)
    if config.interaction == "colbert":
        return best.sum(-1)
    total = best[:, :FLIPR_TOKENS].topk(FLIPR_BEST, dim=-1).values.sum(-1)
    context = best[:, FLIPR_TOKENS:]
    if context.shape[1] >= FLIPR_BEST_CONTEXT:
        total = total + context.topk(FLIPR_BEST_CONTEXT, dim=-1).values.sum(1)
    return total


def explain_colbert_score_reduce(scores_padded: Tensor, D_mask: Tensor, config: Any) -> object:
    """Say whether ``colbert_score_reduce`` takes the maxima without their positions."""
    return _irreducible(scores_padded, D_mask, config) or f"amax of {list(scores_padded.shape)} over document tokens"


def _padded(queries: Any, documents: Any, mask: Any, config: Any) -> Request | Decline:
    refusal = _unscorable(queries, documents, config)
    if refusal:
        return refusal
    multiplied = arguments.as_multiplied(queries.to(documents.dtype), documents, query_rank=3, document_rank=3)
    if isinstance(multiplied, Decline):
        return multiplied
    queries, documents = multiplied
    count, length, _ = documents.shape
    if length == 0 or queries.shape[0] not in (1, count):
        return Decline(f"queries {list(queries.shape)}, documents {list(documents.shape)}: colbert-ai refuses these")
    unreadable = _unreadable(mask, count * length)
    if unreadable:
        return unreadable
    is_one = queries.shape[0] == 1
    request = {
        "queries": queries,
        "documents": documents if is_one else documents[:, None],
        "document_mask": mask.view(count, length).bool().view(count, *([] if is_one else [1]), length),
        "mask_rule": PADDED,
    }
    return arguments.supported(request, supports_maxsim)


def _packed(queries: Any, documents: Any, lengths: Any, config: Any) -> Request | Decline:
    refusal = _unscorable(queries, documents, config)
    if refusal:
        return refusal
    # The C++ reads these dtypes from memory; what else comes is its own error to raise.
    if type(lengths) is not Tensor or lengths.dtype is not torch.int64 or lengths.dim() != 1 or not len(lengths):
        return Decline("D_lengths is no int64 tensor of at least one length")
    if documents.dtype is not torch.float32:
        return Decline(f"documents of dtype {documents.dtype}: the C++ takes float32")
    if torch.is_grad_enabled() and (queries.requires_grad or documents.requires_grad):
        return Decline("a gradient is asked for: the C++ has none")
    queries = queries.squeeze(0)
    if queries.dim() != 2 or arguments.autocast_dtype(documents.device) is not None:
        return Decline("queries of more than one text, or under autocast")
    multiplied = arguments.as_multiplied(queries.to(documents.dtype), documents, query_rank=2, document_rank=2)
    if isinstance(multiplied, Decline):
        return multiplied
    queries, documents = multiplied
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    request: Request = {
        "queries": queries,
        # The C++ reads as many rows as the lengths say and leaves the rest alone.
        "documents": documents[: int(offsets[-1])],
        "query_offsets": offsets.new_tensor([0, queries.shape[0]]),
        "document_offsets": offsets,
        "floor": torch.ones(lengths.shape, dtype=torch.bool),
        "max_query_length": queries.shape[0],
        "max_document_length": int(lengths.amax()),
    }
    return arguments.supported(request, supports_maxsim_packed)


def _unscorable(queries: Any, documents: Any, config: Any) -> Decline | None:
    refusal = unserved(config.total_visible_gpus > 0, config.interaction)
    if refusal:
        return refusal
    if type(queries) not in arguments.PLAIN_TENSORS or type(documents) not in arguments.PLAIN_TENSORS:
        return Decline("queries or documents are no plain tensors")
    return None


def _irreducible(scores: Any, mask: Any, config: Any) -> Decline | None:
    if type(scores) is not Tensor or scores.dim() != 3 or not scores.shape[1] or not scores.is_floating_point():
        return Decline("scores_padded is no plain floating tensor [B, Ld, Lq] with document tokens")
    if torch.is_grad_enabled() and scores.requires_grad:
        return Decline("a gradient is asked for: it flows to one maximum, whose position is needed")
    if config.interaction not in ("colbert", "flipr"):
        return Decline(f"interaction={config.interaction!r}: colbert-ai refuses it")
    if config.interaction == "flipr" and (config.query_maxlen != FLIPR_TOKENS or scores.shape[2] < FLIPR_BEST):
        return Decline("flipr needs query_maxlen=64 and 32 query tokens: colbert-ai refuses less")
    if scores.is_cuda:
        return Decline("scores on a GPU: colbert-ai's own code runs there")
    return _unreadable(mask, scores.shape[0] * scores.shape[1])


def _unreadable(mask: Any, entries: int) -> Decline | None:
    if type(mask) is not Tensor or mask.numel() != entries or not mask.is_contiguous():
        return Decline(f"D_mask is no contiguous tensor of {entries} entries")
    return None
