"""One torch op without a gradient for each operation: define, impl, fake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch

from li_plugins.ops import _compat, dispatch


class ForwardOnly(Protocol):
    """What ``Kernel.load`` names for these operations, beside ``supports``."""

    def forward(self, problem: Any) -> Any:
        """Return what the op returns; nothing of it shares memory with an input."""


def register(
    name: str,
    schema: str,
    problem_of: Callable[..., Any],
    empty: Callable[[Any], Any],
    check: Callable[[Any], None] | None = None,
) -> Callable[..., Any]:
    """Register the torch op ``li_plugins::<name>`` and return what calls it; its kernels are known under ``name``.

    An eager call of plain tensors goes straight to the kernel: a torch op in Python costs more than a short kernel.

    Parameters
    ----------
    name
        Name of the operation.
    schema
        Arguments and results: ``"(Tensor rows, int count) -> (Tensor, Tensor)"``.
    problem_of
        Makes the problem of the arguments; see ``described``.
    empty
        Returns uninitialised tensors in the shapes and dtypes of the results.
    check
        Raises ``BadInput`` for values that have no meaning; called before a kernel runs. ``None``: metadata says all.
    """
    qualified = f"li_plugins::{name}"
    torch.library.define(qualified, schema, tags=torch.Tag.pt2_compliant_tag)

    def impl(*arguments: Any) -> Any:
        problem = problem_of(*arguments)
        if check is not None:
            check(problem)
        return dispatch.run(name, problem, "scores", lambda kernel: cast(ForwardOnly, kernel).forward(problem))

    def fake(*arguments: Any) -> Any:
        return empty(problem_of(*arguments))

    torch.library.impl(qualified, "default")(impl)
    torch.library.register_fake(qualified)(fake)
    op = getattr(torch.ops.li_plugins, name).default

    def call(*arguments: Any) -> Any:
        if _compat.nobody_looks_at_ops(*[value for value in arguments if isinstance(value, torch.Tensor)]):
            return impl(*arguments)
        return op(*arguments)

    return call
