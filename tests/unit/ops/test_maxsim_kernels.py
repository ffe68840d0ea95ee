"""The kernels of plain torch under the check that every kernel has to pass: winners, poisoned memory, all dtypes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from li_plugins.ops import MaskRule
from li_plugins.ops.maxsim import candidates, cpu, gather, kept, reference, small
from li_plugins.ops.maxsim.problem import Layout
from li_plugins.testing.maxsim_cases import LAYOUTS, RULES, check_kernel, random_problem

KERNELS = {"blocked": cpu.KERNEL, "reference": reference.KERNEL}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, "SIMILARITIES", 0)
    monkeypatch.setattr(gather, "ADDED", 0)


@pytest.fixture(params=[*KERNELS, "blocked, small"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "blocked":
        nothing_is_small(monkeypatch)
    return KERNELS[request.param.partition(",")[0]]


@pytest.fixture(params=["small", "one block", "two queries", "many blocks"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "small":
        nothing_is_small(monkeypatch)
    if request.param == "two queries":
        monkeypatch.setattr(cpu, "TILE_ELEMENTS", 2 * 4 * 33 * 8)  # of a random problem's, with their candidates
    if request.param == "many blocks":
        monkeypatch.setattr(cpu, "TILE_ELEMENTS", 150)
        monkeypatch.setattr(cpu, "TILE_ROWS", 5)
        monkeypatch.setattr(cpu, "PANEL_ROWS", 8)
        monkeypatch.setattr(gather, "ENTRIES", 20)
        monkeypatch.setattr(kept, "SCANNED", 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.usefixtures("_blocks")
def test_every_layout_rule_and_dtype(layout: Layout, rule: MaskRule, dtype: torch.dtype) -> None:
    # an empty score of -1e9 is no float16
    out_dtype = torch.float32 if dtype is torch.float16 else dtype
    factors = torch.float32
    problem = random_problem(layout, rule, dtype=dtype, out_dtype=out_dtype, weights=factors, mask=factors)
    check_kernel(cpu.KERNEL, problem)


@pytest.mark.parametrize("query_tokens", [16, 512])
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_documents_in_several_tiles(
    layout: Layout, rule: MaskRule, query_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Similarities are exact: a product of a few rows rounds them in another order than one of many."""
    nothing_is_small(monkeypatch)
    monkeypatch.setattr(cpu, "SCORED_TOKENS", 1)
    monkeypatch.setattr(cpu, "SCORED_ROWS", query_tokens)
    problem = random_problem(layout, rule, coarse=True, dim=3, weights=torch.float32, mask=torch.bool)
    check_kernel(cpu.KERNEL, problem)


@pytest.mark.parametrize("lengths", [True, False], ids=["lengths", "whole"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_embeddings_without_dimensions(layout: Layout, lengths: bool, implementation: Any) -> None:
    check_kernel(implementation, random_problem(layout, dim=0, lengths=lengths))


@pytest.mark.parametrize("mask", [torch.bool, torch.int64, torch.float16], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_winners_are_the_first_of_equals(
    layout: Layout, rule: MaskRule, mask: torch.dtype, implementation: Any
) -> None:
    problem = random_problem(layout, rule, coarse=True, dim=3, weights=mask, mask=mask, seed=1)
    check_kernel(implementation, problem, same_winners=True)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.usefixtures("_blocks")
def test_winners_past_a_query_are_ignored(layout: Layout) -> None:
    """Another kernel may leave anything there."""
    problem = random_problem(layout, MaskRule.ZERO, query_length=9, documents=5)
    _, winners = cpu.KERNEL.forward(problem, True)
    assert winners is not None
    grad = torch.randn(problem.scores_shape)
    expected = cpu.KERNEL.backward(problem, grad, winners, True, True)
    if problem.query_offsets is not None:
        lengths = problem.query_offsets.diff()
        if problem.pair_queries is not None:
            lengths = lengths[problem.pair_queries]
        past = torch.arange(9) >= lengths[:, None]
        past = past.expand(problem.winners_shape)
        assert past.any()
        winners = winners.masked_fill(past, torch.iinfo(winners.dtype).max)
    for kernel in (cpu.KERNEL, reference.KERNEL):
        found = kernel.backward(problem, grad, winners, True, True)
        for ours, truth in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_one_token_that_wins_everything() -> None:
    """Thousands of terms in one sum, in half precision: it is a float32 sum."""
    queries = torch.ones(64, 32, 4, dtype=torch.bfloat16)
    documents = torch.tensor([1.0, 3.0, 2.0], dtype=torch.bfloat16)[None, :, None].expand(2, 3, 4)
    problem = replace(random_problem(Layout.CROSS), queries=queries, documents=documents, document_lengths=None)
    problem = replace(problem, max_query_length=32, max_document_length=3, out_dtype=torch.float32)
    _, winners = cpu.KERNEL.forward(problem, True)
    assert winners is not None
    _, grad = cpu.KERNEL.backward(problem, torch.ones(64, 2), winners, False, True)
    assert torch.equal(grad, torch.tensor([0.0, 2048.0, 0.0]).to(grad)[None, :, None].expand_as(grad))


@pytest.mark.parametrize("is_small", [True, False])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_candidates_of_many_queries_in_one_product(
    rule: MaskRule, is_small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With documents of which nothing is left, or all, and embeddings that are no numbers."""
    if not is_small:
        nothing_is_small(monkeypatch)
    problem = random_problem(Layout.CANDIDATES, rule, queries=5, weights=torch.bool, mask=torch.float32)
    assert candidates.queries_together(problem, cpu.TILE_ELEMENTS) == 5
    assert problem.document_lengths is not None
    problem.document_lengths[1] = 33
    if problem.document_mask is not None:
        problem.document_mask[1, 0], problem.document_mask[1, 1] = 0, 1
    check_kernel(cpu.KERNEL, problem)
    problem.documents[2, 1, 3], problem.documents[3, 2, 4] = torch.nan, torch.inf
    (scores, winners), (expected, exact) = (kernel.forward(problem, True) for kernel in (cpu.KERNEL, reference.KERNEL))
    torch.testing.assert_close(scores, expected, equal_nan=True)
    assert winners is not None
    assert torch.equal(winners, exact)


def test_one_query_or_a_large_product_is_not_shared() -> None:
    sizes = {"queries": 8, "documents": 2, "query_length": 32, "document_length": 16, "dim": 64}
    shared = candidates.queries_together(random_problem(Layout.CANDIDATES, **sizes), 3 * 2 * 16 * 64)
    assert shared == 3
    for other in ({"queries": 1}, {"document_length": 4096}, {"documents": 0}, {"query_length": 0}):
        problem = random_problem(Layout.CANDIDATES, lengths=False, **{**sizes, **other})
        assert candidates.queries_together(problem, cpu.TILE_ELEMENTS) == 0
    assert candidates.queries_together(random_problem(Layout.PACKED_PAIRS, **sizes), cpu.TILE_ELEMENTS) == 0


@pytest.mark.parametrize("is_small", [True, False])
def test_nan_wins_at_its_first_position(is_small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_small:
        nothing_is_small(monkeypatch)
    problem = random_problem(Layout.CROSS, lengths=False, document_length=6)
    problem.documents[1, 4] = problem.documents[1, 2] = torch.nan
    for kernel in KERNELS.values():
        scores, winners = kernel.forward(problem, True)
        assert scores[:, 1].isnan().all()
        assert winners is not None
        assert (problem.by_score(winners)[:, 1] == 2).all()
        assert scores[:, 0].isfinite().all()


# Small problems


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("coarse", [False, True], ids=["", "ties"])
@pytest.mark.parametrize("layout", [Layout.PACKED_CROSS, Layout.PACKED_PAIRS], ids=lambda layout: layout.name)
def test_small_packed_texts(layout: Layout, coarse: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each query with several documents in a row and some alone; a query without tokens; floors."""
    problem = random_problem(layout, MaskRule.ZERO, queries=4, documents=5, mask=None, coarse=coarse, dtype=dtype)
    offsets = torch.tensor([0, 33, 34, 40, 41, 60])
    tokens = random_problem(Layout.CROSS, documents=1, document_length=60, coarse=coarse, dtype=dtype).documents[0]
    problem = replace(problem, documents=tokens, document_offsets=offsets)
    if layout is Layout.PACKED_PAIRS:
        queries, documents = [0, 0, 0, 2, 2, 1, 1, 0, 3, 3], [0, 1, 2, 4, 3, 1, 1, 2, 0, 4]
        pairs = {"pair_queries": torch.tensor(queries), "pair_documents": torch.tensor(documents)}
        problem = replace(problem, **pairs, floor=torch.arange(10) % 2 == 0)
    assert small.scores_and_winners(problem, False) is not None
    check_kernel(cpu.KERNEL, problem, same_winners=coarse)
    found, _ = cpu.KERNEL.forward(problem, False)
    nothing_is_small(monkeypatch)
    torch.testing.assert_close(found, cpu.KERNEL.forward(problem, False)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("layout", [Layout.CROSS, Layout.CANDIDATES], ids=lambda layout: layout.name)
def test_small_gradients(layout: Layout, rule: MaskRule, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    factors = {"weights": torch.float32, "mask": torch.float32}
    problem = random_problem(layout, rule, dtype=dtype, out_dtype=torch.float32, lengths=False, seed=3, **factors)
    assert problem.query_weights is not None
    problem.query_weights.clamp_(min=0.25)  # a weight of 0 lets a masked token win
    scores, winners = cpu.KERNEL.forward(problem, True)
    grads = small.gradients(problem, scores, winners, True, True)
    assert grads is not None, "no token gets nothing"
    check_kernel(cpu.KERNEL, problem)
    monkeypatch.setattr(small, "ELEMENTS", 1)
    assert small.gradients(problem, scores, winners, True, True) is None


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_what_is_no_number_goes_the_same_way_in_small_problems(layout: Layout, value: float) -> None:
    is_dense = layout in (Layout.CROSS, Layout.CANDIDATES)
    problem = random_problem(
        layout, MaskRule.ZERO, query_length=3, document_length=5, mask=torch.bool if is_dense else None
    )
    problem.documents.view(-1, 8)[2, 3] = problem.queries.view(-1, 8)[1, 5] = value
    if problem.document_offsets is not None:
        edges = torch.linspace(0, len(problem.documents), len(problem.document_offsets)).long()
        problem = replace(problem, document_offsets=edges)
    assert small.scores_and_winners(problem, False) is not None
    found, expected = (kernel.forward(problem, True) for kernel in (cpu.KERNEL, reference.KERNEL))
    torch.testing.assert_close(found[0], expected[0], equal_nan=True)
    assert not is_dense or torch.equal(found[1], expected[1])


@pytest.mark.parametrize("name", ["SIMILARITIES", "PRODUCTS", "ELEMENTS", "TEXTS"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_what_is_not_small_is_left(layout: Layout, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(layout, mask=None)
    if problem.document_offsets is not None:
        offsets = torch.tensor([0, 7, 9, 12, 30])
        problem = replace(problem, document_offsets=offsets, documents=problem.documents[:30])
    if layout is Layout.PACKED_PAIRS:
        pairs = {"pair_queries": torch.zeros(4, dtype=torch.int64), "pair_documents": torch.arange(4), "floor": None}
        problem = replace(problem, **pairs)
    assert small.scores_and_winners(problem, False) is not None
    monkeypatch.setattr(small, name, 1)
    is_bound = problem.query_offsets is not None if name == "TEXTS" else True
    if name == "ELEMENTS":
        is_bound = layout is Layout.PACKED_PAIRS
    assert (small.scores_and_winners(problem, False) is None) == is_bound


@pytest.mark.parametrize("floored", [False, True])
def test_many_pairs_that_share_nothing_take_a_step_each(floored: bool) -> None:
    count = small.TEXTS + 30
    lengths = torch.randint(1, 20, (2, count), generator=torch.Generator().manual_seed(0))
    offsets = torch.nn.functional.pad(lengths.cumsum(1), (1, 0))
    order = torch.randperm(count)
    problem = replace(
        random_problem(Layout.PACKED_PAIRS, mask=None),
        queries=torch.randn(int(offsets[0, -1]), 8),
        documents=torch.randn(int(offsets[1, -1]), 8),
        query_offsets=offsets[0],
        document_offsets=offsets[1],
        pair_queries=torch.arange(count),
        pair_documents=order,
        max_query_length=19,
        max_document_length=19,
        floor=order % 2 == 0 if floored else None,
    )
    found = small.scores_and_winners(problem, True)
    assert found is not None
    expected = reference.KERNEL.forward(problem, True)
    torch.testing.assert_close(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    for most in ("SIMILARITIES", "PRODUCTS"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(small, most, 1)
            assert small.scores_and_winners(problem, True) is None


def test_many_pairs_that_share_queries_are_left() -> None:
    count = 2 * small.TEXTS
    problem = random_problem(Layout.PACKED_PAIRS, mask=None)
    problem = replace(
        problem,
        document_offsets=torch.tensor([0, 7, 9, 12, 30]),
        documents=problem.documents[:30],
        pair_queries=torch.arange(count) % 2,
        pair_documents=torch.arange(count) * 3 % 4,
        floor=None,
    )
    assert small.scores_and_winners(problem, False) is None


@pytest.mark.parametrize(
    "sizes", [{"queries": 0}, {"documents": 0}, {"query_length": 0}, {"document_length": 0}], ids=str
)
@pytest.mark.parametrize("layout", [Layout.CROSS, Layout.CANDIDATES], ids=lambda layout: layout.name)
def test_nothing_is_not_small(layout: Layout, sizes: dict[str, int]) -> None:
    assert small.scores_and_winners(random_problem(layout, lengths=False, **sizes), True) is None
