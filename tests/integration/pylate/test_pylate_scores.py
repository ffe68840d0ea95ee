"""PyLate's four score functions: what they return and what flows back, patched and unpatched."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import li_plugins
from li_plugins.testing.parity import assert_parity, call_unpatched

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
BOTH_GRADS = (True, True)

Masks = tuple[Tensor | None, Tensor | None]


class Kind:
    """One of the functions that take masks, and the shapes of its documents."""

    def __init__(self, name: str, leading: Callable[[int, int], tuple[int, ...]]) -> None:
        self.name, self.leading = name, leading

    def __repr__(self) -> str:
        return self.name

    def function(self, scores: ModuleType) -> Callable[..., Tensor]:
        if not hasattr(scores, self.name):
            pytest.skip(f"PyLate has {self.name} since 1.5")
        found = getattr(scores, self.name)
        return found() if isinstance(found, type) else found


KINDS = [
    Kind("colbert_scores", lambda queries, documents: (documents,)),
    Kind("colbert_kd_scores", lambda queries, documents: (queries, documents)),
    Kind("ColBERTScores", lambda queries, documents: (queries + 1, documents)),
]

MASKS: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], Masks]] = {
    "none": lambda q, d: (None, None),
    "prefix": lambda q, d: (None, lengths(d)),
    "holes": lambda q, d: (None, torch.rand(d) < 0.6),
    "all masked": lambda q, d: (None, torch.zeros(d, dtype=torch.bool)),
    "queries": lambda q, d: (lengths(q), None),
    "both": lambda q, d: (lengths(q), torch.rand(d) < 0.6),
    "weights": lambda q, d: (torch.rand(q), torch.rand(d)),
    "negative weights": lambda q, d: (-torch.rand(q), None),
    "int64": lambda q, d: (lengths(q).long(), (torch.rand(d) < 0.6).long()),
    "uint8": lambda q, d: (None, (torch.rand(d) < 0.6).to(torch.uint8)),
    "half weights": lambda q, d: (torch.rand(q).half(), torch.rand(d).half()),
}


def lengths(shape: tuple[int, ...]) -> Tensor:
    """A prefix mask of random lengths, one token at least."""
    return torch.arange(shape[-1]) < torch.randint(1, shape[-1] + 1, shape[:-1])[..., None]


def embeddings(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1).to(dtype)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# Masks, shapes, dtypes


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_masks_weigh_as_in_pylate(scores: ModuleType, kind: Kind, mask: str, dtype: torch.dtype) -> None:
    queries, leading = (3, 5), kind.leading(3, 4)
    masks = MASKS[mask](queries, (*leading, 7))
    pair = [embeddings(*queries, 16, dtype=dtype), embeddings(*leading, 7, 16, dtype=dtype)]
    assert_parity(kind.function(scores), pair, *masks, wanted=BOTH_GRADS)


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_a_masked_token_beats_negative_similarities(scores: ModuleType, kind: Kind) -> None:
    queries, documents = torch.ones(2, 3, 8), -torch.ones(*kind.leading(2, 4), 5, 8)
    mask = torch.ones(*kind.leading(2, 4), 5)
    mask[..., 0, 2] = 0
    found = assert_parity(kind.function(scores), [queries, documents], None, mask, wanted=BOTH_GRADS).scores
    assert found.unique().tolist() == [-24, 0]


SHAPES = [
    (1, 1, 1, 1, 1),
    (3, 2, 4, 3, 1),
    (2, 5, 32, 180, 128),
    (5, 7, 17, 63, 48),
    (7, 3, 63, 129, 96),
    (2, 2, 257, 33, 320),
    (1, 9, 33, 512, 8),
    (2, 1, 2, 8192, 16),
    (1, 127, 64, 1, 24),
    (4, 2, 1, 1271, 72),
]
"""Queries, documents, tokens of a query, tokens of a document, width."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("queries", "documents", "query_tokens", "document_tokens", "width"), SHAPES)
def test_odd_shapes(
    scores: ModuleType,
    queries: int,
    documents: int,
    query_tokens: int,
    document_tokens: int,
    width: int,
    dtype: torch.dtype,
) -> None:
    mask = lengths((documents, document_tokens))
    pair = [
        embeddings(queries, query_tokens, width, dtype=dtype),
        embeddings(documents, document_tokens, width, dtype=dtype),
    ]
    assert_parity(scores.colbert_scores, pair, None, mask, wanted=BOTH_GRADS)


EMPTY = [(0, 3), (3, 0), (0, 0)]


@pytest.mark.parametrize(("queries", "documents"), EMPTY)
def test_empty_batches(scores: ModuleType, queries: int, documents: int) -> None:
    pair = [embeddings(queries, 4, 8), embeddings(documents, 5, 8)]
    mask = torch.ones(documents, 5, dtype=torch.bool)
    assert assert_parity(scores.colbert_scores, pair, None, mask, wanted=BOTH_GRADS).scores.shape == (
        queries,
        documents,
    )
    candidates = [embeddings(3, 4, 8), embeddings(3, 0, 5, 8)]
    assert assert_parity(scores.colbert_kd_scores, candidates, wanted=BOTH_GRADS).scores.shape == (3, 0)


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_queries_without_tokens_score_zero(scores: ModuleType, kind: Kind) -> None:
    pair = [embeddings(3, 0, 8), embeddings(*kind.leading(3, 4), 5, 8)]
    assert not assert_parity(kind.function(scores), pair).scores.any()


@pytest.mark.parametrize(
    ("embedding", "mask", "expected"),
    [
        (torch.bfloat16, torch.bool, torch.bfloat16),
        (torch.bfloat16, torch.int64, torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.float16, torch.uint8, torch.float16),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float64, torch.float32, torch.float64),
    ],
    ids=str,
)
def test_the_dtype_is_torchs_promotion(
    scores: ModuleType, embedding: torch.dtype, mask: torch.dtype, expected: torch.dtype
) -> None:
    pair = [embeddings(2, 3, 8, dtype=embedding), embeddings(3, 4, 8, dtype=embedding)]
    for masks in ((torch.ones(2, 3, dtype=mask), None), (None, torch.ones(3, 4, dtype=mask))):
        assert assert_parity(scores.colbert_scores, pair, *masks).scores.dtype == expected


# Inputs


@pytest.mark.parametrize("kind", KINDS, ids=repr)
@pytest.mark.parametrize("convert", [np.asarray, Tensor.tolist, list], ids=["numpy", "nested lists", "list of tensors"])
def test_what_pylate_converts_is_converted(scores: ModuleType, kind: Kind, convert: Callable[..., Any]) -> None:
    pair = [convert(embeddings(3, 4, 8)), convert(embeddings(*kind.leading(3, 2), 5, 8))]
    masks = (np.ones((3, 4), dtype=np.float32), np.ones((*kind.leading(3, 2), 5), dtype=bool))
    ours = kind.function(scores)(*pair, *masks)
    library = call_unpatched(kind.function(scores), *pair, *masks)
    torch.testing.assert_close(ours, library, rtol=0, atol=1e-6)


def strided(leading: tuple[int, ...]) -> list[list[Tensor]]:
    """Three queries and some documents: sliced, transposed, expanded."""
    documents = embeddings(*leading, 10, 8)
    return [
        [embeddings(3, 10, 8)[:, ::2], documents[..., ::2, :]],
        [embeddings(8, 5, 3).permute(2, 1, 0), embeddings(*leading, 8, 10).transpose(-1, -2)],
        [embeddings(1, 5, 8).expand(3, -1, -1), documents[..., :1, :].expand(*leading, 6, 8)],
    ]


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_strides_do_not_matter(scores: ModuleType, kind: Kind) -> None:
    leading = kind.leading(3, 4)
    for pair in strided(leading):
        mask = (torch.rand(pair[1].shape[-2], *leading) < 0.5).movedim(0, -1)
        ours = kind.function(scores)(*pair, None, mask)
        library = call_unpatched(kind.function(scores), *pair, None, mask)
        torch.testing.assert_close(ours, library, rtol=0, atol=1e-6)


def test_a_mask_of_size_one_stands_for_all(scores: ModuleType) -> None:
    pair = [embeddings(3, 4, 8), embeddings(5, 6, 8)]
    for masks in (
        (torch.rand(1, 4), torch.rand(5, 1)),
        (torch.rand(3, 1), torch.rand(1, 6)),
        (torch.rand(1, 1), torch.rand(1, 1)),
    ):
        assert_parity(scores.colbert_scores, pair, *masks, wanted=BOTH_GRADS)


@pytest.mark.parametrize("kind", KINDS, ids=repr)
@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["queries", "documents"])
def test_a_gradient_on_one_side_only(scores: ModuleType, kind: Kind, wanted: tuple[bool, bool]) -> None:
    pair = [embeddings(3, 4, 8), embeddings(*kind.leading(3, 2), 5, 8)]
    assert_parity(kind.function(scores), pair, None, lengths((*kind.leading(3, 2), 5)), wanted=wanted)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients(scores: ModuleType, mode: Callable[[], Any]) -> None:
    pair = [embeddings(3, 4, 8).requires_grad_(), embeddings(5, 6, 8)]
    with mode():
        ours = scores.colbert_scores(*pair)
        library = call_unpatched(scores.colbert_scores, *pair)
    assert (ours.requires_grad, ours.is_inference()) == (library.requires_grad, library.is_inference())
    torch.testing.assert_close(ours, library)


@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("given", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("mask", ["none", "holes", "weights"])
@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_autocast(scores: ModuleType, kind: Kind, mask: str, given: torch.dtype, lowered: torch.dtype) -> None:
    leading = kind.leading(3, 4)
    pair = [embeddings(3, 5, 16, dtype=given), embeddings(*leading, 7, 16, dtype=given)]
    masks = MASKS[mask]((3, 5), (*leading, 7))
    assert_parity(kind.function(scores), pair, *masks, wanted=BOTH_GRADS, lowered=lowered)


def test_nan_goes_where_pylate_lets_it(scores: ModuleType) -> None:
    queries, documents = embeddings(3, 4, 8), embeddings(5, 6, 8)
    documents[1, 2, 3] = queries[2, 0, 0] = torch.nan
    ours = scores.colbert_scores(queries, documents)
    torch.testing.assert_close(ours, call_unpatched(scores.colbert_scores, queries, documents), equal_nan=True)
    assert ours.isnan().sum() == 3 + 5 - 1


# Pairs


def ragged(*sizes: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [embeddings(size, 16, dtype=dtype) for size in sizes]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_pairs_of_ragged_lists_with_gradients(scores: ModuleType, dtype: torch.dtype) -> None:
    pair = [ragged(3, 1, 32, 7, dtype=dtype), ragged(5, 180, 1, 33, dtype=dtype)]
    found = assert_parity(scores.colbert_scores_pairwise, pair, wanted=BOTH_GRADS)
    assert found.scores.shape == (4,)
    assert len(found.grads) == 8


@pytest.mark.parametrize("counts", [(4, 4), (4, 2), (2, 4), (1, 1)])
def test_pairs_of_padded_batches_end_with_the_shorter(scores: ModuleType, counts: tuple[int, int]) -> None:
    pair = [embeddings(counts[0], 5, 16), embeddings(counts[1], 9, 16)]
    found = assert_parity(scores.colbert_scores_pairwise, pair, wanted=BOTH_GRADS)
    assert found.scores.shape == (min(counts),)


def test_pairs_of_everything_that_pylate_iterates(scores: ModuleType) -> None:
    queries, documents = ragged(3, 0, 4), ragged(5, 6, 2, 9)
    arrays = np.empty(4, dtype=object)
    arrays[:] = [document.numpy() for document in documents]
    batch = embeddings(3, 4, 16)
    for pair in (
        (queries, documents),
        (tuple(queries), documents),
        (queries, [document.numpy() for document in documents]),
        (queries, [document.tolist() for document in documents]),
        (queries, arrays),
        (batch, documents),
        (batch.numpy(), arrays),
        (batch, batch.transpose(0, 1)),
    ):
        ours = scores.colbert_scores_pairwise(*pair)
        library = call_unpatched(scores.colbert_scores_pairwise, *pair)
        torch.testing.assert_close(ours, library, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16], ids=str)
def test_pairs_under_autocast(scores: ModuleType, lowered: torch.dtype) -> None:
    pair = [ragged(3, 1, 32), ragged(5, 180, 1)]
    assert_parity(scores.colbert_scores_pairwise, pair, wanted=BOTH_GRADS, lowered=lowered)


# What PyLate rejects or takes elsewhere


def outcome(call: Callable[[], Any]) -> Any:
    """Return the result, or the class and message of the exception."""
    try:
        return call()
    except Exception as error:  # any: it is compared with the library's
        return type(error), str(error)


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
    seen = []

    class Traced(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(getattr(func, "__name__", ""))
            return super().__torch_function__(func, types, args, kwargs or {})

    scores.colbert_scores(embeddings(2, 3, 8).as_subclass(Traced), embeddings(2, 3, 8))
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
def test_auto_is_ours(scores: ModuleType, name: str, backend: Any) -> None:
    with_backend(scores)
    function = Kind(name, lambda *_: ()).function(scores)
    function(*[embeddings(*shape) for shape in CALLS[name]], backend=backend)


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


MEMORY = """
import json
from pathlib import Path
import torch, li_plugins
from pylate.scores import colbert_scores

def status(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024

def peak_of(queries, documents):
    sides = [side.clone().requires_grad_() for side in (queries, documents)]
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = status("VmRSS")
    colbert_scores(*sides).sum().backward()
    return status("VmHWM") - before

queries, documents = torch.randn(64, 32, 16), torch.randn(256, 256, 16)  # 0.5 GiB of similarities
peaks = []
for enable in (li_plugins.enable_all, li_plugins.disable_all):
    enable()
    peak_of(queries[:4], documents[:4])  # what threads and libraries allocate once
    peaks.append(peak_of(queries, documents))
print(json.dumps(peaks))
"""


@pytest.mark.switches
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the high-water mark is read from Linux's /proc")
def test_memory_does_not_grow_with_the_grid() -> None:
    """PyLate's own peak shows that the measurement sees what it is for."""
    done = subprocess.run([sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True, timeout=280)
    ours, library = json.loads(done.stdout.splitlines()[-1])
    assert library > 500
    assert ours < 64
