"""``rank.rerank``: the same ranking, scores, types and errors, patched and unpatched."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import li_plugins
from li_plugins.ops import arguments, ragged
from li_plugins.testing.blocks import blocks_in_memory
from li_plugins.testing.oracle import judge
from li_plugins.testing.parity import call_unpatched, outcome

Arguments = tuple[list[list[str]], list[Any], list[Any]]


def texts(*lengths: int) -> list[Tensor]:
    return [torch.nn.functional.normalize(torch.randn(length, 16), dim=-1) for length in lengths]


def collection(seed: int = 0) -> Arguments:
    """Three queries with 7, 1 and 40 candidates of 1 to 30 tokens."""
    torch.manual_seed(seed)
    candidates = [texts(*torch.randint(1, 30, (count,)).tolist()) for count in (7, 1, 40)]
    ids = [[f"{query}-{index}" for index in range(len(row))] for query, row in enumerate(candidates)]
    return ids, texts(5, 1, 32), candidates


def deep(change: Callable[[Tensor], Any], value: Any) -> Any:
    return [deep(change, item) for item in value] if isinstance(value, list) else change(value)


def assert_same(rank: ModuleType, *arguments: Any, tolerance: float = 1e-5, **keywords: Any) -> Any:
    """Compare ids, scores and types; two neighbours may change places if their scores are that close."""
    ours = rank.rerank(*arguments, **keywords)
    library = call_unpatched(rank.rerank, *arguments, **keywords)
    assert [len(row) for row in ours] == [len(row) for row in library]
    for mine, theirs in zip(ours, library, strict=True):
        scores = {str(result["id"]): result["score"] for result in theirs}
        for found, expected in zip(mine, theirs, strict=True):
            assert found.keys() == expected.keys()
            assert type(found["id"]) is type(expected["id"])
            assert type(found["score"]) is type(expected["score"])
            assert found["score"] == pytest.approx(scores[str(found["id"])], abs=tolerance)
            assert found["score"] == pytest.approx(expected["score"], abs=tolerance)
    return ours


def assert_earned(rank: ModuleType, dtype: torch.dtype, ids: Any, queries: Any, candidates: Any) -> None:
    """Compare 16-bit scores with float64: the error is the library's, or one rounding to ``dtype``."""
    exact = deep(lambda text: text.to(dtype).double(), queries), deep(lambda text: text.to(dtype).double(), candidates)
    with torch.autocast("cpu", enabled=False):
        truth = call_unpatched(rank.rerank, ids, *exact)
    found = rank.rerank(ids, queries, candidates), call_unpatched(rank.rerank, ids, queries, candidates)
    for row in zip(*found, truth, strict=True):
        by_id = [{result["id"]: result["score"] for result in side} for side in row]
        ours, library, exactly = (torch.tensor([side[name] for name in by_id[2]]).double() for side in by_id)
        verdict = judge(ours, exactly, library, magnitude=exactly.abs(), rounding=dtype, name="scores")
        assert verdict, str(verdict)
        assert [result["score"] for result in row[0]] == sorted(by_id[0].values(), reverse=True)


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        (lambda text: text, 1e-5),
        (lambda text: text.numpy(), 1e-5),
        (lambda text: text.tolist(), 1e-5),
        (lambda text: text.double(), 1e-12),
        (lambda text: text.requires_grad_(), 1e-5),
        (lambda text: text.repeat(1, 2)[:, ::2], 1e-5),
    ],
    ids=["tensors", "numpy", "lists", "float64", "with gradient", "strided"],
)
def test_every_kind_of_embedding(rank: ModuleType, change: Callable[[Tensor], Any], tolerance: float) -> None:
    ids, queries, candidates = collection()
    assert_same(rank, ids, deep(change, queries), deep(change, candidates), tolerance=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(rank: ModuleType, dtype: torch.dtype) -> None:
    ids, queries, candidates = collection()
    lowered = deep(lambda text: text.to(dtype), queries), deep(lambda text: text.to(dtype), candidates)
    assert_earned(rank, dtype, ids, *lowered)
    assert_earned(rank, dtype, ids[:1], lowered[0][:1], lowered[1][:1])
    if dtype is torch.float16:
        assert_same(rank, ids, deep(Tensor.numpy, lowered[0]), deep(Tensor.numpy, lowered[1]), tolerance=2e-2)


def test_batches_in_place_of_lists(rank: ModuleType) -> None:
    queries, documents = torch.randn(2, 4, 8), torch.randn(2, 5, 6, 8)
    ids = np.arange(10).reshape(2, 5)
    assert_same(rank, ids, queries, documents)
    assert_same(rank, ids, queries.numpy(), documents.numpy())
    assert_same(rank, ids.tolist(), queries[0], list(documents))
    assert_same(rank, ids.tolist(), queries[0].numpy(), [list(row) for row in documents])


def test_only_candidates_shorter_than_the_longest_meet_zeros(rank: ModuleType) -> None:
    query = torch.ones(3, 8)
    candidates = [-torch.ones(2, 8), -torch.ones(5, 8), -2 * torch.ones(5, 8), torch.zeros(0, 8)]
    (found,) = assert_same(rank, [["short", "long", "as long", "empty"]], [query], [candidates])
    assert {result["id"]: result["score"] for result in found} == {"short": 0, "long": -24, "as long": -48, "empty": 0}


def test_equal_scores_keep_pylates_order(rank: ModuleType) -> None:
    document = texts(6)[0]
    (found,) = assert_same(rank, [list("abcdefgh")], texts(4), [[document.clone() for _ in range(8)]])
    (library,) = call_unpatched(rank.rerank, [list("abcdefgh")], texts(4), [[document.clone() for _ in range(8)]])
    assert [result["id"] for result in found] == [result["id"] for result in library]


def test_the_shortest_of_the_three_ends_the_ranking(rank: ModuleType) -> None:
    ids, queries, candidates = collection()
    assert len(assert_same(rank, ids[:2], queries, candidates)) == 2
    assert len(assert_same(rank, ids, queries[:1], candidates)) == 1
    assert assert_same(rank, [], [], []) == []


def test_more_ids_than_candidates(rank: ModuleType) -> None:
    ids, queries, candidates = collection()
    assert_same(rank, [[*row, "unused"] for row in ids], queries, candidates)


def test_the_device_is_honoured(rank: ModuleType) -> None:
    assert_same(rank, *collection(), device="cpu")
    assert_same(rank, *collection(), "cpu")
    assert_same(rank, *collection(), device=torch.device("cpu"))


@pytest.mark.parametrize("device", [0, "", "nowhere"])
def test_a_device_that_is_not_there_is_pylates_error(rank: ModuleType, device: Any) -> None:
    if device == 0 and torch.cuda.is_available():
        pytest.skip("there is one")
    expected = call_unpatched(outcome, lambda: rank.rerank(*collection(), device=device))
    assert outcome(lambda: rank.rerank(*collection(), device=device)) == expected
    assert issubclass(expected[0], (RuntimeError, AssertionError))
    assert rank.rerank([], [], [], device=device) == []


def test_stored_candidates_under_autocast(rank: ModuleType) -> None:
    ids, queries, candidates = collection()
    halves = deep(Tensor.half, queries), deep(Tensor.half, candidates)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(rank, ids, *halves, tolerance=0.25)


def test_under_autocast(rank: ModuleType) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_earned(rank, torch.bfloat16, *collection())


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Operation and document tokens, padding included, of every launch."""
    replacement, made = import_module("li_plugins_pylate.rank"), []

    def counting(name: str) -> Callable[..., Tensor]:
        launch = getattr(replacement, name)

        def counted(**request: Any) -> Tensor:
            made.append((name, request["documents"].shape[:-1].numel()))
            return launch(**request)

        return counted

    for name in ("maxsim", "maxsim_packed"):
        monkeypatch.setattr(replacement, name, counting(name))
    return made


@pytest.mark.parametrize("tokens", [1, 29, 64, 10_000])
def test_the_size_of_a_launch_changes_nothing(
    rank: ModuleType, monkeypatch: pytest.MonkeyPatch, launches: list[tuple[str, int]], tokens: int
) -> None:
    monkeypatch.setitem(ragged.BYTES_PER_LAUNCH, "cpu", tokens * 16 * 4)
    ids, queries, candidates = collection()
    assert_same(rank, ids, queries, candidates)
    lengths = [len(document) for row in candidates for document in row]
    made = [size for name, size in launches if name == "maxsim_packed"]
    assert made == [sum(lengths[run]) for run in arguments.runs(lengths, tokens)]
    assert len(launches) == len(made), "several queries are packed"
    assert (len(made) == 1) == (tokens == 10_000)


def test_a_launch_is_out_of_memory_before_the_next_is_made(rank: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ragged.BYTES_PER_LAUNCH, "cpu", 64 * 16 * 4)
    with blocks_in_memory() as counts:
        rank.rerank(*collection())
    assert len(counts) > 10
    assert max(counts) == 1, "queries, when documents are made"


def test_a_gpu_takes_more_in_a_launch_than_the_cpu() -> None:
    assert ragged.bytes_per_launch(None) == ragged.bytes_per_launch("cpu") == ragged.BYTES_PER_LAUNCH["cpu"]
    assert ragged.bytes_per_launch("cuda:0") == ragged.BYTES_PER_LAUNCH["cuda"] > ragged.BYTES_PER_LAUNCH["cpu"]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_one_query_with_few_candidates_is_padded_as_in_pylate(
    rank: ModuleType, launches: list[tuple[str, int]], count: int
) -> None:
    ids, queries, candidates = collection()
    row = [*candidates[0], torch.zeros(0, 16)][-count:] if count > 1 else candidates[0][:1]
    assert_same(rank, ids[:1], queries[:1], [row])
    assert launches == [("maxsim", count * max(map(len, row)))]
    assert_same(rank, ids[:1], deep(Tensor.numpy, queries[:1]), [deep(Tensor.numpy, row)], device="cpu")
    assert "blocked" in str(li_plugins.explain(rank.rerank, ids[:1], queries[:1], [row]))


def test_one_query_with_many_candidates_is_packed(rank: ModuleType, launches: list[tuple[str, int]]) -> None:
    documents = [torch.randn(length, 128) for length in range(1, 100)]
    assert_same(rank, [list(range(99))], [torch.randn(4, 128)], [documents], tolerance=1e-4)
    assert launches == [("maxsim_packed", 99 * 50)]


BAD: dict[str, Callable[[Arguments], tuple[Any, ...]]] = {
    "a query without candidates": lambda a: (a[0], a[1], [[], *a[2][1:]]),
    "candidates without tokens": lambda a: (a[0], a[1], deep(lambda text: text[:0], a[2])),
    "a vector": lambda a: (a[0], a[1], [[document[0] for document in row] for row in a[2]]),
    "another dimension": lambda a: (a[0], a[1], deep(lambda text: text[:, :8], a[2])),
    "another dtype": lambda a: (a[0], deep(Tensor.double, a[1]), a[2]),
    "int64": lambda a: (a[0], deep(lambda text: (9 * text).long(), a[1]), deep(lambda text: (9 * text).long(), a[2])),
    "several dtypes": lambda a: (a[0], a[1], [[a[2][0][0], a[2][0][1].double()], *a[2][1:]]),
    "an unknown device": lambda a: (*a, "nowhere"),
    "too few ids": lambda a: ([row[:1] for row in a[0]], a[1], a[2]),
    "a number": lambda a: (a[0], 3, a[2]),
}


@pytest.mark.allow_fallback(reason="what MaxSim has no meaning for is the library's to answer")
@pytest.mark.parametrize("case", BAD)
def test_the_same_answer_to_what_is_not_ours(rank: ModuleType, case: str) -> None:
    given = BAD[case](collection())
    ours = outcome(lambda: rank.rerank(*given))
    if isinstance(ours, tuple):
        assert ours == call_unpatched(outcome, lambda: rank.rerank(*given))
    else:
        assert_same(rank, *given)


@pytest.mark.allow_fallback(reason="PyLate's variable names a backend")
def test_a_backend_by_name_is_the_users_word(rank: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLATE_SCORES_BACKEND", "torch")
    assert rank.rerank(*collection()) == call_unpatched(rank.rerank, *collection())


@pytest.mark.allow_fallback(reason="the user's own function comes first")
def test_a_user_who_replaces_colbert_scores_is_heard(rank: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        rank, "colbert_scores", lambda queries_embeddings, documents_embeddings: torch.full((1, 2), 7.0)
    )
    (found,) = rank.rerank([["a", "b"]], texts(3), [texts(4, 5)])
    assert [result["score"] for result in found] == [7, 7]


def test_explain_names_the_kernel(rank: ModuleType) -> None:
    assert "blocked" in str(li_plugins.explain(rank.rerank, *collection()))
    assert "without documents" in str(li_plugins.explain(rank.rerank, [[]], texts(3), [[]]))


def test_one_call_ranks_everything(rank: ModuleType, li_plugins_counts: Any) -> None:
    rank.rerank(*collection())
    assert li_plugins_counts.calls == {"pylate.rank.rank:rerank": 1}
