"""Winners that are not kept: the same gradients to the bit, in groups, with every mask rule and under compile."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import Tensor

from li_plugins.ops import MaskRule, dispatch, maxsim

recompute = import_module("li_plugins.ops.maxsim.recompute")


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradients(rule: MaskRule, needs: tuple[bool, bool] = (True, True), call=maxsim) -> list[Tensor]:
    sides = [some(7, 5, 8), some(9, 6, 8, seed=1)]
    leaves = [side.requires_grad_(need) for side, need in zip(sides, needs, strict=True)]
    keywords = {}
    if rule.name != "NONE":
        keywords = {"document_mask": some(9, 6, seed=2) > 0, "query_weights": some(7, 5, seed=3)}
    scores = call(*leaves, mask_rule=rule, document_lengths=torch.tensor([6, 1, 6, 3, 2, 6, 6, 0, 5]), **keywords)
    return list(
        torch.autograd.grad((scores * some(7, 9, seed=4)).sum(), [leaf for leaf in leaves if leaf.requires_grad])
    )


@pytest.fixture
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    # 7 x 9 x 5 winners of two bytes: groups of two documents and of one query
    monkeypatch.setattr(recompute, "MOST_WINNERS", 600)


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("rule", [MaskRule.NONE, MaskRule.ZERO, MaskRule.EXCLUDE, MaskRule.FILL(-5.0)], ids=str)
def test_the_same_gradients_without_kept_winners(
    rule: MaskRule, needs: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = gradients(rule, needs)
    monkeypatch.setattr(recompute, "MOST_WINNERS", 600)
    before = dispatch.counters()
    found = gradients(rule, needs)
    passes = dispatch.counters() - before
    assert passes["maxsim", "blocked"] > 1, "nothing was computed again"
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.usefixtures("_nothing_kept")
def test_nothing_is_saved_but_what_came_in() -> None:
    saved: list[Tensor] = []
    queries, documents = some(7, 5, 8).requires_grad_(), some(9, 6, 8, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        maxsim(queries, documents)
    assert sum(tensor.numel() for tensor in saved) <= queries.numel() + documents.numel()


@pytest.mark.usefixtures("_nothing_kept")
def test_compiled_in_one_graph() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(maxsim, fullgraph=True, backend="aot_eager")
    found, expected = gradients(MaskRule.ZERO, call=compiled), gradients(MaskRule.ZERO)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_a_limit_that_is_no_number_leaves_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LI_PLUGINS_WINNERS", "1,5")
    with pytest.warns(RuntimeWarning, match="number of MiB; found '1,5'; 8192"):
        assert recompute._most_winners() == 2**33
    monkeypatch.setenv("LI_PLUGINS_WINNERS", "1.5")
    assert recompute._most_winners() == 1.5 * 2**20
