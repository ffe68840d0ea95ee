"""Centroids without faiss, as good as those of faiss."""

from __future__ import annotations

import pytest
import torch
from colbert.indexing import collection_indexer

from li_plugins.testing.parity import call_unpatched


def sample(clusters: int = 300, each: int = 60, dim: int = 32) -> torch.Tensor:
    """Return normalised rows around centres of unequal weight, as embeddings are."""
    centres = torch.randn(clusters, dim)
    rows = centres.repeat_interleave(torch.randint(1, 2 * each, (clusters,)), 0)
    rows = rows + 0.7 * torch.randn(rows.shape)
    return torch.nn.functional.normalize(rows, dim=-1)[torch.randperm(len(rows))].half()


def objective(rows: torch.Tensor, centroids: torch.Tensor) -> float:
    return torch.cdist(rows.float(), centroids).amin(1).square().mean().item()


@pytest.mark.parametrize("partitions", [16, 256])
@pytest.mark.parametrize("iterations", [4, 20])
def test_the_objective_is_that_of_faiss(partitions: int, iterations: int) -> None:
    rows = sample()
    ours = collection_indexer.compute_faiss_kmeans(32, partitions, iterations, [[rows]])
    theirs = call_unpatched(collection_indexer.compute_faiss_kmeans, 32, partitions, iterations, [[rows]])
    assert (ours.shape, ours.dtype, ours.device) == (theirs.shape, theirs.dtype, theirs.device)
    assert objective(rows, ours) < 1.01 * objective(rows, theirs)


def test_more_rows_than_take_part() -> None:
    rows = sample(each=80)
    assert len(rows) > 256 * 32
    ours = collection_indexer.compute_faiss_kmeans(32, 32, 4, [[rows]])
    theirs = call_unpatched(collection_indexer.compute_faiss_kmeans, 32, 32, 4, [[rows]])
    assert objective(rows, ours) < 1.01 * objective(rows, theirs)


def test_it_is_the_same_every_time_and_goes_into_the_queue() -> None:
    class Queue(list):
        put = list.append

    rows, queue = sample(), Queue()
    first = collection_indexer.compute_faiss_kmeans(32, 64, 4, [[rows]], queue)
    torch.rand(5)
    assert torch.equal(first, collection_indexer.compute_faiss_kmeans(32, 64, 4, [[rows]]))
    assert queue[0] is first


@pytest.mark.allow_fallback(reason="faiss has an error of its own")
def test_fewer_rows_than_centroids_are_an_error_of_faiss() -> None:
    with pytest.raises(RuntimeError, match="at least as large"):
        collection_indexer.compute_faiss_kmeans(32, 64, 4, [[sample()[:10]]])


def test_without_faiss_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(collection_indexer, "faiss")
    assert collection_indexer.compute_faiss_kmeans(32, 16, 4, [[sample()]]).shape == (16, 32)
    with pytest.raises(ValueError, match="64 clusters need at least as many rows; found 10 rows"):
        collection_indexer.compute_faiss_kmeans(32, 64, 4, [[sample()[:10]]])
