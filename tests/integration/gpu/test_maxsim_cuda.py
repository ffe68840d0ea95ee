"""MaxSim on a CUDA device: every kind of problem against float64 and against torch's own grid, and what CUDA adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from li_plugins.ops import MaskRule, explain_maxsim, maxsim, maxsim_packed
from li_plugins.ops.maxsim.autograd import maxsim_op
from li_plugins.ops.maxsim.problem import Layout
from li_plugins.testing.maxsim_cases import LAYOUTS, RULES, check_kernel, random_problem
from li_plugins.testing.oracle import judge

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; run by hand, see benchmarks/"),
]

HALVES = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, *HALVES)

FACTORS = {
    "NONE": (torch.bool, None),
    "ZERO": (torch.float32, torch.float32),
    "EXCLUDE": (None, torch.bool),
    "FILL": (torch.float16, torch.int64),
}


def by_name(value: object) -> str:
    return str(getattr(value, "name", value)).removeprefix("torch.")


@pytest.fixture
def kernel() -> Any:
    """The Triton kernel itself, so that no other can answer for it."""
    return import_module("li_plugins.ops.maxsim.triton_kernel").KERNEL


def embeddings(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unit rows, as every late-interaction model makes them."""
    return normalize(torch.randn(*shape, device="cuda"), dim=-1).to(dtype)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", FLOATS, ids=by_name)
@pytest.mark.parametrize("rule", RULES, ids=by_name)
@pytest.mark.parametrize("layout", LAYOUTS, ids=by_name)
def test_layouts_rules_and_dtypes(kernel: Any, layout: Layout, rule: MaskRule, dtype: torch.dtype) -> None:
    weights, mask = FACTORS[rule.name]
    problem = random_problem(
        layout,
        rule,
        queries=9,
        documents=13,
        query_length=40,
        document_length=200,
        dim=128,
        dtype=dtype,
        out_dtype=torch.float32,  # float16 holds no -1e9, the score of an empty document under EXCLUDE
        weights=weights,
        mask=mask,
        device="cuda",
    )
    check_kernel(kernel, problem)


@pytest.mark.parametrize(
    ("query_length", "document_length", "dim"),
    [(1, 1, 1), (7, 63, 8), (33, 130, 48), (1, 1271, 96), (130, 257, 320), (33, 63, 768)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=by_name)
@pytest.mark.parametrize("layout", LAYOUTS, ids=by_name)
def test_odd_shapes(
    kernel: Any, layout: Layout, dtype: torch.dtype, query_length: int, document_length: int, dim: int
) -> None:
    problem = random_problem(
        layout,
        MaskRule.ZERO,
        queries=3,
        documents=5,
        query_length=query_length,
        document_length=document_length,
        dim=dim,
        dtype=dtype,
        weights=torch.float32,
        device="cuda",
    )
    check_kernel(kernel, problem)


def grid(queries: Tensor, documents: Tensor, mask: Tensor) -> Tensor:
    """PyLate's own computation: the whole grid, masks as factors."""
    similarities = torch.einsum("ash,bth->abst", queries, documents) * mask[None, :, None, :]
    return similarities.max(-1).values.sum(-1)


@pytest.mark.parametrize("dtype", FLOATS, ids=by_name)
@pytest.mark.parametrize(
    ("count", "query_length", "document_length", "dim"),
    [(48, 32, 180, 128), (16, 32, 1030, 128), (8, 257, 300, 96), (33, 7, 63, 48)],
)
def test_the_error_is_at_most_torchs_own(
    dtype: torch.dtype, count: int, query_length: int, document_length: int, dim: int
) -> None:
    queries, documents = (
        embeddings(count, query_length, dim, dtype=dtype),
        embeddings(2 * count, document_length, dim, dtype=dtype),
    )
    mask = torch.rand(2 * count, document_length, device="cuda") < 0.8
    weights = torch.randn(count, 2 * count, device="cuda", dtype=torch.float64)

    def run(function: Callable[..., Tensor], kind: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [side.to(kind, copy=True).requires_grad_() for side in (queries, documents)]
        scores = function(*leaves)
        return scores.detach(), *torch.autograd.grad((scores * weights.to(scores)).sum(), leaves)

    ours = run(lambda q, d: maxsim(q, d, document_mask=mask, mask_rule=MaskRule.ZERO), dtype)
    library = run(lambda q, d: grid(q, d, mask), dtype)
    exact = run(lambda q, d: grid(q, d, mask), torch.float64)
    for name, mine, truth, theirs in zip(("scores", "queries", "documents"), ours, exact, library, strict=True):
        assert mine.dtype is dtype
        if name == "scores":
            # Two roundings: a sum of maxima in fp32 has more than one, whoever adds it up.
            verdict = judge(mine, truth, theirs, magnitude=2 * truth.abs().max(), name=name)
            assert verdict, str(verdict)
        # Near ties may have another winner than in float64, and rightly so: compare the gradients as a whole.
        assert (mine - truth).norm() <= (theirs - truth).norm() * 1.05 + torch.finfo(dtype).eps * truth.norm()


def test_offsets_beyond_two_to_the_31() -> None:
    documents = torch.empty(66_000, 256, 128, dtype=torch.bfloat16, device="cuda").normal_()
    assert documents.numel() > 2**31
    queries = embeddings(2, 32, 128, dtype=torch.bfloat16)
    scores = maxsim(queries, documents, out_dtype=torch.float32)
    last = maxsim(queries, documents[-3:].clone(), out_dtype=torch.float32)
    assert torch.equal(scores[:, -3:], last)


def test_gradients_beyond_two_to_the_31() -> None:
    documents = torch.empty(66_000, 256, 128, dtype=torch.bfloat16, device="cuda").normal_().requires_grad_()
    queries = embeddings(1, 32, 128, dtype=torch.bfloat16).requires_grad_()
    gradient = torch.autograd.grad(maxsim(queries, documents)[0, -1], documents)[0]
    expected = documents[-1:].detach().requires_grad_()
    alone = torch.autograd.grad(maxsim(queries, expected)[0, 0], expected)[0]
    assert torch.equal(gradient[-1], alone[0])
    assert not gradient[:-1].any()


@pytest.mark.parametrize("layout", LAYOUTS, ids=by_name)
def test_two_runs_agree_to_the_bit(kernel: Any, layout: Layout) -> None:
    problem = random_problem(layout, queries=31, documents=37, query_length=32, document_length=200, dim=128,
                             dtype=torch.bfloat16, device="cuda")  # fmt: skip
    runs = []
    for _ in range(2):
        scores, winners = kernel.forward(problem, True)
        runs.append((scores, *kernel.backward(problem, torch.sin(scores), winners, True, True)))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_strides_do_not_matter(kernel: Any) -> None:
    problem = random_problem(Layout.CROSS, queries=5, documents=6, dim=64, dtype=torch.bfloat16, device="cuda")
    strided = replace(
        problem,
        queries=problem.queries.transpose(0, 1).contiguous().transpose(0, 1),
        documents=torch.cat([problem.documents, problem.documents], -1)[..., :64],
    )
    assert not strided.documents.is_contiguous()
    check_kernel(kernel, strided)


def test_nan_and_infinity_propagate() -> None:
    queries, documents = embeddings(2, 8, 64).abs(), embeddings(4, 70, 64).abs()
    documents[1, 66, 3] = torch.nan
    documents[2, 5] = torch.inf
    documents[3] = -torch.inf
    scores = maxsim(queries, documents)
    assert scores[:, 0].isfinite().all()
    assert scores[:, 1].isnan().all()
    assert (scores[:, 2] == torch.inf).all()
    assert (scores[:, 3] == -torch.inf).all()


def test_float64_runs_in_float64() -> None:
    queries, documents = embeddings(3, 8, 32).double(), embeddings(5, 20, 32).double()
    everything = torch.ones(5, 20, device="cuda")
    torch.testing.assert_close(maxsim(queries, documents), grid(queries, documents, everything), rtol=0, atol=1e-12)
    assert explain_maxsim(queries, documents).kernel.name != "triton"


def test_a_cuda_graph_replays_it() -> None:
    queries, documents = (embeddings(16, 32, 128, dtype=torch.bfloat16) for _ in range(2))
    maxsim(queries, documents)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scores = maxsim(queries, documents)
    documents.copy_(embeddings(16, 32, 128, dtype=torch.bfloat16))
    graph.replay()
    assert torch.equal(scores, maxsim(queries, documents))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
def test_it_compiles_into_one_graph_with_its_gradient() -> None:
    def loss(queries: Tensor, documents: Tensor) -> Tensor:
        scores = maxsim(queries * 2, documents, out_dtype=torch.float32)
        return cross_entropy(scores, torch.arange(8, device="cuda"))

    compiled = torch.compile(loss, fullgraph=True)
    leaves = embeddings(8, 32, 128).requires_grad_(), embeddings(8, 60, 128).requires_grad_()
    eager, traced = loss(*leaves), compiled(*leaves)
    torch.testing.assert_close(eager, traced)
    for one, other in zip(torch.autograd.grad(eager, leaves), torch.autograd.grad(traced, leaves), strict=True):
        torch.testing.assert_close(one, other)


def test_opcheck() -> None:
    queries, documents = embeddings(3, 8, 32).requires_grad_(), embeddings(4, 20, 32).requires_grad_()
    mask = torch.rand(4, 20, device="cuda") < 0.7
    torch.library.opcheck(maxsim_op, (queries, documents, None, mask, None, "ZERO", 0.0, 0.0, torch.float32, True))


def test_packed_documents_score_as_padded_ones() -> None:
    lengths = torch.randint(1, 200, (50,))
    documents = [embeddings(int(length), 128, dtype=torch.bfloat16) for length in lengths]
    queries = embeddings(4, 32, 128, dtype=torch.bfloat16)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).cuda()
    packed = maxsim_packed(queries.flatten(0, 1), torch.cat(documents), torch.arange(5, device="cuda") * 32, offsets)
    padded = torch.nn.utils.rnn.pad_sequence(documents, batch_first=True)
    assert torch.equal(packed, maxsim(queries, padded, document_lengths=lengths.cuda()))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_tensors_device_decides_not_the_current_one() -> None:
    queries, documents = embeddings(3, 8, 64).to("cuda:1"), embeddings(4, 20, 64).to("cuda:1")
    assert torch.equal(maxsim(queries, documents).cpu(), maxsim(queries.to("cuda:0"), documents.to("cuda:0")).cpu())
