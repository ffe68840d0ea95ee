"""Scores divided by query lengths, and the report of those out of bounds, now or when the device has them."""

from __future__ import annotations

import atexit
import os
from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor

from li_plugins_colpali import _requests

VARIABLE = "LI_PLUGINS_COLPALI_BOUNDS"


class _Pending(NamedTuple):
    """Bounds on their way to the host."""

    arrival: Any
    """A CUDA event, which happens when ``extremes`` can be read."""
    extremes: Tensor
    """The least and the greatest score, on the CPU."""
    tolerance: float


_pending: deque[_Pending] = deque()


def normalized(module: Any, scores: Tensor, lengths: Tensor) -> Tensor:
    """Return ``module._apply_normalization(scores, lengths)``: ``[A, B]`` or ``[A]`` over ``lengths [A]``.

    The library's own waits for the device twice, to print a message where a score leaves [0, 1]; here it is once. With
    the variable set to ``later`` the message comes with a later call, or at exit, and nothing waits.
    """
    if not scores.is_cuda or _requests.replaced(module, "_apply_normalization"):
        return module._apply_normalization(scores, lengths)
    found = scores / (lengths.unsqueeze(1) if scores.ndim == 2 else lengths)
    both = found.new_empty(2)
    torch.aminmax(found.detach(), out=both.unbind())
    if os.environ.get(VARIABLE, "now").strip().lower() != "later":
        _say(both.cpu(), module.norm_tol)
        return found
    report()
    extremes = torch.empty(2, dtype=found.dtype, pin_memory=True)
    extremes.copy_(both, non_blocking=True)
    arrival = torch.cuda.Event()
    arrival.record()
    _pending.append(_Pending(arrival, extremes, module.norm_tol))
    return found


def report(*, wait: bool = False) -> None:
    """Print the library's message for scores out of bounds that have arrived, or for all, waiting for them."""
    while True:
        try:
            pending = _pending.popleft()
        except IndexError:  # empty; to look before would be a race between threads
            return
        if not (wait or pending.arrival.query()):
            _pending.appendleft(pending)
            return
        pending.arrival.synchronize()
        _say(pending.extremes, pending.tolerance)


def _say(extremes: Tensor, tolerance: float) -> None:
    """Print the library's message where the least or the greatest score is out of bounds; compared in their dtype."""
    least, greatest = extremes.tolist()
    if least >= 0 and greatest <= 1 and tolerance >= 0:
        return  # in bounds by any dtype's tolerance: numbers are compared sooner than tensors
    least, greatest = extremes
    if least < -tolerance or greatest > 1 + tolerance:
        print(
            f"Scores out of bounds after normalization: min={least.item():.4f}, max={greatest.item():.4f}, "
            f"tol={tolerance}"
        )


atexit.register(report, wait=True)
