"""Smooth MaxSim against the formula in float64, its limit, and what torch demands of an op."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from li_plugins.errors import BadInput
from li_plugins.ops import dispatch, explain_smooth_maxsim, maxsim, smooth_maxsim, supports_smooth_maxsim
from li_plugins.ops.smooth_maxsim import blocked
from li_plugins.testing.oracle import judge

KERNELS = ("blocked", "reference")
CROSS, CANDIDATES = (5, 7, 6), (3, 4, 7, 6)
"""Shapes of documents for queries ``[3, 4, 6]``."""


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LI_PLUGINS_BACKEND", request.param)
    monkeypatch.setattr(blocked, "TILE_ELEMENTS", {"cpu": 100})  # several tiles each way
    return request.param


def some(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def formula(queries: Tensor, documents: Tensor, tau: float) -> Tensor:
    candidates = "bksd" if documents.dim() == 4 else "ksd"
    similarities = torch.einsum(f"bnd,{candidates}->bkns", queries, documents)
    return (tau * torch.logsumexp(similarities / tau, -1)).sum(-1)


def outcome(function, queries: Tensor, documents: Tensor, tau: float) -> list[Tensor]:
    """Return the scores and both gradients of a weighting of them."""
    queries, documents = queries.clone().requires_grad_(), documents.clone().requires_grad_()
    scores = function(queries, documents, tau=tau)
    weights = torch.linspace(-1, 2, scores.numel(), dtype=torch.float64).view(scores.shape).to(scores)
    (scores * weights).sum().backward()
    return [scores.detach(), queries.grad, documents.grad]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("tau", [0.05, 0.1, 3])
@pytest.mark.parametrize("shape", [CROSS, CANDIDATES], ids=["cross", "candidates"])
def test_scores_and_gradients(kernel: str, shape: tuple[int, ...], tau: float, dtype: torch.dtype) -> None:
    queries, documents = some(3, 4, 6, dtype=dtype), some(*shape, seed=1, dtype=dtype)
    ours = outcome(smooth_maxsim, queries, documents, tau)
    library = outcome(formula, queries, documents, tau)
    exact = outcome(formula, queries.double(), documents.double(), tau)
    for mine, theirs, truth, name in zip(ours, library, exact, ("scores", "queries", "documents"), strict=True):
        assert (mine.dtype, mine.shape) == (dtype, truth.shape)
        # e^(s / tau) turns a rounding of s into 1 / tau as many
        magnitude = (4 + 4 / tau) * truth.abs().max().item()
        verdict = judge(mine, truth, theirs, magnitude=magnitude, name=name)
        assert verdict, verdict
    assert dispatch.counters()["smooth_maxsim", kernel] == 1
    assert dispatch.counters()["smooth_maxsim backward", kernel] == 1


@settings(max_examples=60)
@given(data=st.data())
def test_any_shape(data: st.DataObject) -> None:
    size = st.integers(1, 6)
    rows, length, width, tokens = (data.draw(size) for _ in range(4))
    columns = data.draw(size)
    leading = data.draw(st.sampled_from([(columns,), (rows, columns)]))
    queries = some(rows, length, width, dtype=torch.float64)
    documents = some(*leading, tokens, width, seed=1, dtype=torch.float64)
    for mine, truth in zip(
        outcome(smooth_maxsim, queries, documents, 0.3), outcome(formula, queries, documents, 0.3), strict=True
    ):
        torch.testing.assert_close(mine, truth, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shape", [CROSS, CANDIDATES], ids=["cross", "candidates"])
@pytest.mark.usefixtures("kernel")
def test_gradcheck(shape: tuple[int, ...]) -> None:
    leaves = some(3, 4, 6, dtype=torch.float64).requires_grad_(), some(*shape, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda *both: smooth_maxsim(*both, tau=0.4), leaves)


@pytest.mark.usefixtures("kernel")
def test_a_small_tau_is_the_hard_maximum() -> None:
    queries, documents = some(3, 4, 6), some(*CROSS, seed=1)
    torch.testing.assert_close(smooth_maxsim(queries, documents, tau=1e-6), maxsim(queries, documents))


@pytest.mark.usefixtures("kernel")
def test_padding_counts() -> None:
    queries, documents = some(1, 2, 3), some(1, 4, 3, seed=1)
    padded = torch.nn.functional.pad(documents, (0, 0, 0, 2))
    torch.testing.assert_close(smooth_maxsim(queries, padded, tau=0.5), formula(queries, padded, 0.5))
    assert (smooth_maxsim(queries, padded, tau=0.5) > smooth_maxsim(queries, documents, tau=0.5)).all()


@pytest.mark.usefixtures("kernel")
def test_nan_stays_where_it_is() -> None:
    queries, documents = some(2, 3, 4), some(3, 5, 4, seed=1)
    documents[1, 2, 0] = math.nan
    scores = smooth_maxsim(queries, documents, tau=0.1)
    assert scores.isnan().tolist() == [[False, True, False]] * 2


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.usefixtures("kernel")
def test_a_gradient_on_one_side_only(side: int) -> None:
    leaves = [some(3, 4, 6), some(*CROSS, seed=1)]
    expected = outcome(formula, *leaves, 0.1)
    leaves[side].requires_grad_()
    scores = smooth_maxsim(*leaves, tau=0.1)
    (scores * torch.linspace(-1, 2, scores.numel()).view(scores.shape)).sum().backward()
    torch.testing.assert_close(leaves[side].grad, expected[1 + side])
    assert leaves[1 - side].grad is None


@pytest.mark.usefixtures("kernel")
def test_strided_inputs_and_no_query() -> None:
    queries, documents = some(4, 3, 6).transpose(0, 1), some(7, 5, 6, seed=1).transpose(0, 1)
    torch.testing.assert_close(smooth_maxsim(queries, documents, tau=0.1), formula(queries, documents, 0.1))
    assert smooth_maxsim(queries[:0], documents, tau=0.1).shape == (0, 5)
    assert smooth_maxsim(queries, documents[:0], tau=0.1).shape == (3, 0)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch 2.15's own opcheck looks at it
@pytest.mark.parametrize("shape", [CROSS, CANDIDATES], ids=["cross", "candidates"])
def test_opcheck(shape: tuple[int, ...]) -> None:
    queries, documents = some(3, 4, 6).requires_grad_(), some(*shape).requires_grad_()
    torch.library.opcheck(torch.ops.li_plugins.smooth_maxsim.default, (queries, documents, 0.1, torch.float32, True))


def test_compiles_into_one_graph() -> None:
    queries, documents = some(3, 4, 6), some(*CROSS, seed=1)
    compiled = torch.compile(lambda *both: smooth_maxsim(*both, tau=0.1) * 2, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(queries, documents), 2 * smooth_maxsim(queries, documents, tau=0.1))


@pytest.mark.parametrize(
    ("shape", "tau", "complaint"),
    [
        ((2, 3, 5), 0.1, "one width"),
        ((2, 3), 0.1, r"\[B, Ld, d\]"),
        ((2, 0, 4), 0.1, "at least one token"),
        ((2, 3, 4), 0, "tau is a positive number"),
        ((2, 3, 4), -1, "tau is a positive number"),
        ((2, 3, 4), math.inf, "tau is a positive number"),
    ],
)
def test_bad_input(shape: tuple[int, ...], tau: float, complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        smooth_maxsim(some(2, 3, 4), some(*shape), tau=tau)
    support = supports_smooth_maxsim(some(2, 3, 4), some(*shape), tau=tau)
    assert not support
    assert support.reason


def test_explains() -> None:
    assert "smooth_maxsim (scores)" in str(explain_smooth_maxsim(some(2, 3, 4), some(2, 3, 4), tau=0.1))
