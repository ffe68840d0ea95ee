"""Hierarchical token pooling: the same clusters, the same vectors, patched and unpatched."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from colpali_engine.compression.token_pooling import HierarchicalTokenPooler
from torch import Tensor

import li_plugins


def page(tokens: int, width: int = 32, topics: int = 9, dtype: torch.dtype = torch.float32) -> Tensor:
    """Patches around some topics, as of a real page."""
    centres = torch.randn(topics, width)[torch.randint(topics, (tokens,))]
    return torch.nn.functional.normalize(2 * centres + torch.randn(tokens, width), dim=-1).to(dtype)


def assert_same(pages: Any, pool_factor: int, exact_dtype: bool = True, **keywords: Any) -> None:
    pooler = HierarchicalTokenPooler()
    ours = pooler.pool_embeddings(pages, pool_factor=pool_factor, return_dict=True, **keywords)
    with li_plugins.suspended():
        theirs = pooler.pool_embeddings(pages, pool_factor=pool_factor, return_dict=True, **keywords)
    for mine, his in zip(ours.cluster_id_to_indices, theirs.cluster_id_to_indices, strict=True):
        assert list(mine) == list(his)
        for cluster in his:
            assert torch.equal(mine[cluster][0], his[cluster][0])
    for mine, his in zip(ours.pooled_embeddings, theirs.pooled_embeddings, strict=True):
        assert (mine.dtype, mine.shape) == (his.dtype, his.shape)
        torch.testing.assert_close(mine, his)


@pytest.mark.parametrize("pool_factor", [2, 3, 10, 1000])
@pytest.mark.parametrize(("tokens", "width"), [(2, 8), (31, 32), (64, 128), (300, 32), (768, 128)])
def test_clusters_and_vectors(tokens: int, width: int, pool_factor: int, li_plugins_counts: Any) -> None:
    assert_same([page(tokens, width)], pool_factor)
    assert li_plugins_counts.calls


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    assert_same([page(200, dtype=dtype), page(90, dtype=dtype)], 4)


def test_equal_tokens_meet() -> None:
    tokens = page(60).repeat_interleave(3, 0)
    pooled, clusters = HierarchicalTokenPooler()._pool_single_embedding(tokens, 3)
    assert sorted(tuple(sorted(members.tolist())) for (members,) in clusters.values()) == [
        (3 * number, 3 * number + 1, 3 * number + 2) for number in range(60)
    ]
    torch.testing.assert_close(pooled.norm(dim=-1), torch.ones(60))


@pytest.mark.parametrize("share", [2, 5])
@pytest.mark.parametrize("tokens", [67, 127, *range(1028, 1032)])
def test_repeated_tokens_are_clustered_as_in_the_library(tokens: int, share: int) -> None:
    """A matrix product may round its last rows, those beyond a multiple of 4, in another way than equal ones before."""
    drawn = torch.nn.functional.normalize(torch.randn(tokens // share, 128), dim=-1)
    assert_same([drawn[torch.randint(len(drawn), (tokens,))]], 3)


@pytest.mark.parametrize("tokens", [30, 300])
def test_pages_in_any_layout(tokens: int) -> None:
    found = page(tokens, 32).T.contiguous().T
    for strided in (found, found.double(), found[::2], found[:, ::2], found[:1].expand(tokens, 32)):
        assert_same([strided], 3)


def test_padded_batches_and_threads() -> None:
    pages = [page(40), page(25), page(31)]
    padded = torch.nn.utils.rnn.pad_sequence(pages, batch_first=True, padding_side="left")
    assert_same(padded, 3, padding=True, padding_side="left")
    assert_same(pages, 3, num_workers=3)


@pytest.mark.allow_fallback(reason="nothing to pool, or the library's error")
@pytest.mark.parametrize(
    ("tokens", "pool_factor"),
    [(torch.ones(4), 2), (torch.ones(1, 8), 2), (page(9).requires_grad_(), 2), (page(9), 1), (page(9), 0)],
    ids=["rank", "one token", "gradient", "factor 1", "factor 0"],
)
def test_the_rest_is_the_librarys(tokens: Tensor, pool_factor: int) -> None:
    def outcome() -> Any:
        try:
            return HierarchicalTokenPooler()._pool_single_embedding(tokens, pool_factor)[0].tolist()
        except Exception as error:  # whichever the library raises is compared
            return type(error), str(error)

    ours = outcome()
    with li_plugins.suspended():
        assert ours == outcome()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("tokens", [9, 400], ids=["few", "more than dimensions"])
def test_what_is_not_finite_is_scipys_error_as_in_the_library(tokens: int, value: float) -> None:
    pooled = page(tokens)
    pooled[3, 2] = value
    for around in (nullcontext(), li_plugins.suspended()):
        with around, pytest.raises(ValueError, match="must contain only finite values"):
            HierarchicalTokenPooler()._pool_single_embedding(pooled, 2)
