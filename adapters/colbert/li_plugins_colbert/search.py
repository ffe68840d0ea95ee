"""colbert-ai's last stage of search: MaxSim straight from the stored codes and residual bytes."""

from __future__ import annotations

from typing import Any

import torch
from colbert.search.index_storage import IndexScorer
from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import explain_residual_maxsim, residual_maxsim
from li_plugins_colbert._config import unserved


def score_pids(
    self: Any, config: Any, Q: Tensor, pids: Tensor, centroid_scores: Tensor | None
) -> tuple[Tensor, Tensor] | Decline:
    """Filter the candidates ``pids`` by their centroids and score the rest: scores ``[n]`` and their pids ``[n]``."""
    refusal = _refusal(self, config, Q, pids)
    if refusal:
        return refusal
    if centroid_scores is not None:
        is_kept = centroid_scores.max(-1).values >= config.centroid_score_threshold
        stored = self.embeddings.codes, self.doclens, self.offsets
        pids = type(self).filter_pids(pids, centroid_scores, *stored, is_kept, config.ndocs)
    return residual_maxsim(*_arguments(self, Q), **_keywords(self, pids)), pids


def explain_score_pids(self: Any, config: Any, Q: Tensor, pids: Tensor, centroid_scores: Tensor | None) -> object:
    """Say which kernel would score the candidates, or why colbert-ai's own code would run."""
    return _refusal(self, config, Q, pids) or explain_residual_maxsim(*_arguments(self, Q), **_keywords(self, pids))


def _refusal(scorer: Any, config: Any, queries: Any, pids: Any) -> Decline | None:
    if not isinstance(scorer, IndexScorer):
        return Decline(f"called on {type(scorer).__name__}, which is no IndexScorer")
    refusal = unserved(scorer.use_gpu, config.interaction)
    if refusal:
        return refusal
    if type(queries) is not Tensor or queries.dim() != 3 or queries.shape[0] != 1 or queries.dtype is not torch.float32:
        return Decline("Q is no float32 tensor [1, Lq, dim]: colbert-ai compares several queries with a document each")
    if type(pids) is not Tensor or pids.dtype is not torch.int32:
        return Decline("pids are no int32 tensor: the C++ takes nothing else")
    if scorer.codec.nbits not in (1, 2, 4, 8):
        return Decline(f"nbits={scorer.codec.nbits}")
    return None


def _arguments(scorer: Any, queries: Tensor) -> tuple[Tensor, ...]:
    codec, stored = scorer.codec, scorer.embeddings
    return queries, stored.codes, stored.residuals, codec.centroids, codec.bucket_weights, scorer.offsets


def _keywords(scorer: Any, pids: Tensor) -> dict[str, Any]:
    documents = pids.long()
    # the CPU's branch of the library begins every maximum at 0
    return {"nbits": scorer.codec.nbits, "pairs": (torch.zeros_like(documents), documents), "least": 0.0}
