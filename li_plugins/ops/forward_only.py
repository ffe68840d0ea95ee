"""One torch op without a gradient for each operation: define, impl, fake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch

from li_plugins.ops import _compat, dispatch, recipes


class ForwardOnly(Protocol):
    """What ``Kernel.load`` names for these operations, beside ``supports``."""

    def forward(self, problem: Any) -> Any:
        """Return what the op returns; nothing of it shares memory with an input."""


class Operation:
    """What calls an operation: with plain tensors its kernel, which takes less time than a torch op in Python does."""

    def __init__(self, name: str, direct: Callable[..., Any], op: Callable[..., Any]) -> None:
        self._name, self._direct, self._op = name, direct, op

    def __call__(self, *arguments: Any) -> Any:
        """Return the results for arguments that are valid, in the order of the schema."""
        if _compat.nobody_looks_at_ops(*[value for value in arguments if isinstance(value, torch.Tensor)]):
            return self._direct(*arguments)
        return self._op(*arguments)

    def once_valid(
        self, tensors: Sequence[Any], plain: Sequence[object], arguments: Callable[[], Sequence[Any]]
    ) -> torch.Tensor:
        """Return the one result of the operation, by the recipe for calls of this kind if there is one.

        Parameters
        ----------
        tensors, plain
            What was given, which ``arguments`` has to follow from; see ``recipes.kind``.
        arguments
            Validates it and returns the arguments of the op; not called where there is a recipe.
        """
        kind = recipes.kind(tensors, self._name, *plain, *map(type, plain))
        if kind is None:
            return cast(torch.Tensor, self(*arguments()))
        dispatch.keep_up()
        return kind.run(tensors, lambda: (self._direct(*arguments()),))[0]


def register(
    name: str,
    schema: str,
    problem_of: Callable[..., Any],
    empty: Callable[[Any], Any],
    check: Callable[[Any], None] | None = None,
) -> Operation:
    """Register the torch op ``li_plugins::<name>`` and return what calls it; its kernels are known under ``name``.

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
    return Operation(name, impl, getattr(torch.ops.li_plugins, name).default)
