"""What differs between releases of torch and triton, in one place."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch.autograd import forward_ad

_COMPILE_FAILURES = frozenset({"CompilationError", "CompileTimeAssertionFailure", "OutOfResources", "PTXASError"})
"""Names of triton's exceptions that mean: this kernel cannot be built for this device and shape."""


def is_compile_failure(error: BaseException) -> bool:
    """Tell whether ``error`` says that a kernel could not be built, without importing triton.

    The classes moved between triton's modules (``triton.compiler.errors``, ``triton.runtime.errors``,
    ``triton.runtime.autotuner``), so they are known by name, and only if triton defines them.
    """
    if "triton" not in sys.modules:
        return False
    return any(
        cls.__name__ in _COMPILE_FAILURES and cls.__module__.partition(".")[0] == "triton"
        for cls in type(error).__mro__
    )


def torch_is_compiling() -> bool:
    """Tell whether torch.compile or torch.export is tracing this call."""
    return torch.compiler.is_compiling()


PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})


def nobody_looks_at_ops(*tensors: object) -> bool:
    """Tell whether these are plain tensors and no compiler, tracer, transform, mode or profiler is at work."""
    if torch_is_compiling():
        return False
    return (
        PLAIN.issuperset(map(type, tensors))
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch._C._is_tracing()
        and not torch._C._autograd._profiler_enabled()
    )


def _never() -> bool:
    return False


_functorch_is_active = getattr(torch._C, "_are_functorch_transforms_active", _never)


_NOTHING: AbstractContextManager[Any] = nullcontext()


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return what keeps autocast on a device away from the products and the concatenations within."""
    if device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return _NOTHING


def forward_mode_is_active() -> bool:
    """Tell whether a level of forward-mode AD is at work, one of torch.func's included.

    It has no public name. Dynamo traces it, and guards a graph with the answer.
    """
    return getattr(forward_ad, "_current_level", -1) >= 0


def a_transform_is_active() -> bool:
    """Tell whether forward-mode AD, or a transform of torch.func (grad, jvp, vmap, ...), is at work; as above."""
    return forward_mode_is_active() or _functorch_is_active()


def torch_func_differentiates() -> bool:
    """Tell whether a transform of torch.func that takes a derivative (grad, vjp, jacrev, jvp, ...) is at work."""
    stack = torch._C._functorch.get_interpreter_stack() or []
    return any(level.key() in _DERIVATIVES for level in stack)


_DERIVATIVES = (torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Jvp)


def compiled_kernels_take_all_arguments() -> bool:
    """Tell whether a compiled kernel of triton is called with every parameter's value, constants included.

    ``compiled[grid](*values)`` is so since triton 3.3; before, the constants were left out.
    """
    return _triton_version() >= (3, 3)


def launches_are_watched() -> bool:
    """Tell whether somebody asked triton to be called at each launch, as its profiler does."""
    hooks = _launch_hooks()
    before, after = hooks.launch_enter_hook, hooks.launch_exit_hook
    # a function, or since triton 3.4 a chain, empty where nobody asked
    return bool(
        (before is not None and getattr(before, "calls", 1)) or (after is not None and getattr(after, "calls", 1))
    )


@lru_cache
def _launch_hooks() -> Any:
    """Return what has the hooks as attributes: ``triton.knobs.runtime``, and before 3.4 a class."""
    import triton

    knobs = getattr(triton, "knobs", None)
    return triton.compiler.CompiledKernel if knobs is None else knobs.runtime


def passes_tuples() -> bool:
    """Tell whether functions of triton take tuples: since triton 3.3."""
    return _triton_version() >= (3, 3)


def multiplies_fp32_in_bf16_pieces() -> bool:
    """Tell whether ``tl.dot`` knows the precision ``bf16x6``: since triton 3.6."""
    return _triton_version() >= (3, 6)


@lru_cache
def _triton_version() -> tuple[int, ...]:
    import triton

    return tuple(int(number) for number in triton.__version__.split(".")[:2])
