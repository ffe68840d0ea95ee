"""An index built and searched with the plugin, against the library by itself, and each against the other's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_colbert
import torch
from colbert.modeling.colbert import ColBERT
from colbert.search.index_storage import IndexScorer
from conftest import Library
from li_plugins_colbert import passages
from li_plugins_colbert.extensions import StandIn

QUERIES = tiny_colbert.passages()[::7]


def ranking(searcher: Any, k: int = 10, **options: Any) -> list[tuple[list[int], list[float]]]:
    found = [searcher.search(query, k=k, **options) for query in QUERIES]
    return [(pids, scores) for pids, _, scores in found]


def assert_same(found: Any, expected: Any) -> None:
    """Compare rankings; documents may change places where their scores are within rounding."""
    for (pids, scores), (their_pids, their_scores) in zip(found, expected, strict=True):
        assert scores == pytest.approx(their_scores, abs=1e-4)
        for place, (mine, theirs) in enumerate(zip(pids, their_pids, strict=True)):
            assert mine == theirs or scores[place] == pytest.approx(scores[pids.index(theirs)], abs=1e-4)


def artifacts(folder: Path) -> dict[str, Any]:
    return {path.name: torch.load(path) for path in sorted(folder.glob("*.pt"))}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return tiny_colbert.passages()


@pytest.mark.allow_fallback(reason="passages that are given, and a filter, come between the stages of rank")
@pytest.mark.parametrize("nbits", [1, 2, 4])
def test_built_and_searched(
    checkpoint: Path, tmp_path: Path, texts: list[str], library: Library, nbits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_nothing(**arguments: Any) -> None:
        raise AssertionError(f"compiles {arguments['name']}")

    for module in ("colbert.modeling.colbert", "colbert.search.strided_tensor", "colbert.search.index_storage"):
        monkeypatch.setattr(f"{module}.load", compile_nothing)
    index = tiny_colbert.build(checkpoint, tmp_path, texts, nbits=nbits)
    ours = tiny_colbert.searcher(checkpoint, tmp_path, texts, nbits=nbits)
    assert isinstance(IndexScorer.filter_pids, StandIn)
    assert isinstance(ColBERT.segmented_maxsim, StandIn)
    found, listed = ranking(ours), ranking(ours, pids=list(range(0, 60, 2)))
    with library():
        theirs = tiny_colbert.searcher(checkpoint, tmp_path, texts, nbits=nbits)
        assert_same(found, ranking(theirs))
        assert_same(listed, ranking(theirs, pids=list(range(0, 60, 2))))
        own = tiny_colbert.build(checkpoint, tmp_path, texts, name="own", nbits=nbits)
        expected = ranking(tiny_colbert.searcher(checkpoint, tmp_path, texts, name="own", nbits=nbits))
    mine, library_files = artifacts(index), artifacts(own)
    assert mine.keys() == library_files.keys()
    for name in ("0.codes.pt", "0.residuals.pt", "centroids.pt"):
        assert (mine[name].dtype, mine[name].shape) == (library_files[name].dtype, library_files[name].shape)
    assert [type(part) for part in mine["buckets.pt"]] == [type(part) for part in library_files["buckets.pt"]]
    # the library's index, searched by ours
    found = ranking(tiny_colbert.searcher(checkpoint, tmp_path, texts, name="own", nbits=nbits))
    assert_same(found, expected)


@pytest.mark.allow_fallback(reason="passages that are given, and a filter, come between the stages of rank")
def test_a_text_finds_itself_and_scores_are_counted(
    checkpoint: Path, tmp_path: Path, texts: list[str], li_plugins_counts: Any
) -> None:
    tiny_colbert.build(checkpoint, tmp_path, texts)
    searcher = tiny_colbert.searcher(checkpoint, tmp_path, texts)
    assert [pids[0] for pids, _ in ranking(searcher, k=3)] == list(range(0, 60, 7))
    few = ranking(searcher, k=3, filter_fn=lambda pids: pids[pids < 20])
    assert all(pid < 20 for pids, _ in few for pid in pids)
    calls = li_plugins_counts.calls
    assert calls["colbert.indexing.codecs.residual:ResidualCodec.compress"] == 1
    assert calls["colbert.indexing.collection_indexer:compute_faiss_kmeans"] == 1
    assert calls["colbert.search.index_storage:IndexScorer.score_pids"] == 2 * len(QUERIES)
    assert calls["colbert.modeling.colbert:ColBERT.doc"] > 0
    assert calls["colbert.modeling.colbert:ColBERT.query"] == 2 * len(QUERIES)


@pytest.mark.allow_fallback(reason="several queries that are compared with a document each are the library's to score")
def test_full_length_queries(checkpoint: Path, tmp_path: Path, texts: list[str], library: Library) -> None:
    tiny_colbert.build(checkpoint, tmp_path, texts)
    found = ranking(tiny_colbert.searcher(checkpoint, tmp_path, texts), full_length_search=True)
    with library():
        assert_same(found, ranking(tiny_colbert.searcher(checkpoint, tmp_path, texts), full_length_search=True))


def encoder(checkpoint: Path, root: Path) -> Any:
    from colbert.indexing.collection_encoder import CollectionEncoder
    from colbert.modeling.checkpoint import Checkpoint

    config = tiny_colbert.config(checkpoint, root)
    return CollectionEncoder(config, Checkpoint(str(checkpoint), colbert_config=config))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many passages each encoding had, the library's included."""
    from colbert.modeling.checkpoint import Checkpoint

    found: list[int] = []
    own = Checkpoint.docFromText

    def counted(self: Any, docs: list[str], *arguments: Any, **options: Any) -> Any:
        found.append(len(docs))
        return own(self, docs, *arguments, **options)

    monkeypatch.setattr(Checkpoint, "docFromText", counted)
    monkeypatch.setattr(passages.trimmed, "encode", lambda checkpoint, docs, *rest, **options: counted(
        checkpoint, docs, *rest, keep_dims="flatten", **options))  # fmt: skip
    return found


def test_the_sample_is_not_encoded_twice(
    checkpoint: Path, tmp_path: Path, texts: list[str], encoded: list[int], library: Library
) -> None:
    tiny_colbert.build(checkpoint, tmp_path, texts)
    assert encoded == [60]
    encoded.clear()
    with library():
        tiny_colbert.build(checkpoint, tmp_path, texts, name="theirs")
    assert encoded == [60, 60]


def test_an_encoder_of_ones_own_encodes_each_time(
    checkpoint: Path, tmp_path: Path, texts: list[str], library: Library
) -> None:
    ours = encoder(checkpoint, tmp_path)
    first, lengths = ours.encode_passages(texts)
    again, counts = ours.encode_passages(list(texts))
    assert torch.equal(again, first)
    assert counts == lengths
    with torch.no_grad():
        ours.checkpoint.linear.weight.neg_()
    assert torch.equal(ours.encode_passages(texts)[0], -first)
    with library():
        torch.testing.assert_close(ours.encode_passages(texts)[0], -first, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tokens", [1024, 40])
def test_passages_are_encoded_no_wider_than_they_are(
    checkpoint: Path, tmp_path: Path, texts: list[str], library: Library, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    monkeypatch.setattr(passages.trimmed, "TOKENS_PER_THREAD", tokens)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    texts = [*texts, "", "!", "bat", texts[3] * 9]
    ours = encoder(checkpoint, tmp_path)
    ours.config.configure(index_bsize=7)
    with library():
        expected, lengths = ours.encode_passages(texts)
    shapes: list[torch.Size] = []
    own = type(ours.checkpoint).doc

    def doc(self: Any, ids: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        shapes.append(ids.shape)
        return own(self, ids, *arguments, **keywords)

    monkeypatch.setattr(type(ours.checkpoint), "doc", doc)
    found, counts = ours.encode_passages(texts)
    assert counts == lengths
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    widths = [width for _, width in shapes]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1] / 2
    assert all(batch == 1 or batch * width <= tokens for batch, width in shapes)
    assert (max(batch for batch, _ in shapes) == 7) == (tokens == 1024)


def test_one_passage_and_pooled_ones(checkpoint: Path, tmp_path: Path, texts: list[str], library: Library) -> None:
    for some, settings in ((texts[:1], {}), (texts, {"pool_factor": 2})):
        ours = encoder(checkpoint, tmp_path)
        ours.config.configure(**settings)
        with library():
            expected, lengths = ours.encode_passages(some)
        found, counts = ours.encode_passages(some)
        assert counts == lengths
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.allow_fallback(reason="there is nothing to encode")
def test_no_passage(checkpoint: Path, tmp_path: Path) -> None:
    assert encoder(checkpoint, tmp_path).encode_passages([]) == (None, None)


def test_masks(checkpoint: Path, tmp_path: Path) -> None:
    from li_plugins.testing.parity import call_unpatched

    model = ColBERT(str(checkpoint), tiny_colbert.config(checkpoint, tmp_path))
    ids = torch.randint(0, 60, (7, 30))
    for tokens in (ids, ids.int(), ids[:, ::2], ids[:0]):
        for skiplist in (model.skiplist, [], [5, 17, 2**40], {"!": True}):
            ours = model.mask(tokens, skiplist)
            assert ours == call_unpatched(model.mask, tokens, skiplist)
            assert all(type(flag) is bool for row in ours for flag in row)


def outcomes(model: Any, ids: torch.Tensor, attention: torch.Tensor) -> list[torch.Tensor]:
    masked, kept = model.doc(ids, attention, keep_dims="return_mask")
    listed = model.doc(ids, attention, keep_dims=False)
    return [masked, kept, model.doc(ids, attention), *listed, model.query(ids, attention)]


@pytest.mark.parametrize("settings", [{}, {"mask_punctuation": False}], ids=["punctuation", "none"])
def test_embeddings(checkpoint: Path, tmp_path: Path, library: Library, settings: dict[str, Any]) -> None:
    model = ColBERT(str(checkpoint), tiny_colbert.config(checkpoint, tmp_path, **settings))
    if settings:
        model.skiplist = []
    ids = torch.randint(0, 60, (7, 30))
    attention = (torch.arange(30) < torch.randint(5, 31, (7, 1))).long()
    found = outcomes(model, ids * attention, attention)
    with library():
        expected = outcomes(model, ids * attention, attention)
    assert [mine.dtype for mine in found] == [theirs.dtype for theirs in expected]
    assert all(map(torch.equal, found, expected))
    assert found[0].requires_grad


@pytest.mark.allow_fallback(reason="somebody else's mask, and what the library refuses")
def test_embeddings_that_are_the_librarys(checkpoint: Path, tmp_path: Path) -> None:
    model = ColBERT(str(checkpoint), tiny_colbert.config(checkpoint, tmp_path))
    ids = torch.randint(30, 60, (2, 9))
    with pytest.raises(AssertionError):
        model.doc(ids, torch.ones_like(ids), keep_dims="flatten")
    assert torch.equal(model.doc(ids, torch.ones_like(ids), keep_dims=0), model.doc(ids, torch.ones_like(ids)))
    model.mask = lambda input_ids, skiplist: [[False] * 9] * 2
    assert not model.doc(ids, torch.ones_like(ids)).any()
