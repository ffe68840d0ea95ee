"""The kernels of plain torch under the check that every kernel has to pass: winners, poisoned memory, all dtypes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from li_plugins.ops import MaskRule
from li_plugins.ops.maxsim import candidates, cpu, gather, kept, reference
from li_plugins.ops.maxsim.problem import Layout
from li_plugins.testing.maxsim_cases import LAYOUTS, RULES, check_kernel, random_problem

KERNELS = {"blocked": cpu.KERNEL, "reference": reference.KERNEL}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(params=KERNELS)
def implementation(request: pytest.FixtureRequest) -> Any:
    return KERNELS[request.param]


@pytest.fixture(params=["one block", "two queries", "many blocks"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_candidates_of_many_queries_in_one_product(rule: MaskRule) -> None:
    """With documents of which nothing is left, or all, and embeddings that are no numbers."""
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


def test_nan_wins_at_its_first_position() -> None:
    problem = random_problem(Layout.CROSS, lengths=False, document_length=6)
    problem.documents[1, 4] = problem.documents[1, 2] = torch.nan
    for kernel in KERNELS.values():
        scores, winners = kernel.forward(problem, True)
        assert scores[:, 1].isnan().all()
        assert winners is not None
        assert (problem.by_score(winners)[:, 1] == 2).all()
        assert scores[:, 0].isfinite().all()
