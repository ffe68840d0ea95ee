"""colpali-engine's losses where they write out the grid: smooth maxima, and before 0.3.17 all of them."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from li_plugins.api import Decline
from li_plugins.ops import arguments, maxsim, smooth_maxsim
from li_plugins_colpali import _requests, bounds

_losses: Any = sys.modules["colpali_engine.loss.late_interaction_losses"]
"""Loaded: a loss is what is replaced."""


def inbatch_scores(self: Any, query_embeddings: Tensor, doc_embeddings: Tensor) -> Tensor | Decline:
    """Score every query against every document and normalise: ``[A, Lq, d]``, ``[B, Ld, d]`` to ``[A, B]``."""
    scores = _scores(self, query_embeddings, doc_embeddings, document_rank=3)
    if isinstance(scores, Decline) or not self.normalize_scores:
        return scores
    return bounds.normalized(self, scores, _query_lengths(query_embeddings))


def contrastive(self: Any, query_embeddings: Tensor, doc_embeddings: Tensor, offset: int = 0) -> Tensor | Decline:
    """``ColbertLoss.forward``: cross entropy over all documents of the batch."""
    scored = _filtered(self, query_embeddings, doc_embeddings, offset)
    if isinstance(scored, Decline):
        return scored
    scores, positives = scored
    return self.ce_loss(scores / self.temperature, positives)


def pairwise(self: Any, query_embeddings: Tensor, doc_embeddings: Tensor, offset: int = 0) -> Tensor | Decline:
    """``ColbertPairwiseCELoss.forward``: the positive against the best of the other documents."""
    scored = _filtered(self, query_embeddings, doc_embeddings, offset)
    if isinstance(scored, Decline):
        return scored
    scores, _ = scored
    own = scores.diagonal(offset=offset)
    first, second = scores.topk(2, dim=1).values.unbind(1)
    # Equal to the bit when the positive leads: both come from one matrix.
    rival = torch.where(first == own, second, first)
    return functional.softplus((rival - own) / self.temperature).mean()


def sigmoid(self: Any, query_embeddings: Tensor, doc_embeddings: Tensor, offset: int = 0) -> Tensor | Decline:
    """``ColbertSigmoidLoss.forward``: every pair is judged by itself; needs as many documents as queries."""
    scored = _filtered(self, query_embeddings, doc_embeddings, offset)
    if isinstance(scored, Decline):
        return scored
    scores, positives = scored
    count = scores.shape[0]
    signs = torch.full((count * count,), -1.0, device=scores.device)
    signs[positives * (count + 1)] = 1.0
    return functional.softplus(-(scores.view(-1) / self.temperature) * signs).mean()


def with_negatives(
    self: Any, query_embeddings: Tensor, doc_embeddings: Tensor, neg_doc_embeddings: Tensor, offset: int = 0
) -> Tensor | Decline:
    """``ColbertNegativeCELoss.forward``: the positive against each of its own negatives ``[A, K, Ld, d]``."""
    return _with_negatives(self, "inner_loss", query_embeddings, doc_embeddings, neg_doc_embeddings, offset)


def pairwise_with_negatives(
    self: Any, query_embeddings: Tensor, doc_embeddings: Tensor, neg_doc_embeddings: Tensor, offset: int = 0
) -> Tensor | Decline:
    """``ColbertPairwiseNegativeCELoss.forward``: as ``with_negatives``, with the pairwise loss of the batch."""
    return _with_negatives(self, "inner_pairwise", query_embeddings, doc_embeddings, neg_doc_embeddings, offset)


def _with_negatives(
    self: Any, inner: str, queries: Tensor, documents: Tensor, negatives: Tensor, offset: int
) -> Tensor | Decline:
    refusal = arguments.padded(queries, negatives, document_rank=4)
    if isinstance(refusal, Decline):
        return refusal
    own = documents[offset : offset + queries.shape[0]].unsqueeze(1)
    # The library writes these out, where no backend sees them.
    positive = _scores(self, queries, own, document_rank=4, dispatched=False)
    if isinstance(positive, Decline):
        return positive
    positive = positive.squeeze(1)
    negative = _scores(self, queries, negatives, document_rank=4)
    if isinstance(negative, Decline):
        return negative
    if self.normalize_scores:
        lengths = _query_lengths(queries)
        positive = bounds.normalized(self, positive, lengths)
        negative = bounds.normalized(self, negative, lengths)
    loss = functional.softplus((negative - positive.unsqueeze(1)) / self.temperature).mean()
    weight = self.in_batch_term_weight
    if weight > 0:
        loss = loss * (1 - weight) + getattr(self, inner)(queries, documents, offset) * weight
    return loss


def _filtered(self: Any, queries: Tensor, documents: Tensor, offset: int) -> tuple[Tensor, Tensor] | Decline:
    """Return the scores of the batch, negatives too good to be true lowered, and the columns of the positives."""
    scores = inbatch_scores(self, queries, documents)
    if isinstance(scores, Decline):
        return scores
    _, positives = self._get_idx(scores.shape[0], offset, scores.device)
    if self.pos_aware_negative_filtering:
        self._filter_high_negatives(scores, positives)
    return scores, positives


def _scores(
    self: Any, queries: Tensor, documents: Tensor, *, document_rank: int, dispatched: bool = True
) -> Tensor | Decline:
    """Return ``[A, B]``, or ``[A, K]`` at a ``document_rank`` of 4, by the hard or the smooth maximum."""
    request = _foreign(self) or _requests.dense(queries, documents, document_rank=document_rank)
    if isinstance(request, Decline):
        return request
    if dispatched and not self.use_smooth_max and hasattr(_losses, "maxsim_inbatch"):
        # The library's dispatcher knows the user's backend; its kernel seam is ours.
        dispatcher = _losses.maxsim_inbatch if document_rank == 3 else _losses.maxsim_kd
        return dispatcher(queries, documents)
    if self.use_smooth_max:
        request["tau"] = self.tau
    maximum = smooth_maxsim if self.use_smooth_max else maxsim
    return arguments.answered(_requests.named_backend() or request, maximum)


def _foreign(self: Any) -> Decline | None:
    """Decline what is no loss of the library, or takes a maximum of its own."""
    if not isinstance(self, _losses.ColbertModule):
        return Decline(f"{type(self).__name__} is no loss of colpali-engine")
    return _requests.replaced(self, "_aggregate", "_smooth_max")


def _query_lengths(queries: Tensor) -> Tensor:
    """Return how many tokens of each query have a first component that is not zero, as the library counts them."""
    return torch.count_nonzero(queries.detach()[:, :, 0], dim=1)
