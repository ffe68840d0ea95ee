"""k-means of rows that lie on two GPUs, which NCCL connects: the centroids of all rows, the same bits on both."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import two_ranks
from torch import Tensor

from li_plugins.ops import assign, dispatch, kmeans

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")]

DTYPES = ["float16", "bfloat16", "float32"]
CLUSTERS, ITERATIONS = 256, 4
FIRST = 30_011
"""Rows of the first rank, of 100,000."""


def rows_of(dtype: str, rank: int) -> Tensor:
    random = torch.Generator().manual_seed(0)
    centers = torch.randn(CLUSTERS, 64, generator=random)
    rows = centers[torch.randint(CLUSTERS, (100_000,), generator=random)]
    rows = rows + 0.5 * torch.randn(rows.shape, generator=random)
    return rows.to(f"cuda:{rank}", getattr(torch, dtype))


def rank_main(rank: int, port: str, output: str) -> None:
    """Train on the rows of one of two ranks, and save the centroids."""
    torch.cuda.set_device(rank)
    store = dist.TCPStore("127.0.0.1", int(port), is_master=False)
    dist.init_process_group("nccl", store=store, rank=rank, world_size=2, device_id=torch.device("cuda", rank))
    part = slice(0, FIRST) if rank == 0 else slice(FIRST, None)
    found = {}
    for dtype in DTYPES:
        rows = rows_of(dtype, rank)[part]
        found[dtype] = kmeans(rows, CLUSTERS, iterations=ITERATIONS, seed=3, group=dist.group.WORLD).cpu()
    assert dispatch.counters()["assign", "triton"] >= ITERATIONS * len(DTYPES)
    torch.save(found, f"{output}{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def spread(rows: Tensor, centroids: Tensor) -> float:
    """Return the mean squared distance of rows to their centroids."""
    centroids = centroids.to(rows.device)
    codes = assign(rows, centroids.to(rows.dtype), by="distance")[0]
    return float((rows.double() - centroids[codes.long()].double()).square().sum(1).mean())


def test_the_centroids_of_all_rows_on_both(tmp_path: Path) -> None:
    first, second = two_ranks.found_by(__file__, tmp_path)
    for dtype in DTYPES:
        assert torch.equal(first[dtype], second[dtype])
        rows = rows_of(dtype, 0)
        alone = kmeans(rows, CLUSTERS, iterations=ITERATIONS, seed=3)
        assert spread(rows, first[dtype]) == pytest.approx(spread(rows, alone), rel=1e-3)


if __name__ == "__main__":
    rank_main(int(sys.argv[1]), *sys.argv[2:])
