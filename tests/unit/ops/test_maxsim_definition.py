"""Scores and gradients of both public functions against the definition, pair by pair, in float64."""

from __future__ import annotations

from typing import Any

import drawn
import obvious
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from li_plugins.ops import MaskRule, maxsim, maxsim_packed
from li_plugins.ops.maxsim import cpu, gather, kept

SIZES = [1, 2, 3, 5, 8]
EMPTY = [0, 0, 1, 3]


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes of blocks as they are, and so small that every loop turns several times."""
    if request.param == "many blocks":
        shrink(monkeypatch)


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "TILE_ELEMENTS", 100)
    monkeypatch.setattr(cpu, "TILE_ROWS", 7)
    monkeypatch.setattr(cpu, "SCORED_TOKENS", 1)
    monkeypatch.setattr(cpu, "SCORED_ROWS", 128)
    monkeypatch.setattr(cpu, "PANEL_ROWS", 9)
    monkeypatch.setattr(gather, "ENTRIES", 12)
    monkeypatch.setattr(kept, "SCANNED", 1)


def compare(tensors: list[Tensor], keywords: dict[str, Any]) -> None:
    """Compare scores and both gradients with the definition's."""
    packed = len(tensors) > 2
    leaves = [tensor.clone().requires_grad_() for tensor in tensors[:2]]
    truths = [tensor.clone().requires_grad_() for tensor in tensors[:2]]
    scores = (maxsim_packed if packed else maxsim)(*leaves, *tensors[2:], **keywords)
    expected = (obvious.maxsim_packed if packed else obvious.maxsim)(*truths, *tensors[2:], **keywords)
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-10)
    with torch.no_grad():  # another path: no winners, and zero rows are left out
        torch.testing.assert_close(
            (maxsim_packed if packed else maxsim)(*tensors, **keywords), expected, rtol=1e-10, atol=1e-10
        )
    grad = torch.linspace(-1, 1, max(1, expected.numel()), dtype=torch.float64)[: expected.numel()].view_as(expected)
    scores.backward(grad)
    # nothing of the definition needs a gradient when every document is empty
    (expected + 0 * (truths[0].sum() + truths[1].sum())).backward(grad)
    for leaf, truth in zip(leaves, truths, strict=True):
        torch.testing.assert_close(leaf.grad, truth.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rule", obvious.RULES, ids=str)
@pytest.mark.parametrize("layout", drawn.LAYOUTS)
@pytest.mark.usefixtures("kernel", "blocks")
def test_random_problems(layout: str, rule: MaskRule) -> None:
    for seed in range(5):
        compare(*drawn.arguments(layout, rule, seed, SIZES))


@pytest.mark.parametrize("rule", obvious.RULES, ids=str)
@pytest.mark.parametrize("layout", drawn.LAYOUTS)
@pytest.mark.usefixtures("kernel", "blocks")
def test_ties_go_to_the_first_maximum(layout: str, rule: MaskRule) -> None:
    for seed in range(5):
        compare(*drawn.arguments(layout, rule, seed, SIZES, width=2, coarse=True))


@pytest.mark.parametrize("rule", obvious.RULES, ids=str)
@pytest.mark.parametrize("layout", drawn.LAYOUTS)
@pytest.mark.usefixtures("kernel")
def test_empty_dimensions(layout: str, rule: MaskRule) -> None:
    for seed in range(12):
        compare(*drawn.arguments(layout, rule, seed, EMPTY))


@settings(max_examples=30)
@given(
    layout=st.sampled_from(drawn.LAYOUTS),
    rule=st.sampled_from(obvious.RULES),
    seed=st.integers(0, 2**20),
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=4),
    width=st.integers(1, 9),
    coarse=st.booleans(),
)
def test_drawn_shapes(layout: str, rule: MaskRule, seed: int, sizes: list[int], width: int, coarse: bool) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        shrink(monkeypatch)
        compare(*drawn.arguments(layout, rule, seed, sizes, width, coarse))


@pytest.mark.parametrize("lengths", [(1, 1), (63, 127), (127, 63), (2, 257), (257, 1), (32, 180)])
@pytest.mark.parametrize("rule", [MaskRule.NONE, MaskRule.ZERO, MaskRule.EXCLUDE], ids=str)
@pytest.mark.usefixtures("kernel")
def test_odd_lengths(lengths: tuple[int, int], rule: MaskRule) -> None:
    torch.manual_seed(0)
    queries, documents = torch.randn(2, lengths[0], 7).double(), torch.randn(3, lengths[1], 7).double()
    mask = None if rule is MaskRule.NONE else torch.rand(3, lengths[1]) < 0.5
    compare([queries, documents], {"document_mask": mask, "mask_rule": rule})


@pytest.mark.parametrize("rule", obvious.RULES[1:], ids=str)
@pytest.mark.usefixtures("kernel")
def test_documents_that_are_masked_altogether(rule: MaskRule) -> None:
    torch.manual_seed(0)
    queries, documents = torch.randn(2, 3, 4).double(), torch.randn(3, 5, 4).double()
    mask = torch.tensor([[0] * 5, [1] * 5, [0, 1, 0, 0, 1]])
    for weights in (None, torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 3.0]])):
        compare([queries, documents], {"document_mask": mask, "mask_rule": rule, "query_weights": weights})


@pytest.mark.parametrize("rule", obvious.RULES, ids=str)
@pytest.mark.usefixtures("kernel")
def test_similarities_that_are_all_negative(rule: MaskRule) -> None:
    torch.manual_seed(0)
    queries, documents = torch.rand(2, 3, 4).double(), -torch.rand(3, 5, 4).double()
    mask = None if rule is MaskRule.NONE else torch.rand(3, 5) < 0.7
    compare([queries, documents], {"document_mask": mask, "mask_rule": rule})


@pytest.mark.usefixtures("kernel")
def test_a_masked_token_wins_over_negative_similarities_under_zero() -> None:
    queries, documents = torch.ones(1, 2, 1), torch.tensor([[[-1.0], [-2.0], [-3.0]]])
    mask = torch.tensor([[True, False, True]])
    assert maxsim(queries, documents, document_mask=mask, mask_rule=MaskRule.ZERO).item() == 0
    assert maxsim(queries, documents, document_mask=mask, mask_rule=MaskRule.EXCLUDE).item() == -2
    assert maxsim(queries, documents, document_mask=mask, mask_rule=MaskRule.FILL(-1.5)).item() == -2
    assert maxsim(queries, documents).item() == -2


@pytest.mark.usefixtures("kernel")
def test_zero_rows_are_candidates_without_a_mask() -> None:
    torch.manual_seed(0)
    queries, documents = torch.randn(4, 3, 6).double(), torch.randn(5, 9, 6).double()
    for document, end in zip(documents, (9, 4, 0, 8, 1), strict=True):
        document[end:] = 0
    documents[3, 2] = 0
    with pytest.MonkeyPatch.context() as monkeypatch:
        shrink(monkeypatch)
        weights = torch.tensor([[1.0, -1.0, 2.0]]).expand(4, 3)
        compare([queries, documents], {"query_weights": weights})
