"""Three runs of one call: ours, the unpatched library's, and the library's in float64, which is taken for the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import li_plugins
from li_plugins.testing.oracle import judge

ROUNDINGS = 4
"""Rounding steps of what is summed that are always granted: hundreds of terms are added in another order."""

LEAVES: set[str] = set()
"""Names of targets that call no other target: their originals are called directly, which is quick. For a suite to fill.
"""


class Run(NamedTuple):
    """Scores and, where asked for, the gradients of a random weighting of them."""

    scores: Tensor
    grads: list[Tensor | None]


def run(
    function: Callable[..., Tensor],
    embeddings: list[Any],
    *arguments: Any,
    wanted: tuple[bool, bool] = (False, False),
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    **keywords: Any,
) -> Run:
    """Call ``function(queries, documents, ...)`` and, for the sides that are wanted, back-propagate.

    A side is a tensor, a list of tensors, or what takes no gradient. ``around`` gives the context of the forward.
    """
    leaves = [_leaves(side) if want else side for side, want in zip(embeddings, wanted, strict=True)]
    with around():
        scores = function(*leaves, *arguments, **keywords)
    if not any(wanted):
        return Run(scores.detach(), [])
    weights = torch.linspace(-1, 1, max(scores.numel(), 1), dtype=torch.float64)[: scores.numel()]
    (scores * weights.reshape(scores.shape).to(scores)).sum().backward()
    tensors = [leaf for side, want in zip(leaves, wanted, strict=True) if want for leaf in _tensors(side)]
    return Run(scores.detach(), [tensor.grad for tensor in tensors])


@contextmanager
def unpatched(function: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Give the original of a leaf, which is quick; anything else runs while nothing is patched."""
    original = li_plugins.original(function)
    is_leaf = original is not function and function.__name__ in LEAVES
    with nullcontext() if is_leaf else li_plugins.suspended():
        yield original if is_leaf else function


def exactly(value: Any, rounded: torch.dtype | None = None) -> Any:
    """Return floating tensors, alone or in a list, in float64; everything else as it is."""
    if isinstance(value, list):
        return [exactly(item, rounded) for item in value]
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.double() if rounded is None or value.dtype is torch.float64 else value.to(rounded).double()


def call_unpatched(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Call a function as if its library were not patched."""
    with unpatched(function) as original:
        return original(*arguments, **keywords)


def outcome(call: Callable[[], Any]) -> Any:
    """Return the result, or the class and message of the exception."""
    try:
        return call()
    except Exception as error:  # any: it is compared with the library's
        return type(error), str(error)


def functions_seen(call: Callable[[type[Tensor]], object]) -> list[str]:
    """Return the names of torch's functions that a call sees which is given a subclass of tensors that traces them."""
    seen: list[str] = []

    class Traced(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(getattr(func, "__name__", ""))
            return super().__torch_function__(func, types, args, kwargs or {})

    call(Traced)
    return seen


def assert_parity(
    function: Callable[..., Tensor],
    embeddings: list[Any],
    *arguments: Any,
    lowered: torch.dtype | None = None,
    summed: float | None = None,
    **options: Any,
) -> Run:
    """Compare a patched function with itself unpatched: dtype, shape, device, and the error against float64.

    The error may be the library's. Where that is less, it may be one rounding of the element to its dtype and
    ``ROUNDINGS`` more of what is summed: for a score, in float32 (float64 for float64), of the sum over absolute
    values; for a gradient, in its own dtype, of the largest element of the token's. ``summed`` makes it the
    judge of a loss: it says how large the sum over absolute values is for the largest score; for a gradient it is the
    largest element of all.

    With ``lowered``, both run under autocast to that dtype, and the truth is that of embeddings rounded to it.
    """
    if lowered is not None:
        options["around"] = partial(torch.autocast, _tensors(embeddings[0])[0].device.type, dtype=lowered)
    ours = run(function, embeddings, *arguments, **options)
    with unpatched(function) as original:
        library = run(original, embeddings, *arguments, **options)
        options.pop("around", None)
        exact_embeddings = exactly(embeddings, lowered)
        truth = run(original, exact_embeddings, *map(exactly, arguments), **options)
        if summed is None:
            options["wanted"] = (False, False)
            absolutes = [absolute(exactly(value)) for value in arguments]
            sizes = run(original, absolute(exact_embeddings), *absolutes, **options).scores
        else:
            sizes = torch.as_tensor(summed)
    for kind, mine, theirs, exact in (
        ("scores", ours.scores, library.scores, truth.scores),
        *(("gradient", *grads) for grads in zip(ours.grads, library.grads, truth.grads, strict=True)),
    ):
        assert (mine is None) == (theirs is None) == (exact is None), kind
        if mine is not None and theirs is not None and exact is not None:
            assert mine.dtype == theirs.dtype, kind
            assert mine.device == theirs.device, kind
            assert mine.shape == theirs.shape, kind
            # Under autocast a gradient is computed in the lowered dtype and then cast.
            rounding = lowered if kind == "gradient" and lowered and mine.dtype is not torch.float64 else mine.dtype
            if kind == "scores":
                terms = ROUNDINGS * sizes * (_eps_of_sums(mine.dtype) / torch.finfo(rounding).eps)
            else:
                # What flows back into the sum has this dtype; a loss rounds it at the size of the largest.
                terms = ROUNDINGS * (row_sizes(exact) if summed is None else exact.new_tensor(largest(exact)))
            magnitude = exact.abs() + terms
            if mine.dtype is torch.float64:
                magnitude *= 2  # what it is compared with was rounded as often
            verdict = judge(mine, exact, theirs, magnitude=magnitude, rounding=rounding, name=kind)
            assert verdict, verdict
    return ours


def absolute(value: Any) -> Any:
    """Return tensors, alone or in a list, without their signs; everything else as it is."""
    if isinstance(value, list):
        return [absolute(item) for item in value]
    return value.abs() if isinstance(value, Tensor) and value.dtype is not torch.bool else value


def row_sizes(grad: Tensor) -> Tensor:
    """Return the largest absolute value of each token's gradient ``[..., d]``: its elements sum the same rows."""
    return grad.abs().amax(-1, keepdim=True) if grad.numel() else grad


def _eps_of_sums(dtype: torch.dtype) -> float:
    return torch.finfo(torch.float64 if dtype is torch.float64 else torch.float32).eps


def largest(tensor: Tensor) -> float:
    """Return the largest finite absolute value, 0 for none."""
    finite = tensor[tensor.isfinite()].abs()
    return finite.max().item() if finite.numel() else 0.0


def _leaves(side: Any) -> Any:
    if isinstance(side, list):
        return [_leaves(item) for item in side]
    return side.detach().clone().requires_grad_()


def _tensors(side: Any) -> list[Any]:
    return side if isinstance(side, list) else [side]
