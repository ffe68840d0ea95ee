"""XTR's MaxSim on a CUDA device against its reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from li_plugins.ops import MaskRule, XtrRule, dispatch, xtr_maxsim
from li_plugins.ops.xtr_maxsim.greatest import greatest
from li_plugins.testing.oracle import judge

DEVICE = "cuda"
APART = 1e-6
"""Least difference between the last similarity that is retrieved and the next: less, and roundings choose the token."""

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; run by hand, see benchmarks/"),
]

RULES = [(XtrRule.RETRIEVED, MaskRule.EXCLUDE), (XtrRule.POSITIVE, MaskRule.FILL(torch.finfo(torch.float16).min))]
SHAPES = {"cross": (64, 180, 128), "candidates": (32, 8, 180, 128), "odd": (7, 63, 48)}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def embeddings(*shape: int, dtype: torch.dtype) -> Tensor:
    return normalize(torch.randn(*shape), dim=-1).to(dtype)


def drawn(shape: tuple[int, ...], k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return 32 queries, documents and a mask on the CPU, no two tokens of which a rounding could exchange."""
    documents, mask = embeddings(*shape, dtype=dtype), torch.rand(shape[:-1]) < 0.8
    queries = embeddings(32, 32, shape[-1], dtype=dtype)
    tokens = documents[mask].double()
    while True:
        best = (queries.double() @ tokens.T).topk(k + 1).values
        close = best[..., -2] - best[..., -1] < APART
        if not close.any():
            return queries, documents, mask
        queries[close] = embeddings(int(close.sum()), shape[-1], dtype=dtype)


def outcome(
    queries: Tensor, documents: Tensor, mask: Tensor, weights: Tensor, device: str, **keywords: Any
) -> list[Tensor]:
    """Return the scores and both gradients of a weighting of them."""
    leaves = [side.detach().to(device).requires_grad_() for side in (queries, documents)]
    scores = xtr_maxsim(*leaves, document_mask=mask.to(device), query_weights=weights.to(device), **keywords)
    (scores * torch.linspace(-1, 2, scores.numel()).view(scores.shape).to(scores)).sum().backward()
    return [scores.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(("xtr_rule", "mask_rule"), RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_and_gradients(
    shape: str, xtr_rule: XtrRule, mask_rule: MaskRule, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    k = 32 if shape == "odd" else 256
    queries, documents, mask = drawn(SHAPES[shape], k, dtype)
    weights = torch.rand(32, 32) + 0.5
    keywords: dict[str, Any] = {"k": k, "xtr_rule": xtr_rule, "mask_rule": mask_rule, "out_dtype": torch.float32}
    ours = outcome(queries, documents, mask, weights, DEVICE, **keywords)
    again = outcome(queries, documents, mask, weights, DEVICE, **keywords)
    monkeypatch.setenv("LI_PLUGINS_BACKEND", "reference")
    dispatch.reset()
    exact = outcome(queries.double(), documents.double(), mask, weights, "cpu", **{**keywords, "out_dtype": None})
    dispatch.reset()
    for mine, twice, truth, name in zip(ours, again, exact, ("scores", "queries", "documents"), strict=True):
        assert torch.equal(mine, twice), name
        verdict = judge(mine.cpu(), truth, magnitude=8 * truth.abs().max().item(), name=name)
        assert verdict, verdict


@pytest.mark.parametrize("count", [300, 5000, 76_801])
@pytest.mark.parametrize("ties", [False, True])
def test_greatest_are_the_k_greatest(ties: bool, count: int) -> None:
    rows = torch.randn(37, count)
    rows = (rows.round() if ties else rows).to(DEVICE)
    values, places = greatest(rows.split(30), count, 256)
    assert torch.equal(values, rows.gather(1, places))
    assert torch.equal(values.sort(1).values, rows.topk(256, sorted=False).values.sort(1).values)
    assert (places.sort(1).values.diff() > 0).all()


def test_a_large_batch_needs_no_grid() -> None:
    queries = embeddings(128, 32, 128, dtype=torch.bfloat16).to(DEVICE).requires_grad_()
    documents = embeddings(512, 300, 128, dtype=torch.bfloat16).to(DEVICE).requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    xtr_maxsim(queries, documents, k=256).sum().backward()
    grid = queries.shape[:2].numel() * documents.shape[:2].numel() * queries.element_size()
    assert torch.cuda.max_memory_allocated() - before < grid  # of which the library holds several
