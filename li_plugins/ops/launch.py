"""Launching a Triton kernel without asking each time which of its compiled forms is meant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from li_plugins.ops import _compat, recipes


class Options(NamedTuple):
    """How a kernel is compiled, beside its constants."""

    num_warps: int
    num_stages: int
    maxnreg: int | None = None
    """Most registers of a thread: so few that several programs share a multiprocessor."""


class Launcher:
    """A kernel whose parameters are, in this order: tensors or None, strides, sizes, floats, compile-time constants.

    Triton binds, inspects and looks up some forty arguments at each call, which takes longer than a short kernel does.
    What it would find out is little: where all tensors begin at multiples of 16 bytes, all strides are multiples of 16
    elements and all numbers have 32 bits, as is usual, the dtypes and the constants say which compiled form is meant.
    Any other call goes through Triton.
    """

    def __init__(self, function: Any) -> None:
        self._function = function
        self._compiled: dict[tuple[Any, ...], Any] = {}
        self._is_direct = isinstance(function, triton.JITFunction) and _compat.compiled_kernels_take_all_arguments()

    def __call__(
        self,
        grid: tuple[int, int, int],
        tensors: Sequence[Tensor | None],
        strides: tuple[int, ...],
        sizes: tuple[int, ...],
        floats: tuple[float, ...],
        constants: tuple[Any, ...],
        options: Options,
    ) -> None:
        """Launch on the current device, where the tensors are."""
        numbers = (*strides, *sizes, *floats, *constants)
        if not self._is_direct:
            self._indirectly(grid, tensors, numbers, options)
            return
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        misfit = reduce(or_, filter(None, (*pointers, *strides)), 0)
        if misfit & 15 or max(strides + sizes, default=0) >= 2**31:
            self._indirectly(grid, tensors, numbers, options)
            return
        dtypes = [None if tensor is None else tensor.dtype for tensor in tensors]
        key = (constants, options, torch.cuda.current_device(), *dtypes)
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = self._compiled[key] = self._function[grid](*tensors, *numbers, **options._asdict())
            runner = bound(compiled, grid)
        else:
            runner = bound(compiled, grid)
            runner(*pointers, *numbers)
        recipes.launched(runner, tensors, numbers)

    def _indirectly(
        self, grid: tuple[int, int, int], tensors: Sequence[Tensor | None], numbers: tuple[Any, ...], options: Options
    ) -> None:
        self._function[grid](*tensors, *numbers, **options._asdict())
        recipes.launched(None, tensors, numbers)


def bound(compiled: Any, grid: tuple[int, int, int]) -> Callable[..., None]:
    """Return what launches a compiled kernel on the current device, with the values of all parameters.

    ``compiled[grid]`` describes every launch to hooks and calls them, with no hook in them too: as much time as the
    launch itself. What it calls in the end is called here, as torch's own compiler does.
    """
    watched = compiled[grid]
    run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    stream, device = torch._C._cuda_getCurrentRawStream, torch.cuda.current_device()

    def launch(*values: Any) -> None:
        if _compat.launches_are_watched():
            watched(*values)
        else:
            run(*grid, stream(device), function, metadata, None, None, None, *values)

    return launch
