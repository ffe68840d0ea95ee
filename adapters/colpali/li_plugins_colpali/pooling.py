"""Hierarchical token pooling from a distance matrix that costs ``N^2 d`` in place of ``N^3``.

The library clusters the rows of ``S = E E^T``, whose distances are ``|(e_i - e_j) E^T|``. With ``M = E^T E`` they are
``|(e_i - e_j) M^(1/2)|``: distances between rows of ``d`` numbers in place of ``N``.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist
from torch import Tensor

from li_plugins.api import Decline

Pooled = tuple[Tensor, dict[int, tuple[Tensor]]]


def pool_single_embedding(self: object, embedding: Tensor, pool_factor: int) -> Pooled | Decline:
    """Pool a page ``[N, d]`` to at most ``max(N // pool_factor, 1)`` unit vectors; also say which tokens each has."""
    refusal = _refusal(embedding, pool_factor)
    if refusal:
        return refusal
    tokens = embedding.float().cpu()
    count = max(len(tokens) // pool_factor, 1)
    merges = linkage(pdist(_whitened(tokens.double())), method="ward")
    labels = torch.from_numpy(fcluster(merges, t=count, criterion="maxclust")).long() - 1
    sizes = torch.bincount(labels, minlength=count)
    members = labels.argsort(stable=True).split(sizes.tolist())
    with torch.no_grad():
        sums = torch.zeros(count, tokens.shape[1], dtype=torch.float64).index_add_(0, labels, tokens.double())
        means = sums[sizes > 0] / sizes[sizes > 0, None]
        pooled = torch.nn.functional.normalize(means, dim=-1).float()
    return pooled.to(embedding.device).to(embedding.dtype), {number: (tokens,) for number, tokens in enumerate(members)}


def explain_pool_single_embedding(self: object, embedding: Tensor, pool_factor: int) -> object:
    """Say how a page would be pooled, or why the library's own code would run."""
    refusal = _refusal(embedding, pool_factor)
    return refusal or f"Ward clusters of {len(embedding)} tokens by whitened distances, on the CPU"


def _refusal(embedding: Tensor, pool_factor: int) -> Decline | None:
    if not isinstance(embedding, Tensor) or embedding.ndim != 2 or len(embedding) < 2 or not embedding.shape[1]:
        return Decline("no matrix of at least two tokens: the library has its own answer")
    if embedding.requires_grad:
        return Decline("embeddings require a gradient: the library raises its own error")
    if not embedding.is_floating_point():
        return Decline(f"dtype {embedding.dtype}: needs a floating dtype")
    if not isinstance(pool_factor, int) or pool_factor < 2:
        return Decline(f"pool_factor={pool_factor!r}: nothing to pool")
    return None


def _whitened(tokens: Tensor) -> np.ndarray:
    """Return rows whose distances are those of the rows of ``tokens @ tokens.T``; equal tokens have equal rows."""
    # of what is not finite scipy says so, as in the library
    if tokens.shape[0] <= tokens.shape[1] or not tokens.isfinite().all():
        rows = (tokens @ tokens.T).numpy()
    else:
        eigenvalues, vectors = torch.linalg.eigh(tokens.T @ tokens)
        rows = (tokens @ (vectors * eigenvalues.clamp(min=0).sqrt())).numpy()
    # A product may round its last rows in another way than the same rows before them.
    values = (tokens + 0.0).contiguous().numpy()  # by bytes: -0.0 is 0.0
    keys = values.view(np.dtype((np.void, values.strides[0]))).reshape(-1)
    _, first, places = np.unique(keys, return_index=True, return_inverse=True)
    return rows[first[places]]
