"""Random problems against MaxSim as one reads it in the documentation, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.multi_vector_encoder import scoring
from sentence_transformers.util import similarity
from torch import Tensor

from li_plugins.testing.oracle import judge
from li_plugins.testing.parity import ROUNDINGS, call_unpatched, largest

pytestmark = pytest.mark.filterwarnings("ignore:.*differing executors.*")

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
EMPTY = -1e9


def score(query: Tensor, weights: Tensor, document: Tensor, mask: Tensor) -> Tensor:
    """Return the MaxSim of one query ``[Lq, d]`` and one document ``[Ld, d]`` in float64."""
    tokens = document.double()[mask.bool()]
    if not len(tokens):
        return torch.tensor(EMPTY, dtype=torch.float64)
    return ((query.double() @ tokens.T).max(-1).values * weights.double()).sum()


def cross(queries: Any, weights: Any, documents: Any, masks: Any) -> Tensor:
    """Return ``[A, B]``."""
    rows = [
        [score(query, weight, document, mask) for document, mask in zip(documents, masks, strict=True)]
        for query, weight in zip(queries, weights, strict=True)
    ]
    return torch.stack([torch.stack(row) for row in rows])


def summands(queries: Any, documents: Any) -> float:
    """Return the most that the absolute products of one score add up to: what its rounding is relative to."""
    tokens = torch.cat([document.double().abs() for document in documents])
    return max(largest((query.double().abs() @ tokens.T).amax(-1).sum()) for query in queries if len(query))


def right(found: Tensor, library: Tensor, truth: Tensor, size: float) -> None:
    assert found.dtype is library.dtype
    verdict = judge(found, truth, library, magnitude=ROUNDINGS * size)
    assert verdict, verdict


@st.composite
def problems(draw: st.DrawFn, *, may_tie: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw queries, weights, documents and masks: padded, some without a token, some with negative products only."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from(DTYPES))
    count, texts = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    query_tokens, tokens = draw(st.integers(1, 9)), draw(st.integers(1, 40))
    width = draw(st.sampled_from([2, 3, 8, 16, 63]))
    queries = torch.randn(count, query_tokens, width, generator=generator)
    documents = torch.randn(texts, tokens, width, generator=generator)
    if draw(st.booleans()):
        queries, documents = queries.abs(), -documents.abs()
    if may_tie and draw(st.booleans()):
        documents = documents[:, torch.randint(tokens, (tokens,), generator=generator)]
    share = draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    mask = torch.rand(texts, tokens, generator=generator) < share
    weights = torch.rand(count, query_tokens, generator=generator)
    weights = weights.round() if draw(st.booleans()) else weights
    return queries.to(dtype), weights.to(dtype), documents.to(dtype), mask


@settings(max_examples=60)
@given(problems())
def test_padded_batches(problem: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    queries, weights, documents, mask = problem
    truth = cross(queries, weights, documents, mask)
    size = summands(queries, documents)
    arguments = queries, documents, weights, mask
    right(similarity.maxsim(*arguments), call_unpatched(similarity.maxsim, *arguments), truth, size)
    stacked = torch.stack([documents] * len(queries)), torch.stack([mask] * len(queries))
    arguments = queries, stacked[0], weights, stacked[1]
    for function, expected in (
        (scoring.colbert_kd_scores, truth),
        (scoring.colbert_scores, truth.repeat(1, len(queries))),
    ):
        right(function(*arguments), call_unpatched(function, *arguments), expected, size)


@settings(max_examples=60)
@given(problems(), st.integers(1, 3000))
def test_ragged_lists(problem: tuple[Tensor, Tensor, Tensor, Tensor], budget: int) -> None:
    queries, weights, documents, mask = problem
    texts = [document[chosen] for document, chosen in zip(documents, mask, strict=True)]
    asked = [query[weight > 0.5] for query, weight in zip(queries, weights, strict=True)]
    if not (any(map(len, texts)) and any(map(len, asked))):
        return  # the library's own constant; see test_st_lists
    everything = [[torch.ones(len(text)) for text in side] for side in (asked, texts)]
    truth = cross(asked, everything[0], texts, everything[1])
    budget += sum(query.numel() for query in asked)
    size = summands(asked, texts)
    ours = similarity.maxsim(asked, texts, chunk_elements=budget)
    right(ours, call_unpatched(similarity.maxsim, asked, texts), truth, size)
    count = min(len(asked), len(texts))
    if any(map(len, texts[:count])) and any(map(len, asked[:count])):
        pairs = asked[:count], texts[:count]
        ours = similarity.maxsim_pairwise(*pairs, chunk_elements=budget)
        right(ours, call_unpatched(similarity.maxsim_pairwise, *pairs), truth[:count, :count].diagonal(), size)


@settings(max_examples=30)
@given(problems(may_tie=False))
def test_gradients(problem: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """In float64, where rounding decides no maximum: products of equal tokens may differ in the last bit."""
    queries, weights, documents, mask = problem

    def gradients(function: Any, *arguments: Any) -> tuple[Tensor, ...]:
        leaves = [side.double().requires_grad_() for side in (queries, documents)]
        scores = function(leaves[0], leaves[1], *arguments)
        scale = torch.linspace(-1, 1, scores.numel(), dtype=torch.float64).view(scores.shape).to(scores.dtype)
        return torch.autograd.grad((scores * scale).sum(), leaves)

    arguments = weights.double(), mask
    ours = gradients(similarity.maxsim, *arguments)
    library = call_unpatched(lambda: gradients(similarity.maxsim, *arguments))
    for found, expected in zip(ours, library, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
