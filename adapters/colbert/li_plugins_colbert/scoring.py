"""colbert-ai's scores through MaxSim, with what each of its branches means by padding.

Where the library sees a GPU it takes everything there, and ragged documents are padded like the others.
"""

from __future__ import annotations

from dataclasses import replace
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
from li_plugins_colbert._config import taken, unserved

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
    return request if isinstance(request, Decline) else arguments.flat(maxsim(**request))


def explain_colbert_score(Q: Tensor, D_padded: Tensor, D_mask: Tensor, config: Any = None) -> object:
    """Say which kernel ``colbert_score`` would use, or why colbert-ai's own code would run."""
    request = _padded(Q, D_padded, D_mask, config)
    return request if isinstance(request, Decline) else explain_maxsim(**request)


def colbert_score_packed(Q: Tensor, D_packed: Tensor, D_lengths: Tensor, config: Any = None) -> Tensor | Decline:
    """Score one query ``[1, Lq, d]`` against ragged documents ``[T, d]``: ``[B]``.

    Where colbert-ai sees no GPU, each token's maximum is at least 0; where it does, only a document without tokens has
    what masked tokens have.
    """
    request = _packed(Q, D_packed, D_lengths, config)
    return request if isinstance(request, Decline) else arguments.flat(maxsim_packed(**request))


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
    refusal = _unscorable(queries, documents, mask, config)
    if refusal:
        return refusal
    queries, documents, mask = taken(config, queries, documents, mask)
    multiplied = arguments.as_multiplied(queries.to(documents.dtype), documents, query_rank=3, document_rank=3)
    if isinstance(multiplied, Decline):
        return multiplied
    queries, documents = multiplied
    count, length, _ = documents.shape
    if length == 0 or queries.shape[0] not in (1, count):
        return Decline(f"queries {list(queries.shape)}, documents {list(documents.shape)}: colbert-ai refuses these")
    unreadable = _unreadable(mask, count * length, documents)
    if unreadable:
        return unreadable
    is_one = queries.shape[0] == 1
    request = {
        "queries": queries,
        "documents": documents if is_one else documents[:, None],
        "document_mask": mask.view(count, length).bool().view(count, *([] if is_one else [1]), length),
        "mask_rule": PADDED,
        "out_dtype": arguments.score_dtype(queries),
    }
    return arguments.supported(request, supports_maxsim)


def _packed(queries: Any, documents: Any, lengths: Any, config: Any) -> Request | Decline:
    refusal = _unscorable(queries, documents, lengths, config)
    if refusal:
        return refusal
    if lengths.dtype is not torch.int64 or lengths.dim() != 1 or not len(lengths):
        return Decline("D_lengths is no int64 tensor of at least one length")
    on_gpu = config.total_visible_gpus > 0
    unserved_here = None if on_gpu else _uncompiled(queries, documents)
    if unserved_here:
        return unserved_here
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    # one wait at most, and none where the lengths are on the host, as those of an index are
    longest, total = torch.stack([lengths.amax(), offsets[-1]]).tolist()
    queries, documents, offsets = taken(config, queries, documents, offsets)
    queries = queries.squeeze(0)
    if queries.dim() != 2 or not len(queries):
        return Decline("queries of more than one text, or without tokens")
    multiplied = arguments.as_multiplied(queries.to(documents.dtype), documents, query_rank=2, document_rank=2)
    if isinstance(multiplied, Decline):
        return multiplied
    queries, documents = multiplied
    if total > len(documents):
        return Decline(f"D_lengths add up to {total} of {len(documents)} rows: colbert-ai has its own answer")
    count = len(queries)
    request: Request = {
        "queries": queries,
        # As many rows as the lengths say are read, and the rest left alone.
        "documents": documents[:total],
        "query_offsets": torch.arange(0, count + 1, max(count, 1), device=offsets.device),
        "document_offsets": offsets,
        "floor": None if on_gpu else torch.ones(lengths.shape, dtype=torch.bool),
        "mask_rule": replace(MaskRule.NONE, empty_score=PADDED.fill * count) if on_gpu else MaskRule.NONE,
        "out_dtype": arguments.score_dtype(queries),
        "max_query_length": count,
        "max_document_length": longest,
    }
    return arguments.supported(request, supports_maxsim_packed)


def _uncompiled(queries: Tensor, documents: Tensor) -> Decline | None:
    """Decline what the C++ does not take, in whose place the packed scores of the CPU are."""
    if documents.dtype is not torch.float32:
        return Decline(f"documents of dtype {documents.dtype}: the C++ takes float32")
    if torch.is_grad_enabled() and (queries.requires_grad or documents.requires_grad):
        return Decline("a gradient is asked for: the C++ has none")
    if arguments.autocast_dtype(documents.device) is not None:
        return Decline("autocast is on: the C++ takes float32")
    return None


def _unscorable(queries: Any, documents: Any, counted: Any, config: Any) -> Decline | None:
    refusal = unserved(config.interaction)
    if refusal:
        return refusal
    if type(queries) not in arguments.PLAIN_TENSORS or type(documents) not in arguments.PLAIN_TENSORS:
        return Decline("queries or documents are no plain tensors")
    if type(counted) is not Tensor:
        return Decline(f"D_mask or D_lengths of type {type(counted).__name__}: needs a plain tensor")
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
    return _unreadable(mask, scores.shape[0] * scores.shape[1], scores)


def _unreadable(mask: Any, entries: int, like: Tensor) -> Decline | None:
    if type(mask) is not Tensor or mask.numel() != entries or not mask.is_contiguous() or mask.device != like.device:
        return Decline(f"D_mask is no contiguous tensor of {entries} entries on {like.device}")
    return None
