"""MaxSim's Triton kernels at the benchmark's sizes, element by element against float64 and torch's own error."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import views
from libraries import einsum_scores, einsum_step

from li_plugins.ops.maxsim.problem import Layout, Problem
from li_plugins.ops.maxsim.triton_kernel import KERNEL
from li_plugins.testing.maxsim_cases import RULES, assert_close, check_kernel, random_problem

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

NONE, ZERO, *_ = RULES
FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32

VIEWS = {**views.STRIDED, "half of each row": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]]}


def by_name(value: object) -> str:
    return str(getattr(value, "name", value)).removeprefix("torch.")


def crossed(a: int, b: int, lq: int, ld: int, d: int, dtype: torch.dtype, **more: object) -> Problem:
    """Return unit embeddings, as encoders make them, every query against every document."""
    return normalized(Layout.CROSS, a, b, lq, ld, d, dtype, **more)


def normalized(layout: Layout, a: int, b: int, lq: int, ld: int, d: int, dtype: torch.dtype, seed: int = 0) -> Problem:
    random = torch.Generator("cuda").manual_seed(seed)
    leading = (b,) if layout is Layout.CROSS else (a, b)

    def unit(*shape: int) -> torch.Tensor:
        rows = torch.randn(shape, generator=random, device="cuda", dtype=dtype)
        return rows / rows.float().norm(dim=-1, keepdim=True).to(dtype)

    return Problem(layout, unit(a, lq, d), unit(*leading, ld, d), NONE, dtype, lq, ld)


def check_against_torch(problem: Problem) -> None:
    """Check a dense problem with torch's own error, in the same dtype, as an allowance."""
    random = torch.Generator("cuda").manual_seed(1)
    grad_scores = torch.randn(problem.scores_shape, generator=random, device="cuda").to(problem.out_dtype)
    check_kernel(KERNEL, problem, library=einsum_step(problem, grad_scores), grad_scores=grad_scores)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=by_name)
@pytest.mark.parametrize(
    ("layout", "a", "b", "lq", "ld", "d"),
    [
        (Layout.CROSS, 256, 512, 32, 180, 128),
        (Layout.CROSS, 64, 64, 32, 1030, 128),
        (Layout.CROSS, 8, 8, 1030, 1030, 128),
        (Layout.CROSS, 1, 1000, 32, 300, 128),
        (Layout.CROSS, 64, 128, 32, 180, 96),
        (Layout.CROSS, 64, 128, 32, 180, 48),
        (Layout.CANDIDATES, 64, 32, 32, 256, 128),
    ],
)
def test_shapes_of_the_benchmark(layout, a, b, lq, ld, d, dtype):
    check_against_torch(normalized(layout, a, b, lq, ld, d, dtype))


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=by_name)
def test_masks_and_weights_of_pylate(dtype):
    problem = crossed(32, 64, 32, 180, 128, dtype)
    random = torch.Generator("cuda").manual_seed(2)
    mask = torch.rand(64, 180, generator=random, device="cuda") < 0.8
    weights = torch.rand(32, 32, generator=random, device="cuda") < 0.9
    check_against_torch(replace(problem, rule=ZERO, document_mask=mask, query_weights=weights))


@pytest.mark.parametrize("layout", [Layout.PACKED_CROSS, Layout.PACKED_PAIRS], ids=by_name)
def test_reranking_ragged_documents(layout):
    problem = random_problem(
        layout, queries=2, documents=500, query_length=32, document_length=220, dim=128, dtype=BF16, device="cuda"
    )
    check_kernel(KERNEL, problem)


@pytest.mark.parametrize("sizes", [(64, 128, 32, 180, 128), (16, 64, 32, 1030, 128), (64, 64, 24, 300, 96)], ids=str)
@pytest.mark.parametrize("alike", [0.0, 1.0], ids=["random", "alike"])
def test_fp32_scores_are_as_close_to_float64_as_torch_s(sizes, alike):
    problem = crossed(*sizes, FP32)
    common = torch.nn.functional.normalize(torch.randn(sizes[-1], device="cuda"), dim=-1)
    queries, documents = (
        torch.nn.functional.normalize(side + alike * common, dim=-1) for side in (problem.queries, problem.documents)
    )
    problem = replace(problem, queries=queries, documents=documents)
    exact = einsum_scores(problem, queries.double(), documents.double())
    scores, _ = KERNEL.forward(problem, False)
    ours, library = (
        (found.double() - exact).norm() / exact.norm() for found in (scores, einsum_scores(problem, queries, documents))
    )
    assert ours <= 1.05 * library


def test_fp32_is_true_fp32_unless_tf32_is_allowed(monkeypatch):
    problem = crossed(16, 16, 32, 180, 128, FP32)
    truth = replace(problem, queries=problem.queries.double(), documents=problem.documents.double())
    exact = torch.einsum("ash,bth->abst", truth.queries, truth.documents).amax(-1).sum(-1)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    assert_close(KERNEL.forward(problem, False)[0], exact, exact)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    error = (KERNEL.forward(problem, False)[0] - exact).abs().max()
    assert 1e-5 < error < 1e-1


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=by_name)
@pytest.mark.parametrize(("queries", "query_length"), [(16, 32), (2, 100), (1, 32), (1, 16)])
def test_of_equals_the_first_wins_in_every_tile(queries, query_length, dtype):
    """The best token comes again in every later place, with all that lies between smaller."""
    for first in (0, 3, 8, 62, 70, 131):
        problem = crossed(queries, 3, query_length, 200, 128, dtype)
        problem.queries[:] = problem.queries.abs()
        problem.documents[:] = -problem.documents.abs()
        problem.documents[:, first::7] = 0.5
        _, winners = KERNEL.forward(problem, True)
        assert (winners == first).all()


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=by_name)
def test_gradients_beyond_the_range_of_the_dtype(dtype):
    problem = replace(crossed(16, 16, 32, 64, 128, dtype), out_dtype=FP32)
    random = torch.Generator("cuda").manual_seed(3)
    tiny = torch.randn(16, 16, generator=random, device="cuda") * 1e-7  # underflows in fp16; the sums do, too
    check_kernel(KERNEL, problem, grad_scores=tiny)
    check_kernel(KERNEL, problem, grad_scores=tiny * 1e9)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=by_name)
def test_memory_of_any_layout(view, dtype):
    problem = crossed(9, 17, 32, 130, 128, dtype)
    strided = replace(problem, queries=view(problem.queries), documents=view(problem.documents))
    expected, winners = KERNEL.forward(problem, True)
    gradients = KERNEL.backward(problem, expected, winners, True, True)
    found, found_winners = KERNEL.forward(strided, True)
    assert torch.equal(found, expected)
    assert torch.equal(found_winners, winners)
    for ours, theirs in zip(KERNEL.backward(strided, found, winners, True, True), gradients, strict=True):
        # rows that do not begin at 16 bytes are read in other pieces, and added in another order
        torch.testing.assert_close(ours, theirs, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


def test_expanded_documents():
    problem = normalized(Layout.CANDIDATES, 8, 6, 32, 130, 128, BF16)
    documents = problem.documents[:1].expand(8, -1, -1, -1)
    check_kernel(KERNEL, replace(problem, documents=documents), grad_scores=torch.ones(1, device="cuda").expand(8, 6))


class TestMoreThan2To31Elements:
    """Offsets of 32 bits wrap here: the far end has to be scored like a problem of its own."""

    FAR = 8

    @pytest.fixture(autouse=True)
    def _memory(self):
        free, _ = torch.cuda.mem_get_info()
        if free < 40 * 2**30:
            pytest.skip(f"needs 40 GiB of free device memory; found {free / 2**30:.0f}")
        yield
        torch.cuda.empty_cache()

    def check_far_end(self, problem: Problem, tail: Problem) -> None:
        scores, winners = KERNEL.forward(problem, True)
        tail_scores, tail_winners = KERNEL.forward(tail, True)
        assert torch.equal(scores[:, -self.FAR :], tail_scores)
        assert torch.equal(winners[-self.FAR :], tail_winners)
        grad_scores = torch.zeros_like(scores)
        grad_scores[:, -self.FAR :] = tail_scores
        grad_queries, grad_documents = KERNEL.backward(problem, grad_scores, winners, True, True)
        tail_queries, tail_documents = KERNEL.backward(tail, tail_scores, tail_winners, True, True)
        assert torch.equal(grad_queries, tail_queries)
        assert torch.equal(grad_documents[-tail.documents.shape[0] :], tail_documents)

    def big(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda", dtype=BF16)

    def test_documents(self):
        documents, queries = self.big(16_500, 1024, 128), self.big(2, 32, 128)
        assert documents.numel() > 2**31
        problem = Problem(Layout.CROSS, queries, documents, NONE, BF16, 32, 1024)
        self.check_far_end(problem, replace(problem, documents=documents[-self.FAR :]))

    def test_tokens_far_apart(self):
        documents, queries = self.big(1024, 16_500, 128).transpose(0, 1), self.big(2, 32, 128)
        problem = Problem(Layout.CROSS, queries, documents, NONE, BF16, 32, 1024)
        self.check_far_end(problem, replace(problem, documents=documents[-self.FAR :].contiguous()))

    def test_packed_documents(self):
        documents, queries = self.big(16_500 * 1024, 128), self.big(64, 128)
        offsets = torch.arange(0, 16_501, device="cuda") * 1024
        problem = Problem(
            Layout.PACKED_CROSS, queries, documents, NONE, BF16, 32, 1024,
            query_offsets=torch.tensor([0, 32, 64], device="cuda"), document_offsets=offsets,
        )  # fmt: skip
        tail = replace(problem, documents=documents[-self.FAR * 1024 :], document_offsets=offsets[: self.FAR + 1])
        self.check_far_end(problem, tail)

    def test_winners(self):
        queries, documents = self.big(2100, 32, 16), self.big(33_000, 4, 16)
        problem = Problem(Layout.CROSS, queries, documents, NONE, BF16, 32, 4)
        scores, winners = KERNEL.forward(problem, True)
        assert winners.numel() > 2**31
        tail = replace(problem, queries=queries[-2:])
        tail_scores, tail_winners = KERNEL.forward(tail, True)
        assert torch.equal(scores[-2:], tail_scores)
        assert torch.equal(winners[:, -2:], tail_winners)
        grad_scores = torch.zeros_like(scores)
        grad_scores[-2:] = 1
        gradients = KERNEL.backward(problem, grad_scores, winners, True, True)
        tail_gradients = KERNEL.backward(tail, grad_scores[-2:], tail_winners, True, True)
        assert torch.equal(gradients[0][-2:], tail_gradients[0])
        # sorted, and one query after the other: the sums are those of other orders
        torch.testing.assert_close(gradients[1], tail_gradients[1], rtol=2**-7, atol=1e-5)
