"""``score_retrieval`` of every processor: ragged queries against ragged pages, patched and unpatched."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import li_plugins
from li_plugins.testing.oracle import judge

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NAMES = ("ColPali", "ColQwen2", "ColModernVBert")


def processor(name: str) -> Any:
    """Return a processor without a tokenizer, which scoring does not need."""
    model = name.lower()
    try:
        kind = getattr(import_module(f"transformers.models.{model}.processing_{model}"), f"{name}Processor")
    except ModuleNotFoundError:
        pytest.skip(f"this release of transformers has no {name}")
    return kind.__new__(kind)


MAGNITUDE = 2
"""Of a sum that cancels, each unit vector's share was up to 1, and each is rounded."""


def texts(lengths: list[int], width: int = 16, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.nn.functional.normalize(torch.randn(length, width), dim=-1).to(dtype) for length in lengths]


def assert_same(queries: Any, passages: Any, name: str = "ColPali", **keywords: Any) -> Tensor:
    """Compare with the library: to float64, from which we are no farther, and by dtype."""
    score = processor(name).score_retrieval
    ours = score(queries, passages, **keywords)
    exact = [[text.double() for text in side] for side in (queries, passages)]
    with li_plugins.suspended():
        theirs = score(queries, passages, **keywords)
        truth = score(*exact, **{**keywords, "output_dtype": torch.float64})
    assert (ours.dtype, ours.device, ours.shape) == (theirs.dtype, theirs.device, theirs.shape)
    rounding = max((ours.dtype, queries[0].dtype), key=lambda dtype: torch.finfo(dtype).eps)
    verdict = judge(ours, truth, theirs, magnitude=MAGNITUDE * max(map(len, queries)), rounding=rounding)
    assert verdict, verdict
    return ours


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", NAMES)
def test_every_processor(name: str, li_plugins_counts: Any) -> None:
    assert_same(texts([3, 1, 7]), texts([9, 2, 30, 1]), name)
    assert any(name in target for target in li_plugins_counts.calls)


@pytest.mark.parametrize("output_dtype", [None, *FLOATS], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dtypes(dtype: torch.dtype, output_dtype: torch.dtype | None) -> None:
    assert_same(texts([3, 1, 7], dtype=dtype), texts([9, 2, 30, 1], dtype=dtype), output_dtype=output_dtype)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_padded_passage_scores_at_least_zero(batch_size: int) -> None:
    found = assert_same([torch.ones(4, 8)], [-torch.ones(3, 8), -torch.ones(6, 8)], batch_size=batch_size)
    assert found.tolist() == [[-32 if batch_size == 1 else 0, -32]]


def test_tensors_and_lists_in_any_mixture() -> None:
    queries, passages = torch.stack(texts([5] * 3)), torch.stack(texts([9] * 4))
    both = assert_same(queries, passages)
    assert torch.equal(both, assert_same(list(queries), passages))
    assert torch.equal(both, assert_same(queries, list(passages)))


@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    st.lists(st.integers(1, 12), min_size=1, max_size=8),
    st.integers(1, 9),
)
def test_any_lengths(query_lengths: list[int], passage_lengths: list[int], batch_size: int) -> None:
    torch.manual_seed(0)  # an example that fails is drawn again
    assert_same(texts(query_lengths), texts(passage_lengths), batch_size=batch_size)


@pytest.mark.allow_fallback(reason="what has no meaning is the library's to answer")
@pytest.mark.parametrize(
    ("queries", "passages", "keywords"),
    [
        ([], [torch.ones(3, 8)], {}),
        ([torch.ones(3, 8)], [], {}),
        ([torch.ones(3, 8)], [torch.ones(3, 9)], {}),
        ([torch.ones(3, 8)], [torch.ones(0, 8)], {}),
        ([torch.ones(3, 8)], [torch.ones(3, 8)], {"batch_size": 0}),
        ([torch.ones(3, 8)], [torch.ones(3, 8).double()], {}),
        ([torch.ones(3, 8)], [torch.ones(3, 8, device="meta")], {}),
        ([torch.ones(3, 8)], [torch.ones(3, 8)], {"output_dtype": "float32"}),
    ],
    ids=["no query", "no passage", "width", "no token", "batch size", "dtypes", "devices", "output dtype"],
)
def test_errors_are_the_librarys(queries: list[Tensor], passages: list[Tensor], keywords: dict[str, Any]) -> None:
    score = processor("ColPali").score_retrieval

    def complaint() -> tuple[type, str]:
        with pytest.raises(Exception) as found:  # noqa: PT011 - whichever the library raises
            score(queries, passages, **keywords)
        return found.type, str(found.value)

    ours = complaint()
    with li_plugins.suspended():
        assert ours == complaint()


@pytest.mark.allow_fallback(reason="what has no meaning is the library's to answer")
def test_other_dtypes_are_the_librarys_error_under_autocast_too() -> None:
    score = processor("ColPali").score_retrieval
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match="must have the same dtype"):
        score([torch.ones(3, 8)], [torch.ones(3, 8).bfloat16()])


@pytest.mark.allow_fallback(reason="an integer output is the library's to round")
def test_an_integer_output_is_the_librarys() -> None:
    score = processor("ColPali").score_retrieval
    arguments = texts([3]), texts([4, 5])
    with li_plugins.suspended():
        theirs = score(*arguments, output_dtype=torch.int32)
    assert torch.equal(score(*arguments, output_dtype=torch.int32), theirs)


def test_explains() -> None:
    score = processor("ColPali").score_retrieval
    assert "blocked" in str(li_plugins.explain(score, texts([3]), texts([4, 5])))
