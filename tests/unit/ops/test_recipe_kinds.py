"""Which calls are of one kind, which kinds are remembered, and what makes them be forgotten."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recorded_calls import Adds, Call, copied, drawn
from torch import Tensor

from li_plugins import api
from li_plugins.ops import maxsim, recipes, smooth_maxsim


def test_forgetting_reaches_what_follows(adds: Adds) -> None:
    call, first = Call(adds), drawn()
    for _ in range(3):
        call(first, None)
    kind = recipes.kind((first, None), "adds")
    assert kind is not None
    assert kind.recipe is not None
    after = recipes.kind((first,), "backward", kinds=kind.kinds)
    assert after is not None
    assert after is not recipes.kind((first,), "backward")
    for _ in range(2):
        after.run((first,), lambda: copied(adds, first))
    assert after.recipe is not None
    recipes.forget()
    assert kind.recipe is None
    assert after.recipe is None
    call(first, None)
    assert call.count == 3
    # a graph may hold a kind for long: it begins anew each time
    for _ in range(2):
        for _ in range(2):
            assert after.recipe is None
            after.run((first,), lambda: copied(adds, first))
        assert after.recipe is not None
        recipes.forget()


def test_forgetting_reaches_what_is_being_recorded(adds: Adds) -> None:
    first = drawn()
    kind = recipes.kind((first,), "adds")
    assert kind is not None

    def long_way() -> tuple[Tensor]:
        recipes.forget()
        return copied(adds, first)

    kind._calls = recipes.RECORDED - 1
    kind.run((first,), long_way)
    assert kind.recipe is None


def test_kinds_without_a_recipe_are_forgotten_first(adds: Adds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "MOST", 3)
    call = Call(adds)
    for _ in range(3):
        call(drawn(4), None)
    for size in range(5, 25):
        call(drawn(size), None)
    count = call.count
    call(drawn(4), None)
    assert call.count == count
    assert len(recipes._kinds) == 3


def test_few_kinds_are_remembered(adds: Adds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "MOST", 3)
    kinds = [recipes.kind((drawn(size),), "adds") for size in range(1, 9)]
    assert None not in kinds
    assert len({id(kind) for kind in kinds}) == 8
    assert [recipes.kind((drawn(size),), "adds") for size in (6, 7, 8)] == kinds[-3:]
    assert recipes.kind((drawn(1),), "adds") is not kinds[0]


def test_saved_tensors_of_another_layout_make_another_backward(adds: Adds) -> None:
    queries, wide = drawn(24).view(2, 3, 4).requires_grad_(), drawn(120).view(3, 5, 8).requires_grad_()

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(maxsim(queries, wide[..., :4]).sum(), (queries, wide))

    expected = gradients()
    (kind,) = recipes._kinds.values()
    assert len(kind.kinds) == 1
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda kept: kept):
        assert all(map(torch.equal, gradients(), expected))
    assert len(kind.kinds) == 2


def test_a_plugin_that_comes_is_noticed(adds: Adds, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, documents = drawn(24).view(2, 3, 4), drawn(60).view(3, 5, 4)
    smooth_maxsim(queries, documents, tau=0.1)
    (kind,) = recipes._kinds.values()
    monkeypatch.setattr(api, "kernel_providers", [*api.kernel_providers, list])
    smooth_maxsim(queries, documents, tau=0.1)
    (anew,) = recipes._kinds.values()
    assert anew is not kind


class Subclass(Tensor):
    """Somebody's tensor."""


@pytest.mark.parametrize(
    "tensors",
    [
        ("text", None),
        (None, None),
        (drawn().as_subclass(Subclass), None),
        (drawn(), 1),
        (drawn().to_sparse(), None),
        (drawn(), drawn().to_sparse()),
    ],
    ids=["text", "nothing", "a subclass", "a number", "sparse", "sparse second"],
)
def test_what_is_no_plain_tensor_has_no_kind(adds: Adds, tensors: Any) -> None:
    assert recipes.kind(tensors, "adds") is None


def test_what_has_no_hash_has_no_kind(adds: Adds) -> None:
    assert recipes.kind((drawn(),), "adds", []) is None


def test_who_looks_at_ops_sees_them(adds: Adds) -> None:
    first = drawn()
    assert recipes.kind((first,), "adds") is not None
    with torch.profiler.profile():
        assert recipes.kind((first,), "adds") is None
    with torch.autograd.forward_ad.dual_level():
        assert recipes.kind((first,), "adds") is None
    found = []
    torch.func.vmap(lambda row: found.append(recipes.kind((first,), "adds")) or row)(torch.ones(2))
    assert found == [None]


def test_on_the_cpu_there_are_no_kinds() -> None:
    assert recipes.kind((drawn(),), "adds") is None
