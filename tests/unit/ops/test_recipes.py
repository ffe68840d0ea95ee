"""Calls that are recorded and done again; the kernel is a Python function that reads and writes at addresses."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from li_plugins import api
from li_plugins.ops import _compat, maxsim, recipes, smooth_maxsim
from li_plugins.ops.launch import Launcher, Options

STREAM = 17


class Adds:
    """``target = first + second * number``, as triton hands out a compiled kernel."""

    function, packed_metadata = "its function", "its metadata"

    def __init__(self) -> None:
        self.launches = self.watched = 0

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        return self.described

    def described(self, *values: Any) -> None:
        self.watched += 1
        self.compute(*values)

    def run(self, x: int, y: int, z: int, stream: int, *arguments: Any) -> None:
        assert (x, y, z, stream) == (1, 1, 1, STREAM)
        assert arguments[:5] == ("its function", "its metadata", None, None, None)
        self.compute(*arguments[5:])

    def compute(self, first: int, second: int | None, target: int, size: int, number: float) -> None:
        self.launches += 1
        at = [None if address is None else values(address, size) for address in (first, second, target)]
        at[2][:] = at[0] + (0 if at[1] is None else at[1] * number)


def values(address: int, size: int) -> Any:
    return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), (size,))


@pytest.fixture
def adds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Adds]:
    """Yield the compiled kernel of ``launch``, on a CPU that counts as the current GPU."""
    compiled = Adds()
    monkeypatch.setattr(recipes, "RECORDED", 2)
    monkeypatch.setattr(recipes, "_is_here", lambda device: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: STREAM, raising=False)
    recipes.forget()
    yield compiled
    recipes.forget()


def launch(compiled: Adds, tensors: tuple[Tensor | None, ...], size: int, number: float) -> None:
    launcher = Launcher(None)
    launcher._is_direct, launcher._compiled = True, AnyKey(compiled)
    launcher((1, 1, 1), tensors, (), (size,), (number,), (), Options(4, 1))


class AnyKey(dict):  # type: ignore[type-arg]
    """Knows one compiled kernel, whatever is asked for."""

    def __init__(self, compiled: Adds) -> None:
        super().__init__()
        self.compiled = compiled

    def get(self, key: Any, default: Any = None) -> Any:
        hash(key)
        return self.compiled


class Call:
    """Adds two tensors on the way through some memory, and counts how often it went the long way."""

    def __init__(self, compiled: Adds, before: Any = None) -> None:
        self.compiled, self.before, self.count, self.tally = compiled, before, 0, [0]

    def __call__(self, first: Tensor, second: Tensor | None, *plain: object) -> tuple[Tensor | None, ...]:
        tensors = first, second
        return recipes.run(recipes.kind(tensors, "adds", *plain), tensors, lambda: self.long_way(first, second))

    def long_way(self, first: Tensor, second: Tensor | None) -> tuple[Tensor | None, ...]:
        self.count += 1
        if self.before is not None:
            first = self.before(first)
        size, place = first.numel(), (first.dtype, first.device)
        between = recipes.zeros(first.shape, *place)
        launch(self.compiled, (first, second, between), size, 2.0)
        recipes.in_place(Tensor.cumsum_, between, 0)
        ones = recipes.full(first.shape, 1, *place)
        result = recipes.empty(first.shape, *place)
        launch(self.compiled, (between, ones, result), size, 0.5)
        recipes.counted(self.tally)
        self.tally[0] += 1
        return result, None


def drawn(size: int = 6) -> Tensor:
    return torch.randn(size)


def expected(first: Tensor, second: Tensor | None) -> Tensor:
    return (first if second is None else first + 2 * second).cumsum(0) + 0.5


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


def copied(adds: Adds, first: Tensor) -> tuple[Tensor]:
    """Return a copy, by a launch."""
    target = recipes.empty(first.shape, first.dtype, first.device)
    launch(adds, (first, None, target), first.numel(), 0.0)
    return (target,)


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
