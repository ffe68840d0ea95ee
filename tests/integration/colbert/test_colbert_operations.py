"""The operations in the place of the C++ extensions against the C++ itself: bit for bit, and in the same order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from colbert.indexing.codecs.residual import ResidualCodec
from colbert.modeling.colbert import ColBERT
from colbert.search.index_storage import IndexScorer
from colbert.search.strided_tensor import StridedTensor
from conftest import Library
from li_plugins_colbert import extensions, operations

import li_plugins
from li_plugins.ops.codec import bits


def ragged(count: int, longest: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Return lengths, none of them 0, and offsets with the end of the last."""
    lengths = torch.randint(1, longest, (count,))
    return lengths, torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])


def test_maxima_of_segments(library: Library) -> None:
    lengths, offsets = ragged(50)
    lengths[7] = 0
    scores = torch.randn(int(offsets[-1]), 32)
    scores[:200] -= 10  # documents whose similarities are all negative score 0
    with library() as cpp:
        expected = cpp["segmented_maxsim"](scores, lengths)
    assert torch.equal(operations.segmented_maxsim(scores, lengths), expected)
    assert not expected.all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("inner", [(), (5,)])
def test_rows_of_segments(library: Library, dtype: torch.dtype, inner: tuple[int, ...]) -> None:
    lengths, offsets = ragged(50)
    stored = torch.randint(0, 200, (int(offsets[-1]) + 9, *inner)).to(dtype)
    pids = torch.tensor([3, 41, 0, 7, 7, 49])
    with library() as cpp:
        expected = cpp["segmented_lookup"](stored, pids, lengths[pids], offsets[pids])
    found = operations.segmented_lookup(stored, pids, lengths[pids], offsets[pids])
    assert found.dtype is expected.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("wanted", [4, 16, 100, 399, 400, 4000])
@pytest.mark.parametrize("levels", [3, 1000])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.9])
def test_candidates_come_in_the_same_order(library: Library, wanted: int, levels: int, kept: float) -> None:
    lengths, offsets = ragged(500)
    codes = torch.randint(0, 64, (int(offsets[-1]) + 512,), dtype=torch.int32)
    # few levels: many candidates are equal, and their order is the pids'
    scores = (torch.randn(64, 32) * levels).round() / levels
    pids = torch.randperm(500)[:400].int().sort().values
    arguments: tuple[Any, ...] = (pids, scores, codes, lengths, offsets, torch.rand(64) < kept, wanted)
    with library() as cpp:
        expected = cpp["filter_pids"](*arguments)
    found = operations.filter_pids(*arguments)
    assert found.dtype is expected.dtype
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
def test_embeddings_of_documents(library: Library, nbits: int) -> None:
    lengths, offsets = ragged(50)
    total, dim = int(offsets[-1]) + 512, 64
    codes = torch.randint(0, 30, (total,), dtype=torch.int32)
    residuals = torch.randint(0, 256, (total, dim * nbits // 8), dtype=torch.uint8)
    centroids, weights = torch.randn(30, dim), torch.randn(2**nbits)
    # the library's two tables, of which only their composition is used here
    table = bits.buckets_of_bytes(nbits, torch.device("cpu")).to(torch.uint8)
    identity = torch.arange(256, dtype=torch.uint8)
    pids = torch.tensor([3, 41, 0, 7, 7, 49], dtype=torch.int32)
    arguments = (pids, lengths, offsets, weights, identity, table, residuals, codes, centroids, dim, nbits)
    with library() as cpp:
        expected = cpp["decompress_residuals"](*arguments)
    assert torch.equal(operations.decompress_residuals(*arguments), expected)


@pytest.mark.switches
def test_a_stand_in_gives_way_to_the_library_when_the_adapter_is_disabled(library: Library) -> None:
    li_plugins.enable("colbert", strict=True)
    ColBERT.try_load_torch_extensions(False)
    stand_in = ColBERT.segmented_maxsim
    assert isinstance(stand_in, extensions.StandIn)
    assert not hasattr(ColBERT, "loaded_extensions")
    scores, lengths = torch.randn(9, 4), torch.tensor([4, 5])
    ours = stand_in(scores, lengths)
    with library() as cpp:
        native = cpp["segmented_maxsim"]
        assert torch.equal(ours, native(scores, lengths))
    li_plugins.disable_all()
    # the same object, from a scorer that was made before
    assert torch.equal(stand_in(scores, lengths), ours)
    assert ColBERT.segmented_maxsim is not stand_in
    assert ColBERT.loaded_extensions
    li_plugins.enable("colbert", strict=True)
    explained = li_plugins.explain(ColBERT.try_load_torch_extensions, False).answer
    assert explained.startswith("segmented_maxsim: of the library's extension, which this process has loaded")
    ColBERT.try_load_torch_extensions(False)
    assert not isinstance(ColBERT.segmented_maxsim, extensions.StandIn), "what this process has loaded stays"
    del ColBERT.segmented_maxsim, ColBERT.loaded_extensions


def test_what_stands_in_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the class that looks an operation up."""
    for owner in (ColBERT, StridedTensor, IndexScorer, ResidualCodec):
        monkeypatch.delattr(owner, "loaded_extensions", raising=False)  # another test may have loaded them
    found = {
        owner: [li_plugins.explain(owner.try_load_torch_extensions, use_gpu).answer for use_gpu in (False, True)]
        for owner in (ColBERT, StridedTensor, IndexScorer, ResidualCodec)
    }
    nothing = "nothing: none of its operations is called here"
    ours = "of li_plugins_colbert.operations, nothing is compiled"
    assert found == {
        ColBERT: [f"segmented_maxsim: {ours}", nothing],
        StridedTensor: [f"segmented_lookup: {ours}", nothing],
        IndexScorer: [f"filter_pids, decompress_residuals: {ours}", nothing],
        ResidualCodec: [
            nothing,
            "decompress_residuals, packbits: of li_plugins_colbert.codec_operations, nothing is compiled",
        ],
    }


def test_nothing_is_set_where_the_library_sees_a_gpu() -> None:
    class Owner:
        pass

    extensions.load_for_index_scorer(Owner, True)
    assert not hasattr(Owner, "filter_pids")
    extensions.load_for_index_scorer(Owner, False)
    assert repr(Owner.filter_pids) == "<li_plugins_colbert.operations.filter_pids in the place of filter_pids>"
    assert IndexScorer.try_load_torch_extensions(True) is None
