"""``score_multi_vector``: ragged queries against ragged pages, patched and unpatched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from colpali_engine.utils import processing_utils
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import li_plugins
from li_plugins.ops import ragged
from li_plugins.testing.blocks import blocks_in_memory
from li_plugins.testing.oracle import judge

score = processing_utils.BaseVisualRetrieverProcessor.score_multi_vector


MAGNITUDE = 2
"""Of a sum that cancels, each unit vector's share was up to 1, and each is rounded."""


def texts(lengths: list[int], width: int = 16, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.nn.functional.normalize(torch.randn(length, width), dim=-1).to(dtype) for length in lengths]


def assert_same(queries: Any, passages: Any, **keywords: Any) -> Tensor:
    """Compare with the library: to float64, from which we are no farther."""
    ours = score(queries, passages, **keywords)
    exact = [[text.double() for text in side] for side in (queries, passages)]
    with li_plugins.suspended():
        theirs, truth = score(queries, passages, **keywords), score(*exact, **keywords).double()
    assert (ours.dtype, ours.device, ours.shape) == (torch.float32, torch.device("cpu"), theirs.shape)
    verdict = judge(ours, truth, theirs, magnitude=MAGNITUDE * max(map(len, queries)))
    assert verdict, verdict
    return ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 128])
def test_ragged_lists(batch_size: int, dtype: torch.dtype) -> None:
    assert_same(
        texts([3, 1, 7, 4], dtype=dtype),
        texts([9, 2, 30, 1, 30, 17, 5], dtype=dtype),
        batch_size=batch_size,
        device="cpu",
    )


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_padded_passage_scores_at_least_zero(batch_size: int) -> None:
    queries, passages = [torch.ones(4, 8)], [-torch.ones(3, 8), -torch.ones(6, 8)]
    found = assert_same(queries, passages, batch_size=batch_size)
    assert found.tolist() == [[-32 if batch_size == 1 else 0, -32]]


@pytest.mark.allow_fallback(reason="the library runs beside, for comparison")
def test_the_floor_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LI_PLUGINS_COLPALI_FLOOR", "0")
    assert score([torch.ones(4, 8)], [-torch.ones(3, 8), -torch.ones(6, 8)]).tolist() == [[-32, -32]]
    monkeypatch.setenv("LI_PLUGINS_COLPALI_FLOOR", "1")
    assert score([torch.ones(4, 8)], [-torch.ones(3, 8), -torch.ones(6, 8)]).tolist() == [[0, -32]]


def test_tensors_and_lists_in_any_mixture() -> None:
    queries, passages = torch.stack(texts([5] * 3)), torch.stack(texts([9] * 4))
    both = assert_same(queries, passages)
    assert torch.equal(both, assert_same(list(queries), passages))
    assert torch.equal(both, assert_same(queries, list(passages)))


def test_pages_without_tokens_among_others() -> None:
    assert assert_same(texts([3, 2]), texts([4, 0, 2]))[:, 1].tolist() == [0, 0]


@pytest.mark.parametrize("tokens", [1, 31, 10_000])
def test_many_launches(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    made, launch = [], ragged.maxsim_packed

    def counted(**request: Any) -> Tensor:
        made.append(len(request["documents"]))
        return launch(**request)

    monkeypatch.setattr(ragged, "maxsim_packed", counted)
    monkeypatch.setattr(ragged, "BYTES_PER_LAUNCH", {"cpu": tokens * 16 * 4})
    lengths = [9, 2, 40, 1, 3, 17, 5, 5, 5]
    assert_same(texts([3, 6]), texts(lengths), batch_size=4)
    assert made == {1: lengths, 31: [11, 40, 31, 5], 10_000: [87]}[tokens]


def test_a_launch_is_out_of_memory_before_the_next_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ragged, "BYTES_PER_LAUNCH", {"cpu": 31 * 16 * 4})
    with blocks_in_memory() as counts:
        score(texts([3, 6]), texts(range(1, 30)))
    assert len(counts) > 10
    assert max(counts) == 1, "the queries"


def test_gradients_flow() -> None:
    queries = [text.requires_grad_() for text in texts([3, 5])]
    passages = [text.requires_grad_() for text in texts([6, 4, 9])]

    def gradients() -> list[Tensor]:
        for leaf in (*queries, *passages):
            leaf.grad = None
        score(queries, passages).square().sum().backward()
        return [leaf.grad.clone() for leaf in (*queries, *passages)]

    ours = gradients()
    with li_plugins.suspended():
        for mine, theirs in zip(ours, gradients(), strict=True):
            torch.testing.assert_close(mine, theirs)


@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(any),
    st.integers(1, 9),
)
def test_any_lengths(query_lengths: list[int], passage_lengths: list[int], batch_size: int) -> None:
    torch.manual_seed(0)  # an example that fails is drawn again
    tiles = [passage_lengths[start : start + batch_size] for start in range(0, len(passage_lengths), batch_size)]
    if all(any(tile) for tile in tiles):
        assert_same(texts(query_lengths), texts(passage_lengths), batch_size=batch_size)


@pytest.mark.allow_fallback(reason="what has no meaning is the library's to answer")
@pytest.mark.parametrize(
    ("queries", "passages", "batch_size"),
    [
        ([], [torch.ones(3, 8)], 128),
        ([torch.ones(3, 8)], [], 128),
        ([torch.ones(3, 8)], [torch.ones(3, 9)], 128),
        ([torch.ones(3, 8)], [torch.ones(3, 8), torch.ones(3, 9)], 128),
        ([torch.ones(3, 8)], [torch.ones(0, 8)], 128),
        ([torch.ones(3, 8)], [torch.ones(3, 8)], 0),
        ([torch.ones(3, 8)], [torch.ones(3, 8, dtype=torch.float64)], 128),
    ],
    ids=["no query", "no passage", "width", "widths", "no token", "batch size", "dtypes"],
)
def test_errors_are_the_librarys(queries: list[Tensor], passages: list[Tensor], batch_size: int) -> None:
    def complaint() -> tuple[type, str]:
        with pytest.raises(Exception) as found:  # noqa: PT011 - whichever the library raises
            score(queries, passages, batch_size=batch_size)
        return found.type, str(found.value)

    ours = complaint()
    with li_plugins.suspended():
        assert ours == complaint()


@pytest.mark.allow_fallback(reason="what has no meaning is the library's to answer")
def test_a_device_of_nothing_is_not_looked_at() -> None:
    with pytest.raises(ValueError, match="No queries provided"):
        score([], texts([3]), device="nowhere")
    assert_same(texts([3, 6]), texts([9, 2]), device="cpu")


@pytest.mark.allow_fallback(reason="the user named the backend")
def test_the_users_backend_runs(monkeypatch: pytest.MonkeyPatch, li_plugins_counts: Any) -> None:
    monkeypatch.setenv("COLPALI_SCORES_BACKEND", "torch")
    score(texts([3]), texts([4, 5]))
    assert any(target.endswith("score_multi_vector") for target in li_plugins_counts.declines)


@pytest.mark.skipif(not hasattr(processing_utils, "maxsim_inbatch"), reason="releases before 0.3.17 write it out")
@pytest.mark.allow_fallback(reason="the user replaced what scores a batch")
def test_a_dispatcher_of_the_users_own_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    librarys = processing_utils.maxsim_inbatch
    monkeypatch.setattr(processing_utils, "maxsim_inbatch", lambda query, doc: 2 * librarys(query, doc))
    queries, passages = texts([3, 6]), texts([9, 2, 4])
    ours = score(queries, passages)
    with li_plugins.suspended():
        assert torch.equal(ours, score(queries, passages))
    assert "was replaced" in str(li_plugins.explain(score, queries, passages))


def test_explains() -> None:
    assert "blocked" in str(li_plugins.explain(score, texts([3]), texts([4, 5])))
    assert "no queries" in str(li_plugins.explain(score, [], texts([4, 5])))
