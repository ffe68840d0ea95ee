"""XTR's MaxSim against its definition in float64, token by token, and what torch demands of an op."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from li_plugins.errors import BadInput
from li_plugins.ops import MaskRule, XtrRule, dispatch, explain_xtr_maxsim, maxsim, supports_xtr_maxsim, xtr_maxsim
from li_plugins.ops.xtr_maxsim import blocked
from li_plugins.ops.xtr_maxsim.greatest import greatest
from li_plugins.testing.oracle import judge

CROSS, CANDIDATES = (5, 7, 6), (3, 4, 7, 6)
"""Shapes of documents for queries ``[3, 4, 6]``."""
RULES = [XtrRule.RETRIEVED, XtrRule.POSITIVE]


@pytest.fixture(params=["blocked", "reference"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LI_PLUGINS_BACKEND", request.param)
    monkeypatch.setattr(blocked, "TILE_ELEMENTS", {"cpu": 60})  # several tiles, some within a query
    monkeypatch.setattr(blocked, "LEAST_ROWS", 2)
    return request.param


@pytest.fixture(params=RULES, ids=lambda rule: rule.name)
def xtr_rule(request: pytest.FixtureRequest) -> XtrRule:
    return request.param


@pytest.fixture(params=[CROSS, CANDIDATES], ids=["cross", "candidates"])
def shape(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return request.param


def some(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def definition(
    queries: Tensor,
    documents: Tensor,
    *,
    k: int,
    xtr_rule: XtrRule,
    query_weights: Tensor | None = None,
    document_mask: Tensor | None = None,
    mask_rule: MaskRule = MaskRule.NONE,
) -> Tensor:
    """Score as the papers say, one query token after the other."""
    leading = documents.shape[:-2]
    keep = torch.ones(documents.shape[:-1], dtype=torch.bool) if document_mask is None else document_mask != 0
    fill = mask_rule.fill if mask_rule.name == "FILL" else -math.inf
    scores = queries.new_zeros(queries.shape[0], leading[-1])
    for a, query in enumerate(queries):
        own = slice(None) if len(leading) == 1 else a
        sums, counts = queries.new_zeros(leading[-1]), queries.new_zeros(leading[-1])
        for i, token in enumerate(query):
            similarities = torch.where(keep, documents @ token, fill)
            retrieved = torch.zeros(keep.numel(), dtype=torch.bool)
            retrieved[similarities.flatten().topk(k).indices] = True
            retrieved = retrieved.view(keep.shape)
            if mask_rule.name == "EXCLUDE":
                retrieved = retrieved & keep
            weight = 1.0 if query_weights is None else query_weights[a, i]
            for column, (values, found) in enumerate(zip(similarities[own], retrieved[own], strict=True)):
                if xtr_rule.name == "POSITIVE":
                    best = torch.where(found, values, 0.0).max(0).values * weight
                    counts[column] += best.detach() > 0
                elif found.any():
                    best = torch.where(found, values, -math.inf).max(0).values * weight
                    counts[column] += bool(weight)
                else:
                    continue
                sums[column] = sums[column] + best
        scores[a] = sums / counts.clamp(min=xtr_rule.least_count)
        if mask_rule.name == "EXCLUDE":
            scores[a] = scores[a].masked_fill(~keep[own].any(-1), mask_rule.empty_score)
    return scores + 0 * (queries.sum() + documents.sum())  # a gradient, of zeros where nothing wins


def outcome(function: Any, queries: Tensor, documents: Tensor, **keywords: Any) -> list[Tensor]:
    """Return the scores and both gradients of a weighting of them."""
    queries, documents = queries.clone().requires_grad_(), documents.clone().requires_grad_()
    scores = function(queries, documents, **keywords)
    weights = torch.linspace(-1, 2, scores.numel(), dtype=torch.float64).view(scores.shape).to(scores)
    (scores * weights).sum().backward()
    return [scores.detach(), queries.grad, documents.grad]


def agree(found: list[Tensor], expected: list[Tensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11, equal_nan=True)


def drawn(seed: int, *, coarse: bool) -> tuple[list[Tensor], dict[str, Any]]:
    """Return float64 embeddings and keywords; ``coarse`` embeddings are -1, 0 or 1, so that many similarities tie."""
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    rows, columns, length, tokens, width = (choose.choice([1, 2, 3, 5]) for _ in range(5))
    leading = choose.choice([(columns,), (rows, columns)])
    shapes = (rows, length, width), (*leading, tokens, width)
    if coarse:
        embeddings = [torch.randint(-1, 2, shape, generator=generator).double() for shape in shapes]
    else:
        embeddings = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    rule = choose.choice([MaskRule.NONE, MaskRule.EXCLUDE, MaskRule.FILL(-99.0), MaskRule.FILL(0.0)])
    kept = torch.rand(shapes[1][:-1], generator=generator) < 0.6
    weights = torch.randn(shapes[0][:-1], generator=generator)
    return embeddings, {
        "k": choose.randint(1, kept.numel()),
        "xtr_rule": choose.choice(RULES),
        "mask_rule": rule,
        "document_mask": None if rule is MaskRule.NONE else choose.choice([None, kept, kept.float() / 3]),
        "query_weights": choose.choice([None, weights.double(), weights > 0, (weights > 0).long()]),
    }


# The definition


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.usefixtures("kernel")
def test_any_arguments(seed: int) -> None:
    embeddings, keywords = drawn(seed, coarse=False)
    agree(outcome(xtr_maxsim, *embeddings, **keywords), outcome(definition, *embeddings, **keywords))


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.usefixtures("kernel")
def test_equal_similarities_are_retrieved_as_topk_does_and_the_first_wins(seed: int) -> None:
    """Zeros included, among which a token that was not retrieved wins under POSITIVE if it is the first."""
    embeddings, keywords = drawn(seed, coarse=True)
    agree(outcome(xtr_maxsim, *embeddings, **keywords), outcome(definition, *embeddings, **keywords))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("k", [1, 9, 33])
def test_dtypes(kernel: str, shape: tuple[int, ...], xtr_rule: XtrRule, k: int, dtype: torch.dtype) -> None:
    queries, documents = some(3, 4, 6, dtype=dtype), some(*shape, seed=1, dtype=dtype)
    keywords: dict[str, Any] = {"k": k, "xtr_rule": xtr_rule}
    ours = outcome(xtr_maxsim, queries, documents, **keywords)
    exact = outcome(definition, queries.double(), documents.double(), **keywords)
    for mine, truth, name in zip(ours, exact, ("scores", "queries", "documents"), strict=True):
        assert (mine.dtype, mine.shape) == (dtype, truth.shape)
        verdict = judge(mine, truth, magnitude=4 * truth.abs().max().item(), name=name)
        assert verdict, verdict
    assert dispatch.counters()["xtr_maxsim", kernel] == 1
    assert dispatch.counters()["xtr_maxsim backward", kernel] == 1


def test_some_tiles_at_a_time(xtr_rule: XtrRule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "TILE_ELEMENTS", {"cpu": 4000})  # 25 query tokens' winners, 4 query tokens' products
    monkeypatch.setattr(blocked, "LEAST_ROWS", 2)
    queries, documents = some(10, 4, 6, dtype=torch.float64), some(16, 60, 6, seed=1, dtype=torch.float64)
    keywords: dict[str, Any] = {"k": 4, "xtr_rule": xtr_rule}
    agree(outcome(xtr_maxsim, queries, documents, **keywords), outcome(definition, queries, documents, **keywords))


@pytest.mark.parametrize("k", [1, 11, 35])
@pytest.mark.usefixtures("kernel")
def test_gradcheck(shape: tuple[int, ...], xtr_rule: XtrRule, k: int) -> None:
    leaves = some(3, 4, 6, dtype=torch.float64).requires_grad_(), some(*shape, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda *both: xtr_maxsim(*both, k=k, xtr_rule=xtr_rule), leaves)


@pytest.mark.usefixtures("kernel")
def test_all_tokens_retrieved_is_the_mean_of_maxima(xtr_rule: XtrRule) -> None:
    queries, documents = some(3, 4, 6).abs(), some(*CROSS, seed=1).abs()
    torch.testing.assert_close(xtr_maxsim(queries, documents, k=35, xtr_rule=xtr_rule), maxsim(queries, documents) / 4)


@pytest.mark.usefixtures("kernel")
def test_a_document_without_retrieved_tokens_scores_zero_and_gets_no_gradient(xtr_rule: XtrRule) -> None:
    queries, documents = torch.ones(2, 3, 4), torch.ones(3, 5, 4)
    documents[1] = 0.5
    scores, _, grad_documents = outcome(xtr_maxsim, queries, documents, k=6, xtr_rule=xtr_rule)
    assert scores[:, 1].tolist() == [0, 0]
    assert not grad_documents[1].any()
    assert scores[:, 0].tolist() == [4, 4]


@pytest.mark.usefixtures("kernel")
def test_the_pool_of_candidates_is_that_of_all_queries() -> None:
    queries, documents = torch.ones(2, 1, 1), torch.tensor([[[[1.0], [2.0]]], [[[3.0], [4.0]]]])
    assert xtr_maxsim(queries, documents, k=2).tolist() == [[0], [4]]
    assert xtr_maxsim(queries, documents, k=3).tolist() == [[2], [4]]


# Masks


@pytest.mark.usefixtures("kernel")
def test_excluded_tokens_come_last_and_count_for_nothing(xtr_rule: XtrRule) -> None:
    queries, documents = torch.ones(1, 2, 4), -torch.ones(3, 2, 4)
    mask = torch.tensor([[True, False], [False, False], [True, True]])
    scores = xtr_maxsim(queries, documents, k=6, xtr_rule=xtr_rule, document_mask=mask, mask_rule=MaskRule.EXCLUDE)[
        0
    ].tolist()
    assert scores[1] == -1e9
    if xtr_rule is XtrRule.RETRIEVED:
        assert scores == [-4, -1e9, -4]
    else:
        assert scores[0] == 0  # its masked token was not retrieved, so that it stands for a 0
        assert scores[2] == pytest.approx(-8000)


@pytest.mark.usefixtures("kernel")
def test_filled_tokens_that_win_pass_no_gradient(xtr_rule: XtrRule) -> None:
    keywords: dict[str, Any] = {"document_mask": torch.tensor([[0, 1], [1, 1]]), "mask_rule": MaskRule.FILL(7.0)}
    scores, grad_queries, grad_documents = outcome(
        xtr_maxsim, torch.ones(1, 1, 1), torch.ones(2, 2, 1), k=1, xtr_rule=xtr_rule, **keywords
    )
    assert scores.tolist() == [[7, 0]]
    assert not grad_queries.any()
    assert not grad_documents.any()


# What tensors can hold


@pytest.mark.usefixtures("kernel")
def test_nan_is_retrieved_first(xtr_rule: XtrRule) -> None:
    queries, documents = some(2, 3, 4), some(3, 5, 4, seed=1)
    documents[1, 2, 0] = math.nan
    scores = xtr_maxsim(queries, documents, k=4, xtr_rule=xtr_rule)
    assert scores.isnan().tolist() == [[False, True, False]] * 2
    assert outcome(xtr_maxsim, queries, documents, k=4, xtr_rule=xtr_rule)[1].isnan().any(-1).all()


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.usefixtures("kernel")
def test_a_gradient_on_one_side_only(side: int, shape: tuple[int, ...], xtr_rule: XtrRule) -> None:
    leaves = [some(3, 4, 6, dtype=torch.float64), some(*shape, seed=1, dtype=torch.float64)]
    expected = outcome(definition, *leaves, k=9, xtr_rule=xtr_rule)
    leaves[side].requires_grad_()
    scores = xtr_maxsim(*leaves, k=9, xtr_rule=xtr_rule)
    (scores * torch.linspace(-1, 2, scores.numel(), dtype=torch.float64).view(scores.shape)).sum().backward()
    torch.testing.assert_close(leaves[side].grad, expected[1 + side])
    assert leaves[1 - side].grad is None


@pytest.mark.usefixtures("kernel")
def test_strided_inputs_and_no_query(xtr_rule: XtrRule) -> None:
    queries = some(4, 3, 6, dtype=torch.float64).transpose(0, 1)
    documents = some(7, 5, 6, seed=1, dtype=torch.float64).transpose(0, 1)
    keywords: dict[str, Any] = {"k": 9, "xtr_rule": xtr_rule}
    agree(outcome(xtr_maxsim, queries, documents, **keywords), outcome(definition, queries, documents, **keywords))
    assert xtr_maxsim(queries[:0], documents, **keywords).shape == (0, 5)
    assert xtr_maxsim(queries[:, :0], documents, **keywords).tolist() == [[0] * 5] * 3
    assert xtr_maxsim(queries[:, :0].requires_grad_(), documents, **keywords).sum().backward() is None


@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16])
def test_autocast_lowers_nothing_within(lowered: torch.dtype) -> None:
    queries, documents = some(3, 4, 6), some(*CROSS, seed=1)
    expected = xtr_maxsim(queries, documents, k=9)
    with torch.autocast("cpu", dtype=lowered):
        assert torch.equal(xtr_maxsim(queries, documents, k=9), expected)


# The k greatest


@pytest.mark.parametrize("seed", range(40))
def test_greatest_takes_what_topk_takes(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    k, times = int(torch.randint(1, 9, (), generator=generator)), int(torch.randint(1, 90, (), generator=generator))
    count = k * times + seed % k
    plain = torch.randn(4, count, generator=generator)
    several_nan = plain.where(torch.rand(4, count, generator=generator) > 0.1, math.nan)
    for rows in (plain, plain.round(), torch.zeros_like(plain), several_nan, plain.where(plain > 1, -math.inf)):
        values, places = greatest(rows.split(3), count, k)
        assert torch.equal(places.sort(1).values, rows.topk(k, sorted=False).indices.sort(1).values)
        torch.testing.assert_close(values, rows.gather(1, places), rtol=0, atol=0, equal_nan=True)


# What torch and users see


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch 2.15's own opcheck looks at it
def test_opcheck(shape: tuple[int, ...], xtr_rule: XtrRule) -> None:
    queries, documents = some(3, 4, 6).requires_grad_(), some(*shape).requires_grad_()
    weights, mask = torch.rand(3, 4), torch.rand(shape[:-1]) < 0.6
    for factors in ((None, None), (weights, mask)):
        arguments = (queries, documents, *factors, 9, xtr_rule.name, 1.0, "EXCLUDE", 0.0, -1e9, torch.float32, True)
        torch.library.opcheck(torch.ops.li_plugins.xtr_maxsim.default, arguments)


def test_compiles_into_one_graph(xtr_rule: XtrRule) -> None:
    queries, documents = some(3, 4, 6), some(*CROSS, seed=1)

    def twice(*both: Tensor) -> Tensor:
        return xtr_maxsim(*both, k=min(9, both[1].shape[0] * both[1].shape[1]), xtr_rule=xtr_rule) * 2

    expected = [2 * xtr_maxsim(queries, documents, k=9, xtr_rule=xtr_rule), twice(queries, documents[:1])]
    for dynamic in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(twice, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        torch.testing.assert_close([compiled(queries, documents), compiled(queries, documents[:1])], expected)


def test_a_second_derivative_is_refused() -> None:
    queries, documents = some(3, 4, 6).requires_grad_(), some(*CROSS, seed=1).requires_grad_()
    scores = xtr_maxsim(queries, documents, k=9)
    (grad,) = torch.autograd.grad(scores.sum(), queries, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("documents", "keywords", "complaint"),
    [
        ((2, 3, 5), {}, "one width"),
        ((2, 3), {}, r"\[B, Ld, d\]"),
        ((2, 3, 4), {"k": 0}, "between 1 and the number of document tokens, 6"),
        ((2, 3, 4), {"k": 7}, "between 1 and the number of document tokens, 6"),
        ((2, 2, 3, 4), {"k": 13}, "between 1 and the number of document tokens, 12"),
        ((0, 3, 4), {"k": 1}, "number of document tokens, 0"),
        ((2, 3, 4), {"k": True}, "k is a number of tokens"),
        ((2, 3, 4), {"k": 2.0}, "k is a number of tokens"),
        ((2, 3, 4), {"xtr_rule": "RETRIEVED"}, "xtr_rule is an XtrRule"),
        ((2, 3, 4), {"mask_rule": MaskRule.ZERO}, "NONE, EXCLUDE or FILL"),
        ((2, 3, 4), {"document_mask": torch.ones(2, 3)}, "mask_rule"),
        ((2, 3, 4), {"query_weights": torch.ones(2, 4)}, "one entry per token"),
    ],
)
def test_bad_input(documents: tuple[int, ...], keywords: dict[str, Any], complaint: str) -> None:
    arguments = {"k": 1, **keywords}
    with pytest.raises(BadInput, match=complaint):
        xtr_maxsim(some(2, 3, 4), some(*documents), **arguments)
    support = supports_xtr_maxsim(some(2, 3, 4), some(*documents), **arguments)
    assert not support
    assert support.reason


def test_explains() -> None:
    assert "xtr_maxsim (scores)" in str(explain_xtr_maxsim(some(2, 3, 4), some(2, 3, 4), k=2))
    assert supports_xtr_maxsim(some(2, 3, 4), some(2, 3, 4), k=2)
