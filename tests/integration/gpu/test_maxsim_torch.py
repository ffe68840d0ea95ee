"""MaxSim on a CUDA device against torch's own grid: the error, huge inputs, determinism."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from li_plugins.ops import MaskRule, explain_maxsim, maxsim, maxsim_packed
from li_plugins.ops.maxsim.problem import Layout
from li_plugins.testing.maxsim_cases import LAYOUTS, random_problem
from li_plugins.testing.oracle import judge

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; run by hand, see benchmarks/"),
]

HALVES = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, *HALVES)


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


def test_float64_runs_in_float64() -> None:
    queries, documents = embeddings(3, 8, 32).double(), embeddings(5, 20, 32).double()
    everything = torch.ones(5, 20, device="cuda")
    torch.testing.assert_close(maxsim(queries, documents), grid(queries, documents, everything), rtol=0, atol=1e-12)
    assert explain_maxsim(queries, documents).kernel.name != "triton"


def test_packed_documents_score_as_padded_ones() -> None:
    lengths = torch.randint(1, 200, (50,))
    documents = [embeddings(int(length), 128, dtype=torch.bfloat16) for length in lengths]
    queries = embeddings(4, 32, 128, dtype=torch.bfloat16)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).cuda()
    packed = maxsim_packed(queries.flatten(0, 1), torch.cat(documents), torch.arange(5, device="cuda") * 32, offsets)
    padded = torch.nn.utils.rnn.pad_sequence(documents, batch_first=True)
    assert torch.equal(packed, maxsim(queries, padded, document_lengths=lengths.cuda()))
