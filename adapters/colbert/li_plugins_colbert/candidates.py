"""colbert-ai's candidates for a query: the passages of its nearest centroids, found where it is searched."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from colbert.search import candidate_generation
from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import arguments, near_documents
from li_plugins.ops.near.lists import listed_near
from li_plugins_colbert import residency

STEPS = ("generate_candidate_pids", "get_cells")
"""What the library's ``generate_candidates`` calls."""


class Candidates(NamedTuple):
    """Pairs to score, sorted by query and then by passage, and the scores that prune them."""

    queries: Tensor
    passages: Tensor
    """``[P]`` each, int64."""
    centroid_scores: Tensor
    """``[A, K, Lq]``"""


def generate_candidates(self: Any, config: Any, Q: Tensor) -> tuple[Tensor, Tensor] | Decline:
    """Return the passages near a query ``[1, Lq, dim]``, ascending, and its similarities with centroids ``[K, Lq]``."""
    refusal = ungenerated(self, Q)
    if refusal:
        return refusal
    if not self.use_gpu:
        passages, scores = self.generate_candidate_pids(Q.squeeze(0), config.ncells)
        return passages.unique(), scores
    found = of_queries(residency.of(self), self.codec.centroids, Q.cuda().half(), config.ncells)
    return found.passages.int(), found.centroid_scores[0]


def explain_generate_candidates(self: Any, config: Any, Q: Tensor) -> object:
    """Say where candidates would be looked up, or why colbert-ai's own code would run."""
    refusal = ungenerated(self, Q)
    if refusal:
        return refusal
    where = residency.of(self).device if self.use_gpu else "the CPU"
    return f"passages of the {config.ncells} nearest of {len(self.codec.centroids)} centroids per token, on {where}"


def of_queries(stored: residency.Stored, centroids: Tensor, queries: Tensor, ncells: int) -> Candidates:
    """Return the passages of the ``ncells`` nearest centroids of each token of ``queries [A, Lq, dim]``.

    It waits for the device once, however many queries there are: for how many pairs there are; twice more where
    the passages of the centroids are on the host.
    """
    scores = similarities(centroids, queries)
    return listed(near(stored, scores, ncells), scores)


def similarities(centroids: Tensor, queries: Tensor) -> Tensor:
    """Return the similarities of ``centroids [K, dim]`` with ``queries [A, Lq, dim]``: ``[A, K, Lq]``.

    Contiguous along the tokens of a query, whose scores are read together; matmul may lay them out the other way.
    """
    count = len(queries)
    if count == 1:
        return torch.mm(centroids, queries[0].T)[None]
    return torch.bmm(centroids.expand(count, *centroids.shape), queries.mT)


def listed(is_near: Tensor, scores: Tensor) -> Candidates:
    """Return the passages that are near each query, ``is_near [A, passages]``; it waits for how many there are."""
    if len(is_near) == 1:
        passages = is_near.squeeze(0).nonzero().squeeze(1)
        return Candidates(torch.zeros_like(passages), passages, scores)
    asked, passages = is_near.nonzero().unbind(1)
    return Candidates(asked.contiguous(), passages.contiguous(), scores)


def in_room(is_near: Tensor, room: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first ``room`` passages that ``is_near [1, passages]`` marks, without a wait for how many there are.

    Where there are fewer, the rest is the index's last passage. The other results: which of them are there, ``[room]``,
    and how many are marked, ``[1]``.
    """
    counts = is_near[0].cumsum(0, dtype=torch.int32)
    ranks = torch.arange(1, room + 1, dtype=torch.int32, device=is_near.device)
    passages = torch.searchsorted(counts, ranks).clamp_(max=len(counts) - 1)
    return passages, ranks <= counts[-1], counts[-1:]


def near(stored: residency.Stored, scores: Tensor, ncells: int) -> Tensor:
    """Return which passages are near each query, ``[A, passages]`` bool."""
    passages, offsets = stored.cells
    total = len(stored.offsets) - 1
    if passages.device == stored.device:
        return near_documents(scores, passages, offsets, ncells=ncells, document_count=total)
    rows, owners = listed_near(scores, offsets, ncells)
    is_near = scores.new_zeros((len(scores), total), dtype=torch.bool)
    is_near.view(-1)[owners * total + stored.rows(passages, rows)] = True
    return is_near


def ungenerated(scorer: Any, queries: Any) -> Decline | None:
    """Decline what is not looked up as the library does."""
    if not isinstance(scorer, candidate_generation.CandidateGeneration):
        return Decline(f"called on {type(scorer).__name__}, which is no CandidateGeneration")
    if scorer.use_gpu is not scorer.codec.use_gpu:
        return Decline("an index that is searched on one device, with a codec on another")
    if type(queries) is not Tensor or queries.dim() != 3 or queries.shape[0] != 1 or not queries.shape[1]:
        return Decline("Q is no tensor [1, Lq, dim]: colbert-ai finds candidates for one query")
    refusal: Decline | None = None
    for step in STEPS:
        refusal = refusal or arguments.foreign(getattr(type(scorer), step), step, "colbert")
    return refusal
