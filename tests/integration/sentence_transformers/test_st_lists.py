"""Ragged lists, as ``encode`` returns them: scored without padding, whatever they hold and however they are cut."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers.util import similarity
from st_batches import BOTH_GRADS, HALVES, embeddings, forget_warnings
from torch import Tensor

import li_plugins
from li_plugins.ops import dispatch
from li_plugins.testing.blocks import blocks_in_memory
from li_plugins.testing.parity import assert_parity, call_unpatched, outcome

CROSS = "maxsim"
PAIRS = "maxsim_pairwise"
LENGTHS = {
    "one text": ([5], [7]),
    "one token each": ([1, 1, 1], [1, 1, 1]),
    "one token among many": ([1, 32, 7, 17], [180, 1, 3, 64]),
    "alike": ([4, 4, 4], [9, 9, 9]),
    "one empty": ([3, 2, 0], [4, 0, 5]),
    "an outlier": ([3, 2, 8, 1, 5], [2, 1500, 3, 1, 4]),
}


def ragged(*sizes: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [embeddings(size, 16, dtype=dtype) for size in sizes]


def launches(call: Callable[[], Any]) -> int:
    """Return how many launches of ours a call makes."""
    before = sum(dispatch.counters().values())
    call()
    return sum(dispatch.counters().values()) - before


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("name", [CROSS, PAIRS])
def test_ragged_lists_with_gradients(name: str, lengths: str, dtype: torch.dtype) -> None:
    queries, documents = LENGTHS[lengths]
    batch = [ragged(*queries, dtype=dtype), ragged(*documents, dtype=dtype)]
    found = assert_parity(getattr(similarity, name), batch, wanted=BOTH_GRADS)
    assert found.scores.dtype is torch.float32
    assert len(found.grads) == len(queries) + len(documents)


@pytest.mark.parametrize("mean", [similarity.mean_maxsim, similarity.mean_maxsim_pairwise])
def test_the_mean_of_ragged_lists(mean: Callable[..., Tensor]) -> None:
    assert_parity(mean, [ragged(3, 1, 0, 7), ragged(5, 2, 9, 1)], wanted=BOTH_GRADS)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["queries", "documents"])
@pytest.mark.parametrize("name", [CROSS, PAIRS])
def test_a_gradient_on_one_side_only(name: str, wanted: tuple[bool, bool]) -> None:
    assert_parity(getattr(similarity, name), [ragged(3, 1, 7), ragged(5, 2, 9)], wanted=wanted)


def padded(*lengths: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(ragged(*lengths), batch_first=True)


@pytest.mark.parametrize("masked", [False, True])
def test_a_padded_batch_against_a_list(masked: bool) -> None:
    """As the information retrieval evaluator calls it, and the other way round."""
    batch = padded(4, 1, 6)
    mask = torch.rand(3, 6) if masked else None
    assert_parity(similarity.maxsim, [batch, ragged(5, 2, 9, 1)], mask, wanted=BOTH_GRADS)
    mask = torch.rand(3, 6).round() if masked else None
    assert_parity(similarity.maxsim, [ragged(5, 2, 9, 1), batch], None, mask, wanted=BOTH_GRADS)
    assert_parity(similarity.maxsim, [ragged(5, 2), batch], None, torch.zeros(3, 6), wanted=BOTH_GRADS)


@pytest.mark.parametrize("name", [CROSS, PAIRS])
def test_one_text_is_a_batch_of_one(name: str) -> None:
    function = getattr(similarity, name)
    query, document = ragged(5, 7)
    expected = function([query], [document])
    for pair in ((query, document), (query.numpy(), document.numpy())):
        torch.testing.assert_close(function(*pair), expected)
    if name == CROSS:
        assert torch.equal(function(query, [document]), expected)
        assert torch.equal(function([query], document), expected)
        assert_parity(function, [query, [document]], torch.rand(5), wanted=BOTH_GRADS)


@pytest.mark.parametrize("place", [0, 1])
def test_one_text_scores_to_the_bit_as_a_list_of_it(place: int) -> None:
    """On the CPU, where a mask that keeps everything would lead to other products."""
    text, texts = embeddings(5, 8), [embeddings(7, 8), embeddings(3, 8)]
    both = [[text, texts], [[text], texts]] if place == 0 else [[texts, text], [texts, [text]]]
    for mean in (similarity.maxsim, similarity.mean_maxsim):
        assert torch.equal(mean(*both[0]), mean(*both[1]))


@pytest.mark.parametrize("convert", [Tensor.numpy, Tensor.tolist, torch.nn.Parameter], ids=["numpy", "lists", "param"])
@pytest.mark.parametrize("name", [CROSS, PAIRS])
def test_what_the_library_converts_is_converted(name: str, convert: Callable[[Tensor], Any]) -> None:
    function = getattr(similarity, name)
    batch = [[convert(text) for text in ragged(3, 1, 4)], [convert(text) for text in ragged(5, 2, 9)]]
    torch.testing.assert_close(function(*batch), call_unpatched(function, *batch), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [CROSS, PAIRS])
def test_texts_may_be_views(name: str) -> None:
    odd = [embeddings(16, 9).T[::2], embeddings(6, 32)[:, ::2], embeddings(1, 16).expand(4, 16)]
    assert_parity(getattr(similarity, name), [odd, odd[::-1]], wanted=BOTH_GRADS)


@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [CROSS, PAIRS])
def test_autocast(name: str, lowered: torch.dtype) -> None:
    batch = [ragged(3, 1, 32), ragged(5, 180, 1)]
    assert_parity(getattr(similarity, name), batch, wanted=BOTH_GRADS, lowered=lowered)


@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [CROSS, PAIRS])
def test_stored_lists_under_autocast(name: str, lowered: torch.dtype) -> None:
    """Autocast refuses to concatenate what has the other 16-bit dtype."""
    function = getattr(similarity, name)
    for given in (torch.float16, torch.bfloat16):
        batch = [ragged(3, 1, 32, dtype=given), ragged(5, 180, 1, dtype=given)]
        with torch.autocast("cpu", dtype=lowered):
            ours, library = function(*batch), call_unpatched(function, *batch)
        assert ours.dtype is library.dtype
        torch.testing.assert_close(ours, library, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", [CROSS, PAIRS])
def test_lists_made_in_inference_mode(name: str) -> None:
    function = getattr(similarity, name)
    with torch.inference_mode():
        batch = [ragged(3, 1, 7), ragged(5, 2, 9)]
        inside = function(*batch)
    assert inside.is_inference()
    torch.testing.assert_close(function(*batch), inside.clone())
    torch.testing.assert_close(inside, call_unpatched(function, *batch))


# Budgets


@pytest.mark.parametrize("name", [CROSS, PAIRS])
@pytest.mark.parametrize("elements", [1, 300, 1000, 10**9])
@pytest.mark.allow_fallback(reason="a budget that the queries alone exceed is the library's to keep")
def test_a_budget_changes_nothing_but_the_cuts(name: str, elements: int) -> None:
    batch = [ragged(3, 1, 7, 2, 4), ragged(5, 2, 9, 1, 3)]
    assert_parity(getattr(similarity, name), batch, wanted=BOTH_GRADS, chunk_elements=elements)
    # The library's gradient of an empty document is None where it is alone in a chunk; ours is empty.
    batch = [ragged(3, 1, 7, 0, 4), ragged(5, 2, 9, 1, 0)]
    assert_parity(getattr(similarity, name), batch, chunk_elements=elements)


def test_a_budget_bounds_what_a_launch_copies() -> None:
    queries, documents = ragged(4, 4), ragged(*[10] * 8)
    whole = launches(lambda: similarity.maxsim(queries, documents))
    halves = launches(lambda: similarity.maxsim(queries, documents, chunk_elements=8 * 16 + 4 * 160))
    single = launches(lambda: similarity.maxsim(queries, documents, chunk_elements=8 * 16 + 1))
    assert (whole, halves, single) == (1, 2, 8)


def test_many_documents_take_several_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    from li_plugins_sentence_transformers import _lists

    queries, documents = ragged(3, 5), ragged(*range(1, 40))
    expected = similarity.maxsim(queries, documents)
    monkeypatch.setitem(_lists.ELEMENTS_PER_LAUNCH, "cpu", 1000)
    assert launches(lambda: similarity.maxsim(queries, documents)) > 10
    torch.testing.assert_close(similarity.maxsim(queries, documents), expected)
    assert_parity(similarity.maxsim, [queries, documents], wanted=BOTH_GRADS)


def test_a_launch_is_out_of_memory_before_the_next_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from li_plugins_sentence_transformers import _lists

    monkeypatch.setitem(_lists.ELEMENTS_PER_LAUNCH, "cpu", 1000)
    documents = ragged(*range(1, 40))
    for call in (
        lambda: similarity.maxsim(ragged(3, 5), documents),
        lambda: similarity.maxsim_pairwise(documents, documents),
    ):
        with blocks_in_memory() as counts:
            call()
        assert len(counts) > 10
        assert max(counts) == 1, "the queries of a launch, when its documents are made"


@pytest.mark.allow_fallback(reason="such a budget is the library's to keep")
def test_the_librarys_own_budget_is_read_at_every_call(monkeypatch: pytest.MonkeyPatch, li_plugins_counts: Any) -> None:
    monkeypatch.setattr(similarity, "_MAXSIM_CHUNK_ELEMENT_BUDGET", 100)
    similarity.maxsim(ragged(32), ragged(5, 2))
    (reasons,) = li_plugins_counts.declines.values()
    assert "budget of 100" in next(iter(reasons))


# Devices, warnings, errors


def test_a_device_is_where_it_scores(li_plugins_counts: Any) -> None:
    batch = [ragged(3, 1), ragged(5, 2)]
    torch.testing.assert_close(similarity.maxsim(*batch, device="cpu"), similarity.maxsim(*batch))
    torch.testing.assert_close(
        similarity.maxsim_pairwise(*batch, device=torch.device("cpu")), similarity.maxsim_pairwise(*batch)
    )
    assert not li_plugins_counts.declines


@pytest.mark.parametrize("name", [CROSS, PAIRS])
def test_the_warning_of_an_empty_document_stays(name: str, caplog: pytest.LogCaptureFixture) -> None:
    function = getattr(similarity, name)
    batch = [ragged(3, 2), ragged(4, 0)]
    with caplog.at_level(logging.WARNING, logger="sentence_transformers"):
        forget_warnings()
        assert function(*batch).min() == -1e9
        ours = [record.message for record in caplog.records]
        caplog.clear()
        forget_warnings()
        call_unpatched(function, *batch)
    assert ours == [record.message for record in caplog.records]
    assert len(ours) == 1


DECLINED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "no queries": (CROSS, ([], ragged(3))),
    "no documents": (CROSS, (ragged(3), [])),
    "documents without tokens": (CROSS, (ragged(3), ragged(0, 0))),
    "queries without tokens": (CROSS, (ragged(0, 0), ragged(3))),
    "numbers": (CROSS, ([1.0, 2.0], ragged(3))),
    "nothing": (CROSS, ([None], ragged(3))),
    "tuples": (CROSS, ([((1.0,) * 16,)], ragged(3))),
    "vectors": (CROSS, ([torch.ones(16)], ragged(3))),
    "matrices of matrices": (CROSS, ([torch.ones(2, 3, 16)], ragged(3))),
    "several widths": (CROSS, (ragged(3), [torch.ones(2, 16), torch.ones(2, 8)])),
    "another width": (CROSS, (ragged(3), [torch.ones(2, 8)])),
    "several dtypes": (CROSS, (ragged(3), [torch.ones(2, 16), torch.ones(2, 16).half()])),
    "another dtype": (CROSS, (ragged(3), [torch.ones(2, 16).half()])),
    "integers": (CROSS, (ragged(3), [torch.ones(2, 16, dtype=torch.int8)])),
    "a mask": (CROSS, (ragged(3, 4), ragged(2, 5), torch.ones(2, 4))),
    "a mask of documents": (CROSS, (ragged(3, 4), ragged(2, 5), None, torch.ones(2, 5))),
    "masks": (CROSS, (ragged(3, 4), ragged(2, 5), None, [torch.ones(2), torch.zeros(5)])),
    "a mask of other tokens": (CROSS, (padded(3, 4), ragged(2, 5), torch.ones(2, 3))),
    "a batch of rank 4": (CROSS, (torch.ones(2, 2, 3, 16), ragged(2, 5))),
    "an integer batch": (CROSS, (torch.ones(2, 3, 16).long(), ragged(2, 5))),
    "other numbers of pairs": (PAIRS, (ragged(3, 4), ragged(2))),
    "pairs of a list and a batch": (PAIRS, (ragged(3, 4), padded(2, 5))),
    "pairs with a mask": (PAIRS, (ragged(3, 4), ragged(2, 5), None, torch.ones(2, 5))),
    "pairs of integers": (PAIRS, (ragged(3), [torch.ones(2, 16, dtype=torch.int8)])),
    "pairs without tokens": (PAIRS, (ragged(3), ragged(0))),
    "pairs of an unknown kind": (PAIRS, ("ab", "cd")),
}


@pytest.mark.allow_fallback(reason="what packing has no meaning for is the library's to answer")
@pytest.mark.parametrize("case", DECLINED)
def test_the_library_answers_what_is_not_ours(case: str, li_plugins_counts: Any) -> None:
    name, arguments = DECLINED[case]
    function = getattr(similarity, name)
    ours = outcome(lambda: function(*arguments))
    library = call_unpatched(outcome, lambda: function(*arguments))
    if isinstance(library, Tensor):
        torch.testing.assert_close(ours, library, equal_nan=True)
    else:
        assert ours == library
    assert any(target.endswith(f":{name}") for target in li_plugins_counts.declines)


def test_explain_names_the_kernel_or_the_reason() -> None:
    for function in (similarity.maxsim, similarity.maxsim_pairwise):
        assert "blocked" in str(li_plugins.explain(function, ragged(3, 4), ragged(2, 5)))
        assert "padding" in str(li_plugins.explain(function, ragged(3, 4), ragged(2, 5), None, torch.ones(2, 5)))


def test_an_empty_first_document_of_an_array_is_measured_like_the_librarys() -> None:
    batch = [[np.zeros((0, 16), dtype=np.float32), embeddings(3, 16).numpy()]] * 2
    torch.testing.assert_close(similarity.maxsim(*batch), call_unpatched(similarity.maxsim, *batch))
