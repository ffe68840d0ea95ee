"""What colbert-ai's C++ extensions compute on the CPU, in torch: the same arguments, the same results.

segmented_maxsim.cpp, segmented_lookup.cpp, filter_pids.cpp and decompress_residuals.cpp of 0.2.22. Unlike these, they
have no array on the stack that a large index overflows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from li_plugins.ops import code_maxsim, decompress
from li_plugins.ops.spans import rows_of

MASKED = -9999.0
"""Where a maximum over the codes of a document begins in filter_pids.cpp."""


def segmented_maxsim(scores: Tensor, lengths: Tensor) -> Tensor:
    """Sum the maxima over each document's rows of ``scores [T, Lq]``, none of them less than 0: ``[documents]``."""
    owners = torch.arange(lengths.shape[0]).repeat_interleave(lengths)
    best = scores.new_zeros(lengths.shape[0], scores.shape[1])
    best.scatter_reduce_(0, owners[:, None].expand(-1, scores.shape[1]), scores[: owners.shape[0]], "amax")
    return best.sum(1)


def segmented_lookup(input: Tensor, pids: Tensor, lengths: Tensor, offsets: Tensor) -> Tensor:
    """Return the rows of ``input`` that begin at ``offsets``, ``lengths`` of them each, one after the other."""
    rows, _ = rows_of(offsets, lengths)
    return input.index_select(0, rows)


def filter_pids(
    pids: Tensor,
    centroid_scores: Tensor,
    codes: Tensor,
    doclens: Tensor,
    offsets: Tensor,
    idx: Tensor,
    nfiltered_docs: int,
) -> Tensor:
    """Return the ``nfiltered_docs // 4`` best of ``pids`` by all centroids, among the best by those of ``idx``.

    ``centroid_scores [K, Lq]``; best first, of equal ones the greater pid.
    """
    for kept, count in ((idx[None], nfiltered_docs), (None, nfiltered_docs // 4)):
        pairs = torch.zeros(pids.shape, dtype=torch.int64), pids.long()
        scores = code_maxsim(centroid_scores[None], codes, offsets, pairs=pairs, kept=kept, least=MASKED)
        pids = _best(pids, scores, count)
    return pids


def decompress_residuals(
    pids: Tensor,
    lengths: Tensor,
    offsets: Tensor,
    bucket_weights: Tensor,
    reversed_bit_map: Tensor,
    bucket_weight_combinations: Tensor,
    binary_residuals: Tensor,
    codes: Tensor,
    centroids: Tensor,
    dim: int,
    nbits: int,
) -> Tensor:
    """Return the embeddings of the documents' tokens, not normalised, one after the other: ``[T, dim]``."""
    chosen = pids.long()
    rows, _ = rows_of(offsets[chosen], lengths[chosen])
    stored = codes.index_select(0, rows), binary_residuals.index_select(0, rows)
    return decompress(*stored, centroids, bucket_weights, nbits=nbits, normalized=False)


def _best(pids: Tensor, scores: Tensor, count: int) -> Tensor:
    if count < pids.shape[0]:
        least = scores.topk(count).values[-1:] if count else scores.new_full((1,), torch.inf)
        likely = scores >= least
        pids, scores = pids[likely], scores[likely]
    pids, order = pids.sort(descending=True)
    return pids[scores[order].argsort(descending=True, stable=True)][:count]
