"""What differs between releases of torch and triton, in one place."""

from __future__ import annotations

import sys

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
    from torch.compiler import is_compiling

    return is_compiling()
