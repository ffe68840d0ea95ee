"""A kernel that is a Python function, which reads and writes at addresses, and calls that launch it."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from li_plugins.ops import recipes
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


def copied(adds: Adds, first: Tensor) -> tuple[Tensor]:
    """Return a copy, by a launch."""
    target = recipes.empty(first.shape, first.dtype, first.device)
    launch(adds, (first, None, target), first.numel(), 0.0)
    return (target,)
