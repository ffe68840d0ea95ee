"""colbert-ai's last stages of search: candidates pruned by their codes, then MaxSim straight from what is stored."""

from __future__ import annotations

from typing import Any

import torch
from colbert.search.index_storage import IndexScorer
from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import explain_residual_maxsim, residual_maxsim
from li_plugins_colbert import residency, stages
from li_plugins_colbert._config import unserved

INTEGERS = (torch.int32, torch.int64)


def score_pids(
    self: Any, config: Any, Q: Tensor, pids: Tensor, centroid_scores: Tensor | None
) -> tuple[Tensor, Tensor] | Decline:
    """Filter the candidates ``pids`` by their centroids and score the rest: scores ``[n]`` and their pids ``[n]``."""
    refusal = unsearched(self, config, Q, pids)
    if refusal:
        return refusal
    if self.use_gpu:
        return _on_gpu(self, config, Q, pids, centroid_scores)
    if centroid_scores is not None:
        is_kept = centroid_scores.max(-1).values >= config.centroid_score_threshold
        stored = self.embeddings.codes, self.doclens, self.offsets
        pids = type(self).filter_pids(pids, centroid_scores, *stored, is_kept, config.ndocs)
    return residual_maxsim(*_arguments(self, Q), **_keywords(self, pids)), pids


def explain_score_pids(self: Any, config: Any, Q: Tensor, pids: Tensor, centroid_scores: Tensor | None) -> object:
    """Say which kernel would score the candidates, or why colbert-ai's own code would run."""
    refusal = unsearched(self, config, Q, pids)
    if refusal:
        return refusal
    if not self.use_gpu:
        return explain_residual_maxsim(*_arguments(self, Q), **_keywords(self, pids))
    dtype = self.codec.centroids.dtype
    return stages.explain_scored(residency.of(self), self.codec, Q.cuda(), _pairs(pids.cuda()), dtype)


def unsearched(scorer: Any, config: Any, queries: Any, pids: Any) -> Decline | None:
    """Decline what is not scored from codes and residuals."""
    if not isinstance(scorer, IndexScorer):
        return Decline(f"called on {type(scorer).__name__}, which is no IndexScorer")
    refusal = unserved(config.interaction)
    if refusal:
        return refusal
    if type(queries) is not Tensor or queries.dim() != 3 or queries.shape[0] != 1 or not queries.is_floating_point():
        return Decline("Q is no tensor [1, Lq, dim]: colbert-ai compares several queries with a document each")
    if not scorer.use_gpu and queries.dtype is not torch.float32:
        return Decline(f"Q of dtype {queries.dtype}: colbert-ai has float32 on the CPU")
    if type(pids) is not Tensor or pids.dtype not in (INTEGERS if scorer.use_gpu else INTEGERS[:1]):
        return Decline("pids are no int32 tensor: the C++ takes nothing else")
    if scorer.use_gpu and not len(pids):
        return Decline("no pids: colbert-ai's own error is the answer")
    if scorer.use_gpu is not scorer.codec.use_gpu:
        return Decline("an index that is searched on one device, with a codec on another")
    if scorer.codec.nbits not in (1, 2, 4, 8):
        return Decline(f"nbits={scorer.codec.nbits}")
    return None


def _on_gpu(
    scorer: Any, config: Any, queries: Tensor, pids: Tensor, centroid_scores: Tensor | None
) -> tuple[Tensor, Tensor]:
    stored, codec = residency.of(scorer), scorer.codec
    pairs = _pairs(pids.cuda())
    if centroid_scores is not None:
        scores = centroid_scores.cuda()[None]
        pairs = stages.pruned(stored, scores, pairs, config.centroid_score_threshold, config.ndocs)
        pids = pairs[1].to(pids.dtype)
    return stages.scored(stored, codec, queries.cuda(), pairs, codec.centroids.dtype), pids


def _pairs(pids: Tensor) -> stages.Pairs:
    """Return the pairs of one query and all pids."""
    documents = pids.long()
    return torch.zeros_like(documents), documents


def _arguments(scorer: Any, queries: Tensor) -> tuple[Tensor, ...]:
    codec, stored = scorer.codec, scorer.embeddings
    return queries, stored.codes, stored.residuals, codec.centroids, codec.bucket_weights, scorer.offsets


def _keywords(scorer: Any, pids: Tensor) -> dict[str, Any]:
    # the CPU's branch of the library begins every maximum at 0
    return {"nbits": scorer.codec.nbits, "pairs": _pairs(pids), "least": 0.0}
