"""Calls that are recorded and done again: what has a recipe, and that it does the same."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from recorded_calls import Adds, Call, drawn, expected, launch
from torch import Tensor

from li_plugins.ops import _compat, recipes
from li_plugins.ops.launch import Launcher, Options


def test_the_third_call_follows_the_recipe(adds: Adds) -> None:
    call = Call(adds)
    for number in range(5):
        first, second = drawn(), drawn()
        result, nothing = call(first, second)
        torch.testing.assert_close(result, expected(first, second))
        assert nothing is None
        assert call.count == min(number + 1, 2)
        assert call.tally == [number + 1], "a counter goes on"
    assert adds.launches == 10


def test_what_is_called_a_few_times_is_not_recorded(adds: Adds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "RECORDED", 5)
    recorders: list[Any] = []
    make = recipes._Recorder
    monkeypatch.setattr(recipes, "_Recorder", lambda inputs: recorders.append(make(inputs)) or recorders[-1])
    call = Call(adds)
    for number in range(4):
        for size in (3, 6, 9):
            call(drawn(size), None)
        assert (call.count, recorders) == (3 * number + 3, [])
    for _ in range(4):
        call(drawn(6), None)
    assert (call.count, len(recorders)) == (13, 1)


@pytest.mark.parametrize("is_chain", [False, True])
@pytest.mark.parametrize("name", ["launch_enter_hook", "launch_exit_hook"])
def test_who_watches_launches_is_told_of_each(
    adds: Adds, monkeypatch: pytest.MonkeyPatch, name: str, is_chain: bool
) -> None:
    call, first = Call(adds), drawn()
    for _ in range(4):
        call(first, None)
    assert adds.watched == 0
    hooks = _compat._launch_hooks()
    if is_chain:
        chain = getattr(hooks, name)
        if not hasattr(chain, "add"):
            pytest.skip("before triton 3.4 a hook is a function")
        monkeypatch.setattr(chain, "calls", [lambda *_: None])
    else:
        monkeypatch.setattr(hooks, name, lambda *_: None)
    torch.testing.assert_close(call(first, None)[0], expected(first, None))
    assert (adds.watched, call.count) == (2, 2)
    monkeypatch.undo()


def test_small_temporary_memory_is_one_block(adds: Adds, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def long_way(first: Tensor) -> tuple[Tensor | None, ...]:
        place = first.dtype, first.device
        parts = [recipes.empty(first.shape, *place) for _ in range(3)]
        large = recipes.empty((recipes.PART // 4 + 1,), *place)
        result = recipes.empty(first.shape, *place)
        steps = [first, parts[0], large, parts[1], parts[2], result]
        for number, (source, target) in enumerate(pairwise(steps)):
            launch(adds, (source, steps[0] if number else None, target), first.numel(), float(number))
        return (result,)

    def empty(shape: Any, **settings: Any) -> Tensor:
        memory = original(shape, **settings)
        asked.append(memory.nbytes)
        return memory

    original = torch.empty
    for number in range(5):
        first = drawn(200)
        if number == 4:
            monkeypatch.setattr(torch, "empty", empty)
        (result,) = recipes.run(recipes.kind((first,), "parts"), (first,), lambda given=first: long_way(given))
        torch.testing.assert_close(result, first * (1 + 1 + 2 + 3 + 4))
    # the recipe knows the function that it was recorded with; the block is asked for anew
    assert asked == [3 * 1024]


def test_results_are_new_memory_each_time(adds: Adds) -> None:
    call, first = Call(adds), drawn()
    results = [call(first, None)[0] for _ in range(5)]
    assert len({result.data_ptr() for result in results}) == 5
    for result in results:
        torch.testing.assert_close(result, expected(first, None))


@pytest.mark.parametrize(
    "other",
    [
        lambda first: (first[:4], None),
        lambda first: (first.repeat(2)[::2], None),
        lambda first: (first.clone().requires_grad_(), None),
        lambda first: (first, first.clone()),
        lambda first: (first, None, "plain"),
        lambda first: (first, None, 1.0),
    ],
    ids=["shape", "stride", "gradient", "a tensor more", "plain", "another plain"],
)
def test_what_makes_another_kind(adds: Adds, other: Any) -> None:
    call, first = Call(adds), drawn(8)
    for _ in range(3):
        call(first, None)
    assert call.count == 2
    call(*other(first))
    assert call.count == 3


def test_with_and_without_gradients_are_two_kinds(adds: Adds) -> None:
    call, first = Call(adds), drawn()
    for _ in range(3):
        call(first, None)
    with torch.no_grad():
        call(first, None)
    assert call.count == 3


def test_tensors_that_begin_unevenly_go_the_long_way(adds: Adds) -> None:
    call, first = Call(adds), drawn(8)
    for _ in range(3):
        call(first, None)
    kind = recipes.kind((first, None), "adds")
    assert kind is not None
    assert kind.recipe is not None
    uneven = torch.randn(12)[1:9]
    assert kind.recipe.again((uneven, None)) is None
    assert kind.recipe.again((first, None)) is not None


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (lambda first: first.relu(), "torch is asked for aten.relu"),
        (lambda first: first.add_(0.0), "torch is asked for aten.add_"),
        (lambda first: first[:].clone(), "torch is asked for aten.clone"),
        (lambda first: torch.empty_like(first).zero_(), "torch is asked for"),
        (lambda first: first * float(first.sum() > 0), "torch is asked for"),
    ],
    ids=["an op", "an op in place", "a copy", "memory of another origin", "a value"],
)
def test_calls_that_ask_for_more_have_no_recipe(adds: Adds, before: Any, reason: str) -> None:
    call, first = Call(adds, before), drawn()
    for _ in range(4):
        call(first, None)
    assert call.count == 4
    kind = recipes.kind((first, None), "adds")
    assert kind is not None
    assert kind.recipe is None
    assert reason in kind.reason


def test_views_of_a_tensor_are_the_tensor(adds: Adds) -> None:
    call = Call(adds, lambda first: first.view(-1))
    for _ in range(4):
        first = drawn()
        torch.testing.assert_close(call(first, None)[0], expected(first, None))
    assert call.count == 2


def test_one_tensor_given_twice_has_no_recipe(adds: Adds) -> None:
    call, first = Call(adds), drawn()
    for _ in range(3):
        torch.testing.assert_close(call(first, first)[0], expected(first, first))
    kind = recipes.kind((first, first), "adds")
    assert kind is not None
    assert kind.reason == "two tensors begin at one address"
    # the other way round it does no harm: what is read is read
    recipes.forget()
    for _ in range(3):
        call(first, drawn())
    torch.testing.assert_close(call(first, first)[0], expected(first, first))


def test_a_launch_through_triton_has_no_recipe(adds: Adds) -> None:
    class Function:
        def __getitem__(self, grid: tuple[int, int, int]) -> Any:
            return lambda first, second, target, size, number, **options: adds.compute(
                first.data_ptr(), None, target.data_ptr(), size, number
            )

    def long_way() -> tuple[Tensor]:
        target = recipes.empty(first.shape, first.dtype, first.device)
        Launcher(Function())((1, 1, 1), (first, None, target), (), (6,), (2.0,), (), Options(4, 1))
        return (target,)

    first = drawn()
    kind = recipes.kind((first,), "through triton")
    assert kind is not None
    for _ in range(3):
        assert torch.equal(recipes.run(kind, (first,), long_way)[0], first)
    assert "through Triton" in kind.reason


@pytest.mark.parametrize("origin", ["elsewhere", "within an input"])
def test_a_launch_on_a_tensor_of_unknown_origin_has_no_recipe(adds: Adds, origin: str) -> None:
    first = drawn(8)
    other = drawn(8) if origin == "elsewhere" else first[4:]

    def long_way() -> tuple[Tensor]:
        target = recipes.empty((4,), first.dtype, first.device)
        launch(adds, (first, other, target), 4, 1.0)
        return (target,)

    kind = recipes.kind((first,), "unknown")
    assert kind is not None
    for _ in range(3):
        torch.testing.assert_close(kind.run((first,), long_way)[0], first[:4] + other[:4])
    assert kind.recipe is None
    assert "unknown origin" in kind.reason


def test_a_result_that_no_launch_writes_has_no_recipe(adds: Adds) -> None:
    first = drawn()

    def long_way() -> tuple[Tensor]:
        target = recipes.empty(first.shape, first.dtype, first.device)
        adds.compute(first.data_ptr(), None, target.data_ptr(), 6, 0.0)
        return (target,)

    kind = recipes.kind((first,), "by other means")
    assert kind is not None
    for _ in range(4):
        assert torch.equal(kind.run((first,), long_way)[0], first)
    assert "something else than a launch" in kind.reason


def test_memory_that_a_tensor_changes_has_no_recipe(adds: Adds) -> None:
    first = drawn()

    def long_way() -> tuple[Tensor]:
        target = recipes.empty(first.shape, first.dtype, first.device)
        launch(adds, (first, None, target), 6, 0.0)
        recipes.in_place(Tensor.add_, target, first)
        return (target,)

    kind = recipes.kind((first,), "changed")
    assert kind is not None
    for _ in range(4):
        assert torch.equal(kind.run((first,), long_way)[0], 2 * first)
    assert "changed by a tensor" in kind.reason


def test_recorded_in_inference_mode(adds: Adds) -> None:
    call, first = Call(adds), drawn()
    with torch.inference_mode():
        for _ in range(3):
            assert call(first, None)[0].is_inference()
    with torch.no_grad():
        found = call(first, None)[0]
    assert call.count == 2
    assert not found.is_inference()


def test_what_fails_is_no_recipe(adds: Adds) -> None:
    first = drawn()
    kind = recipes.kind((first,), "fails")
    assert kind is not None

    def long_way() -> tuple[Tensor]:
        raise RuntimeError("no memory")

    for _ in range(3):
        with pytest.raises(RuntimeError, match="no memory"):
            kind.run((first,), long_way)
    assert kind.recipe is None
    recipes.empty((1,), torch.float32, first.device)  # nobody records any more
    assert recipes.run(kind, (first,), lambda: (first,)) == (first,)
