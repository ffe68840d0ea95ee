"""The library's kernel seam: in-batch scores and those of own candidates, patched and unpatched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import li_plugins
from li_plugins.testing.parity import assert_parity, call_unpatched

maxsim = pytest.importorskip("colpali_engine.utils.maxsim", reason="the seam came with 0.3.17")
lik = pytest.importorskip("colpali_engine.utils._lik_backend")

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
BOTH = (True, True)


def embeddings(*shape: int, dtype: torch.dtype = torch.float32, padding: int = 1) -> Tensor:
    """Unit vectors; of every second text the last are padding.

    One by default: of several rows that are all zero, the first takes the gradient here and each a share in amax.
    """
    tokens = torch.nn.functional.normalize(torch.randn(*shape), dim=-1)
    tokens[1::2, ..., shape[-2] - padding :, :] = 0
    return tokens.to(dtype)


def documents_of(function: Any, queries: int) -> tuple[int, ...]:
    return (queries, 4) if function is maxsim.maxsim_kd else (4,)


FUNCTIONS = [maxsim.maxsim_inbatch, maxsim.maxsim_kd]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("function", FUNCTIONS, ids=["inbatch", "kd"])
def test_zero_padding_is_a_candidate(function: Callable[..., Tensor], dtype: torch.dtype) -> None:
    # Whole queries: the gradient of a zero row is the library's choice among equals.
    pair = [
        embeddings(3, 5, 16, dtype=dtype, padding=0),
        embeddings(*documents_of(function, 3), 9, 16, dtype=dtype),
    ]
    assert_parity(function, pair, wanted=BOTH)


@pytest.mark.parametrize("function", FUNCTIONS, ids=["inbatch", "kd"])
def test_padding_wins_over_negative_similarities(function: Callable[..., Tensor]) -> None:
    documents = -torch.ones(*documents_of(function, 2), 3, 8)
    documents[..., 0, 2, :] = 0
    found = assert_parity(function, [torch.ones(2, 5, 8), documents]).scores
    assert found.unique().tolist() == [-40, 0]


@pytest.mark.parametrize(("query_tokens", "document_tokens", "width"), [(32, 1030, 128), (1030, 32, 128), (1, 1, 8)])
def test_shapes_of_pages(query_tokens: int, document_tokens: int, width: int) -> None:
    pair = [embeddings(2, query_tokens, width, padding=0), embeddings(3, document_tokens, width)]
    assert_parity(maxsim.maxsim_inbatch, pair, wanted=BOTH)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["queries", "documents"])
@pytest.mark.parametrize("function", FUNCTIONS, ids=["inbatch", "kd"])
def test_a_gradient_on_one_side(function: Callable[..., Tensor], wanted: tuple[bool, bool]) -> None:
    pair = [embeddings(3, 5, 16, padding=0), embeddings(*documents_of(function, 3), 9, 16)]
    assert_parity(function, pair, wanted=wanted)


@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", FUNCTIONS, ids=["inbatch", "kd"])
def test_autocast(function: Callable[..., Tensor], lowered: torch.dtype) -> None:
    pair = [embeddings(3, 5, 16, padding=0), embeddings(*documents_of(function, 3), 9, 16)]
    assert_parity(function, pair, lowered=lowered, wanted=BOTH)


def test_padded_queries_score_as_in_the_library() -> None:
    assert_parity(maxsim.maxsim_inbatch, [embeddings(4, 6, 16, padding=2), embeddings(4, 9, 16, padding=3)])


@pytest.mark.allow_fallback(reason="the user named the backend")
@pytest.mark.parametrize("function", FUNCTIONS, ids=["inbatch", "kd"])
def test_the_users_backend_runs(function: Callable[..., Tensor], backend_calls: Any) -> None:
    pair = embeddings(3, 5, 16), embeddings(*documents_of(function, 3), 9, 16)
    ours = function(*pair)
    assert backend_calls == [(pair[0].shape, pair[1].shape)]
    assert torch.equal(ours, call_unpatched(function, *pair))


@pytest.mark.parametrize("name", ["auto", "AUTO"])
def test_auto_names_no_backend(monkeypatch: pytest.MonkeyPatch, name: str, backend_calls: Any) -> None:
    monkeypatch.setenv("COLPALI_SCORES_BACKEND", name)
    pair = embeddings(3, 5, 16), embeddings(4, 9, 16)
    torch.testing.assert_close(maxsim.maxsim_inbatch(*pair), maxsim._torch_maxsim(*pair))
    assert not backend_calls


@pytest.mark.allow_fallback(reason="the user named the backend")
@pytest.mark.parametrize("name", ["lik", "fastest"])
def test_a_backend_that_cannot_run_is_the_librarys_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("COLPALI_SCORES_BACKEND", name)
    pair = embeddings(3, 5, 16), embeddings(4, 9, 16)
    kind = ValueError if name == "fastest" else lik.LIKUnsupportedError
    with pytest.raises(kind) as ours:
        maxsim.maxsim_inbatch(*pair)
    with pytest.raises(kind) as theirs:
        call_unpatched(maxsim.maxsim_inbatch, *pair)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.allow_fallback(reason="what has no meaning is the library's to answer")
@pytest.mark.parametrize(
    ("queries", "documents"),
    [
        (torch.ones(2, 3, 8), torch.ones(2, 3, 9)),
        (torch.ones(2, 3, 8), torch.ones(2, 8)),
        (torch.ones(2, 3, 8), torch.ones(2, 0, 8)),
        (torch.ones(2, 3, 8), torch.ones(2, 3, 8, dtype=torch.float64)),
    ],
    ids=["width", "rank", "no token", "dtypes"],
)
def test_errors_are_the_librarys(queries: Tensor, documents: Tensor) -> None:
    with pytest.raises((RuntimeError, IndexError, ValueError)) as ours:
        maxsim.maxsim_inbatch(queries, documents)
    with pytest.raises(type(ours.value)) as theirs:
        call_unpatched(maxsim.maxsim_inbatch, queries, documents)
    assert str(ours.value) == str(theirs.value)


def test_integers_are_the_librarys(li_plugins_counts: Any) -> None:
    pair = torch.ones(2, 3, 8, dtype=torch.int64), torch.ones(2, 4, 8, dtype=torch.int64)
    with li_plugins.suspended():
        expected = maxsim.maxsim_inbatch(*pair)
    assert torch.equal(maxsim._torch_maxsim(*pair), expected)


def test_the_op_survives_fullgraph() -> None:
    pair = embeddings(3, 5, 16), embeddings(4, 9, 16)
    compiled = torch.compile(lambda *both: lik.maxsim_inbatch_lik(*both) * 2, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*pair), 2 * maxsim.maxsim_inbatch(*pair))
