"""Smooth MaxSim's Triton kernels at the benchmark's sizes, against float64 and torch's own error; and that they run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from smooth_maxsim_triton_cases import KERNEL, check, random_gradient, random_problem

from li_plugins.ops import dispatch, smooth_maxsim
from li_plugins.ops.maxsim.problem import Layout
from li_plugins.ops.smooth_maxsim.problem import SmoothProblem

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32


def by_name(value: object) -> str:
    return str(getattr(value, "name", value)).removeprefix("torch.")


def einsum_step(problem: SmoothProblem, grad_scores: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return scores and gradients as colpali-engine computes them."""
    equation = "ash,bth->abst" if problem.layout is Layout.CROSS else "ash,abth->abst"
    leaves = [side.detach().requires_grad_() for side in (problem.queries, problem.documents)]
    scores = (problem.tau * torch.logsumexp(torch.einsum(equation, *leaves) / problem.tau, -1)).sum(-1)
    return scores.detach(), *torch.autograd.grad(scores, leaves, grad_scores.to(scores))


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=by_name)
@pytest.mark.parametrize(
    ("layout", "a", "b", "lq", "ld", "d"),
    [
        (Layout.CROSS, 64, 64, 32, 1030, 128),
        (Layout.CROSS, 16, 16, 33, 1030, 128),
        (Layout.CROSS, 4, 4, 1030, 1030, 128),
        (Layout.CROSS, 64, 128, 32, 180, 96),
        (Layout.CROSS, 16, 32, 32, 180, 48),
        (Layout.CROSS, 16, 32, 32, 180, 256),
        (Layout.CROSS, 8, 8, 32, 180, 1024),
        (Layout.CROSS, 1, 100, 32, 300, 128),
        (Layout.CANDIDATES, 32, 16, 32, 256, 128),
    ],
)
def test_shapes_of_the_benchmark(layout, a, b, lq, ld, d, dtype):
    problem = random_problem(layout, queries=a, documents=b, query_length=lq, document_length=ld, dim=d, dtype=dtype)
    grad_scores = random_gradient(problem)
    check(problem, grad_scores, einsum_step(problem, grad_scores))


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=by_name)
def test_without_the_library_as_an_allowance(dtype):
    check(random_problem(queries=16, documents=16, query_length=32, document_length=180, dim=128, dtype=dtype))


def test_a_hardest_negative_is_as_if_the_others_were_not_there():
    problem = random_problem(
        queries=64, documents=64, query_length=32, document_length=180, dim=128, dtype=BF16, out_dtype=FP32
    )
    grad_scores = torch.eye(64, device="cuda") - torch.eye(64, device="cuda").roll(7, 1)
    check(problem, grad_scores)


def test_more_than_2_to_31_elements():
    """Offsets of 32 bits wrap here: the far end has to be scored like a problem of its own."""
    free, _ = torch.cuda.mem_get_info()
    if free < 40 * 2**30:
        pytest.skip(f"needs 40 GiB of free device memory; found {free / 2**30:.0f}")
    problem = random_problem(query_length=32, document_length=1024, dim=128, dtype=BF16, queries=2, documents=8)
    far = problem.documents
    documents = torch.zeros(16_500, 1024, 128, device="cuda", dtype=BF16)
    documents[-8:] = far
    assert documents.numel() > 2**31
    large = replace(problem, documents=documents)
    scores, sums = KERNEL.forward(large, True)
    expected, expected_sums = KERNEL.forward(problem, True)
    torch.testing.assert_close(scores[:, -8:], expected)
    torch.testing.assert_close(sums[-8:], expected_sums)
    grad_scores = torch.zeros_like(scores)
    grad_scores[:, -8:] = random_gradient(problem)
    found = KERNEL.backward(large, grad_scores, sums, True, True)
    wanted = KERNEL.backward(problem, grad_scores[:, -8:], expected_sums, True, True)
    torch.testing.assert_close(found[0], wanted[0])
    torch.testing.assert_close(found[1][-8:], wanted[1])
    assert not found[1][:-8].any()


def test_triton_serves_forward_and_backward(monkeypatch):
    monkeypatch.setenv("LI_PLUGINS_BACKEND", "triton")
    dispatch.reset()
    queries = torch.randn(4, 32, 128, device="cuda", dtype=BF16, requires_grad=True)
    documents = torch.randn(8, 180, 128, device="cuda", dtype=BF16, requires_grad=True)
    smooth_maxsim(queries, documents, tau=0.1).sum().backward()
    assert dispatch.counters() == {("smooth_maxsim", "triton"): 1, ("smooth_maxsim backward", "triton"): 1}


def test_memory_does_not_grow_with_the_grid():
    queries = torch.randn(64, 32, 128, device="cuda", dtype=BF16, requires_grad=True)
    documents = torch.randn(64, 1030, 128, device="cuda", dtype=BF16, requires_grad=True)
    smooth_maxsim(queries, documents, tau=0.1).sum().backward()
    queries.grad = documents.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    smooth_maxsim(queries, documents, tau=0.1).sum().backward()
    peak = torch.cuda.max_memory_allocated() - before
    outputs = 2 * (queries.numel() + documents.numel())
    sums, shared_tiles = 4 * 64 * 64 * 32, 4 * 2 * 256 * 64 * 128
    assert peak < outputs + sums + shared_tiles + 2**21
