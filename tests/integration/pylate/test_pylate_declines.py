"""PyLate's score functions: what the library answers itself, and why."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from score_cases import KINDS, Kind, embeddings, ragged
from torch import Tensor

import li_plugins
from li_plugins.testing.parity import call_unpatched, functions_seen, outcome


def q(*shape: int) -> Tensor:
    return torch.ones(*shape)


DECLINED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "other dimension": ("colbert_scores", (q(2, 3, 8), q(2, 3, 4))),
    "dimension that einsum broadcasts": ("colbert_scores", (q(2, 3, 1), q(2, 3, 4))),
    "dimension 0": ("colbert_scores", (q(2, 3, 0), q(2, 3, 0))),
    "other dtype": ("colbert_scores", (q(2, 3, 8), q(2, 3, 8).half())),
    "other device": ("colbert_scores", (q(2, 3, 8), q(2, 3, 8).to("meta"))),
    "no document tokens": ("colbert_scores", (q(2, 3, 8), q(2, 0, 8))),
    "int64 embeddings": ("colbert_scores", (q(2, 3, 8).long(), q(2, 3, 8).long())),
    "rank 2": ("colbert_scores", (q(3, 8), q(2, 3, 8))),
    "rank 5": ("colbert_scores", (q(2, 3, 8), q(2, 2, 2, 3, 8))),
    "sparse": ("colbert_scores", (q(2, 3, 8).to_sparse(), q(2, 3, 8))),
    "a tuple": ("colbert_scores", ((q(3, 8), q(3, 8)), q(2, 3, 8))),
    "a number": ("colbert_scores", (3, q(2, 3, 8))),
    "an empty list": ("colbert_scores", ([], q(2, 3, 8))),
    "a mask of other tokens": ("colbert_scores", (q(2, 3, 8), q(2, 3, 8), None, q(2, 4))),
    "a mask of more queries": ("colbert_scores", (q(1, 3, 8), q(2, 3, 8), q(4, 3))),
    "a mask of rank 1 that einsum's grid takes": ("colbert_scores", (q(2, 3, 8), q(2, 4, 8), None, q(3))),
    "a mask of rank 3": ("colbert_scores", (q(2, 3, 8), q(2, 3, 8), None, q(2, 3, 1))),
    "a mask that is a number": ("colbert_scores", (q(2, 3, 8), q(2, 3, 8), 1.0)),
    "a complex mask": ("colbert_scores", (q(2, 3, 8), q(2, 3, 8), None, q(2, 3).to(torch.complex64))),
    "a float64 mask": ("colbert_scores", (q(2, 3, 8), q(2, 3, 8), None, q(2, 3).double() / 3)),
    "other numbers of queries": ("colbert_kd_scores", (q(2, 3, 8), q(3, 2, 3, 8))),
    "queries that einsum broadcasts": ("colbert_kd_scores", (q(1, 3, 8), q(3, 2, 3, 8))),
    "candidates of rank 3": ("colbert_kd_scores", (q(2, 3, 8), q(2, 3, 8))),
    "no pairs": ("colbert_scores_pairwise", (q(0, 3, 8), q(2, 3, 8))),
    "pairs of numbers": ("colbert_scores_pairwise", (q(1)[0], q(2, 3, 8))),
    "pairs of vectors": ("colbert_scores_pairwise", (q(2, 8), q(2, 8))),
    "pairs, one without tokens": ("colbert_scores_pairwise", ([q(3, 8), q(3, 8)], [q(3, 8), q(0, 8)])),
    "pairs of several dtypes": ("colbert_scores_pairwise", ([q(3, 8), q(3, 8).half()], [q(3, 8), q(3, 8).half()])),
    "groups of rank 3": ("ColBERTScores", (q(2, 3, 8), q(2, 3, 8))),
    "no groups": ("ColBERTScores", (q(2, 3, 8), q(0, 2, 3, 8))),
    "empty groups": ("ColBERTScores", (q(2, 3, 8), q(2, 0, 3, 8))),
    "a mask of fewer groups": ("ColBERTScores", (q(2, 3, 8), q(2, 2, 3, 8), None, q(2, 1, 3))),
    "a mask that is a list": ("ColBERTScores", (q(2, 3, 8), q(2, 2, 3, 8), None, [1.0])),
}


@pytest.mark.allow_fallback(reason="what MaxSim has no meaning for is the library's to answer")
@pytest.mark.parametrize("case", DECLINED)
def test_the_library_answers_what_is_not_ours(scores: ModuleType, case: str, li_plugins_counts: Any) -> None:
    name, arguments = DECLINED[case]
    function = Kind(name, lambda *_: ()).function(scores)
    ours = outcome(lambda: function(*arguments))
    library = call_unpatched(outcome, lambda: function(*arguments))
    if isinstance(library, Tensor):
        assert (ours.dtype, ours.device, ours.shape) == (library.dtype, library.device, library.shape)
        assert ours.is_meta or torch.equal(ours, library)
    else:
        assert ours == library
    assert any(target.endswith((f":{name}", f":{name}.__call__")) for target in li_plugins_counts.declines)


@pytest.mark.allow_fallback(reason="a mask with a gradient is the library's to differentiate")
def test_a_mask_that_requires_a_gradient_gets_it(scores: ModuleType) -> None:
    mask = torch.rand(5, 6, requires_grad=True)
    scores.colbert_scores(embeddings(3, 4, 8), embeddings(5, 6, 8), None, mask).sum().backward()
    assert mask.grad.any()


@pytest.mark.allow_fallback(reason="an iterator can be read once only")
def test_iterators_reach_the_library_unread(scores: ModuleType) -> None:
    queries, documents = ragged(3, 4), ragged(5, 6)
    found = scores.colbert_scores_pairwise(iter(queries), iter(documents))
    assert torch.equal(found, call_unpatched(scores.colbert_scores_pairwise, queries, documents))


@pytest.mark.allow_fallback(reason="subclasses may give einsum a meaning of their own")
def test_subclasses_reach_the_library(scores: ModuleType) -> None:
    sides = embeddings(2, 3, 8), embeddings(2, 3, 8)
    seen = functions_seen(lambda traced: scores.colbert_scores(sides[0].as_subclass(traced), sides[1]))
    assert "einsum" in seen


def test_parameters_are_plain_tensors(scores: ModuleType) -> None:
    queries = torch.nn.Parameter(embeddings(2, 3, 8))
    scores.colbert_scores(queries, embeddings(2, 3, 8)).sum().backward()
    assert queries.grad is not None


# Backends


def with_backend(scores: ModuleType) -> None:
    if "backend" not in inspect.signature(scores.colbert_scores).parameters:
        pytest.skip("PyLate has backends since 1.5.1")


CALLS = {
    "colbert_scores": ((2, 3, 8), (2, 3, 8)),
    "colbert_kd_scores": ((2, 3, 8), (2, 2, 3, 8)),
    "colbert_scores_pairwise": ((2, 3, 8), (2, 3, 8)),
    "ColBERTScores": ((2, 3, 8), (2, 2, 3, 8)),
}


@pytest.mark.allow_fallback(reason="a backend by name is the user's word")
@pytest.mark.parametrize("backend", ["torch", "Torch", "flash", "lik", "nope", 3])
@pytest.mark.parametrize("name", CALLS)
def test_a_backend_by_name_is_the_users_word(
    scores: ModuleType, name: str, backend: Any, li_plugins_counts: Any
) -> None:
    with_backend(scores)
    function = Kind(name, lambda *_: ()).function(scores)
    pair = [embeddings(*shape) for shape in CALLS[name]]
    ours = outcome(lambda: function(*pair, backend=backend))
    library = call_unpatched(outcome, lambda: function(*pair, backend=backend))
    assert torch.equal(ours, library) if isinstance(library, Tensor) else ours == library
    assert set(li_plugins_counts.declines) == set(li_plugins_counts.calls)


@pytest.mark.parametrize("backend", [None, "auto", "AUTO"])
@pytest.mark.parametrize("name", CALLS)
def test_auto_is_ours(scores: ModuleType, name: str, backend: Any, li_plugins_counts: Any) -> None:
    with_backend(scores)
    function = Kind(name, lambda *_: ()).function(scores)
    function(*[embeddings(*shape) for shape in CALLS[name]], backend=backend)
    assert li_plugins_counts.calls
    assert not li_plugins_counts.declines


@pytest.mark.allow_fallback(reason="PyLate's variable names a backend")
@pytest.mark.parametrize("name", CALLS)
def test_the_variable_is_read_at_every_call(
    scores: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch, li_plugins_counts: Any
) -> None:
    function = Kind(name, lambda *_: ()).function(scores)
    pair = [embeddings(*shape) for shape in CALLS[name]]
    monkeypatch.setenv("PYLATE_SCORES_BACKEND", "torch")
    assert torch.equal(function(*pair), call_unpatched(function, *pair))
    declines = li_plugins_counts.declines
    assert all("PYLATE_SCORES_BACKEND='torch'" in reason for reasons in declines.values() for reason in reasons)
    assert declines
    monkeypatch.setenv("PYLATE_SCORES_BACKEND", "auto")
    function(*pair)
    assert li_plugins_counts.declines == declines


# Seen from outside


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_explain_names_the_kernel_or_the_reason(scores: ModuleType, kind: Kind) -> None:
    function = kind.function(scores)
    pair = [embeddings(3, 4, 8), embeddings(*kind.leading(3, 2), 5, 8)]
    assert "blocked" in str(li_plugins.explain(function, *pair))
    assert "torch.int64" in str(li_plugins.explain(function, *(side.long() for side in pair)))
    assert "blocked" in str(li_plugins.explain(scores.colbert_scores_pairwise, ragged(2, 3), ragged(4, 5)))


@pytest.mark.allow_fallback(reason="the user's own function comes first")
def test_a_user_who_replaces_colbert_scores_is_heard(scores: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = Kind("ColBERTScores", lambda *_: ()).function(scores)
    monkeypatch.setattr(scores, "colbert_scores", lambda queries, documents, *_, **__: torch.full((2, 3), 7.0))
    assert groups(embeddings(2, 3, 8), embeddings(3, 2, 4, 8)).unique().tolist() == [7]


@pytest.mark.allow_fallback(reason="the user's own mock comes first")
def test_a_mock_in_the_place_of_colbert_scores_is_heard(scores: ModuleType) -> None:
    """Its module is None."""
    groups = Kind("ColBERTScores", lambda *_: ()).function(scores)
    with mock.patch.object(scores, "colbert_scores", autospec=True, return_value=torch.full((2, 3), 7.0)):
        assert groups(embeddings(2, 3, 8), embeddings(3, 2, 4, 8)).unique().tolist() == [7]
