"""colbert-ai's scores, patched, against the library's own and float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from colbert.infra import ColBERTConfig
from colbert.modeling import colbert
from colbert.search import index_storage
from conftest import Library

from li_plugins.testing.oracle import judge
from li_plugins.testing.parity import LEAVES, assert_parity, call_unpatched

LEAVES |= {"colbert_score_reduce"}

CONFIG = ColBERTConfig()
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def batch(dtype: torch.dtype = torch.float32, queries: int = 1, negative: bool = False) -> list[Any]:
    """Return queries, documents and a mask ``[B, Ld, 1]`` under which one document has nothing."""
    embeddings, documents = torch.randn(queries, 9, 16).to(dtype), torch.randn(6, 13, 16).to(dtype)
    if negative:
        embeddings, documents = embeddings.abs(), -documents.abs()
    mask = torch.rand(6, 13, 1) < 0.7
    mask[2] = False
    return [embeddings, documents, mask]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("queries", [1, 6], ids=["one", "aligned"])
@pytest.mark.parametrize("negative", [False, True])
def test_padded(dtype: torch.dtype, queries: int, negative: bool, li_plugins_counts: Any) -> None:
    embeddings, documents, mask = batch(dtype, queries, negative)
    run = assert_parity(colbert.colbert_score, [embeddings, documents], mask, CONFIG)
    assert run.scores.shape == (6,)
    assert li_plugins_counts.calls["colbert.modeling.colbert:colbert_score"] == 1


@pytest.mark.parametrize("queries", [1, 6], ids=["one", "aligned"])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_gradients(queries: int, wanted: tuple[bool, bool]) -> None:
    embeddings, documents, mask = batch(torch.float32, queries)
    assert_parity(colbert.colbert_score, [embeddings, documents], mask, CONFIG, wanted=wanted)


def test_a_document_without_tokens_has_the_fill_for_every_query_token() -> None:
    embeddings, documents, mask = batch()
    assert colbert.colbert_score(embeddings, documents, mask, CONFIG)[2] == -9999 * 9


def test_queries_take_the_documents_dtype() -> None:
    embeddings, documents, mask = batch()
    ours = colbert.colbert_score(embeddings, documents.half(), mask.float(), CONFIG)
    library = call_unpatched(colbert.colbert_score, embeddings, documents.half(), mask.float(), CONFIG)
    assert ours.dtype is library.dtype is torch.float16
    torch.testing.assert_close(ours, library, rtol=4e-3, atol=0.1)


def packed(negative: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([3, 1, 12, 0, 7])
    queries, documents = torch.randn(1, 9, 16), torch.randn(int(lengths.sum()), 16)
    return (queries.abs(), -documents.abs(), lengths) if negative else (queries, documents, lengths)


@pytest.mark.parametrize("negative", [False, True])
def test_packed(library: Library, negative: bool, li_plugins_counts: Any) -> None:
    queries, documents, lengths = packed(negative)
    ours = colbert.colbert_score_packed(queries, documents, lengths, CONFIG)
    with library():
        expected = colbert.colbert_score_packed(queries, documents, lengths, CONFIG)
    exact = torch.stack(
        [
            (queries[0].double() @ torch.cat([part, torch.zeros(1, 16)]).double().T).amax(1).sum()
            for part in documents.split(lengths.tolist())
        ]
    )
    verdict = judge(ours, exact, expected, magnitude=4 * max(1.0, exact.abs().max().item()))
    assert verdict, verdict
    # all that is negative, and nothing at all, scores 0 in the library's code for the CPU
    assert (ours == 0).tolist() == ([True] * 5 if negative else [False, False, False, True, False])
    assert li_plugins_counts.calls["colbert.modeling.colbert:colbert_score_packed"] == 1


def test_rows_behind_the_last_document_are_left_alone(library: Library) -> None:
    queries, documents, lengths = packed()
    more = torch.cat([documents, torch.full((5, 16), 100.0)])
    ours = colbert.colbert_score_packed(queries, more, lengths, CONFIG)
    with library():
        torch.testing.assert_close(ours, colbert.colbert_score_packed(queries, more, lengths, CONFIG))


@pytest.mark.allow_fallback(reason="a query without tokens is the library's to score")
def test_packed_without_query_tokens(library: Library) -> None:
    _, documents, lengths = packed()
    ours = colbert.colbert_score_packed(torch.zeros(1, 0, 16), documents, lengths, CONFIG)
    with library():
        expected = colbert.colbert_score_packed(torch.zeros(1, 0, 16), documents, lengths, CONFIG)
    assert torch.equal(ours, expected)
    assert ours.shape == (5,)


def test_the_copies_of_the_search_are_the_same_functions() -> None:
    for name in ("colbert_score", "colbert_score_packed", "colbert_score_reduce"):
        assert getattr(index_storage, name) is getattr(colbert, name)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("interaction", "tokens"), [("colbert", 9), ("flipr", 40), ("flipr", 64), ("flipr", 80)])
def test_reduce(dtype: torch.dtype, interaction: str, tokens: int) -> None:
    config = ColBERTConfig(interaction=interaction, query_maxlen=64)
    scores, mask = torch.randn(6, 13, tokens).to(dtype), torch.rand(6, 13, 1) < 0.7
    ours, theirs = scores.clone(), scores.clone()
    found = colbert.colbert_score_reduce(ours, mask, config)
    expected = call_unpatched(colbert.colbert_score_reduce, theirs, mask, config)
    assert torch.equal(found, expected)
    assert torch.equal(ours, theirs), "the library overwrites the scores of masked tokens"
    assert not torch.equal(ours, scores)


@pytest.mark.allow_fallback(reason="flipr is no sum over all query tokens; the library's own maxima are reduced")
def test_flipr_is_the_librarys() -> None:
    config = ColBERTConfig(interaction="flipr", query_maxlen=64)
    queries, documents, mask = torch.randn(1, 70, 16), torch.randn(6, 13, 16), torch.rand(6, 13) < 0.7
    ours = colbert.colbert_score(queries, documents, mask, config)
    assert torch.equal(ours, call_unpatched(colbert.colbert_score, queries, documents, mask, config))


@pytest.mark.allow_fallback(reason="the library answers what it refuses, and what needs the place of a maximum")
@pytest.mark.parametrize(
    "call",
    [
        lambda: colbert.colbert_score(torch.randn(2, 3, 4), torch.randn(5, 6, 4), torch.ones(5, 6), CONFIG),
        lambda: colbert.colbert_score(torch.randn(1, 3, 4), torch.randn(5, 6, 4), torch.ones(5, 7), CONFIG),
        lambda: colbert.colbert_score(torch.randn(1, 3, 4), torch.randn(5, 0, 4), torch.ones(5, 0), CONFIG),
        lambda: colbert.colbert_score_reduce(torch.randn(2, 3, 4), torch.ones(7), CONFIG),
        lambda: colbert.colbert_score_reduce(torch.randn(2, 3, 4), torch.ones(2, 3), ColBERTConfig(interaction="?")),
    ],
    ids=["queries", "mask", "no token", "mask of reduce", "interaction"],
)
def test_the_library_refuses_the_rest(call: Any) -> None:
    def outcome() -> tuple[type, str]:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is, it is compared
            call()
        return type(caught.value), str(caught.value)

    assert outcome() == call_unpatched(outcome)


def model(nway: int, **settings: Any) -> Any:
    """Return what ``compute_ib_loss`` reads of a model."""
    module = torch.nn.Module()
    module.colbert_config = ColBERTConfig(nway=nway, **settings)
    return module


@pytest.mark.parametrize("nway", [1, 2, 3])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_the_loss_of_in_batch_negatives(nway: int, wanted: tuple[bool, bool], li_plugins_counts: Any) -> None:
    def loss(queries: torch.Tensor, documents: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return colbert.ColBERT.compute_ib_loss(model(nway), queries, documents, mask)[None]

    _, documents, mask = batch()
    queries = torch.randn(6 // nway, 9, 16)
    summed = (queries.abs().sum(1) @ documents.abs().amax(1).T).max().item()
    assert_parity(loss, [queries, documents], mask, wanted=wanted, summed=summed)
    assert li_plugins_counts.calls["colbert.modeling.colbert:ColBERT.compute_ib_loss"] == 1


@pytest.mark.allow_fallback(reason="the library answers what makes no square of queries and documents")
def test_a_loss_that_the_library_refuses() -> None:
    _, documents, mask = batch()
    with pytest.raises((RuntimeError, IndexError)):
        colbert.ColBERT.compute_ib_loss(model(4), torch.randn(3, 9, 16), documents, mask)
