"""colbert-ai's centroids without faiss."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import kmeans

SEED, ROWS_PER_CENTROID = 123, 256
"""What the library passes to faiss, and what faiss takes by default."""
SAMPLES = 3
"""How often the sample has to fit into a GPU: itself, the rows drawn from it, and what an iteration needs."""


def compute_faiss_kmeans(
    dim: int, num_partitions: int, kmeans_niters: int, shared_lists: Any, return_value_queue: Any = None
) -> Tensor | Decline:
    """Return ``num_partitions`` centroids of the sample in ``shared_lists[0][0]``, float32 on the CPU."""
    sample = _sample(dim, num_partitions, shared_lists)
    if isinstance(sample, Decline):
        return sample
    centroids = kmeans(
        sample.to(_device(sample)),
        num_partitions,
        iterations=kmeans_niters,
        seed=SEED,
        max_rows_per_cluster=ROWS_PER_CENTROID,
    ).cpu()
    if return_value_queue is not None:
        return_value_queue.put(centroids)
    return centroids


def explain_compute_faiss_kmeans(
    dim: int, num_partitions: int, kmeans_niters: int, shared_lists: Any, return_value_queue: Any = None
) -> object:
    """Say how centroids would be trained, or why faiss would."""
    sample = _sample(dim, num_partitions, shared_lists)
    if isinstance(sample, Decline):
        return sample
    rows = min(len(sample), ROWS_PER_CENTROID * num_partitions)
    where = _device(sample)
    return f"kmeans: {kmeans_niters} iterations of {rows} rows and {num_partitions} centroids on {where}"


def _sample(dim: Any, num_partitions: Any, shared_lists: Any) -> Tensor | Decline:
    if not isinstance(shared_lists, (list, tuple)):
        return Decline("shared_lists holds no sample")
    sample = shared_lists[0][0]
    if type(sample) is not Tensor or sample.dim() != 2 or sample.shape[1] != dim or not sample.is_floating_point():
        return Decline(f"the sample is no plain floating tensor [N, {dim}]")
    has_faiss = hasattr(sys.modules["colbert.indexing.collection_indexer"], "faiss")
    if has_faiss and len(sample) < num_partitions:
        return Decline(f"{len(sample)} rows for {num_partitions} centroids: faiss has an error of its own for it")
    return sample.float() if sample.dtype is torch.float64 else sample


def _device(sample: Tensor) -> torch.device:
    """Return the current GPU, as the library does, where it has room for the sample; else where the sample is."""
    if not torch.cuda.is_available():
        return sample.device
    free, _ = torch.cuda.mem_get_info()
    return torch.device("cuda", torch.cuda.current_device()) if SAMPLES * sample.nbytes < free else sample.device
