"""What operations on stored embeddings ask of their arguments; every refusal is a ``BadInput``."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from li_plugins.errors import BadInput

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NBITS = (1, 2, 4, 8)


def tensor(name: str, value: Any, rank: int, dtypes: Sequence[torch.dtype], like: Tensor | None = None) -> None:
    """Refuse anything but a dense tensor of this rank and one of these dtypes, on the device of ``like``."""
    if not isinstance(value, Tensor):
        raise BadInput(f"{name} is a tensor", type(value).__name__, "convert it to a tensor")
    if value.layout is not torch.strided:
        raise BadInput(f"{name} is a dense tensor", str(value.layout), "call .to_dense()")
    if value.dim() != rank:
        raise BadInput(f"{name} has {rank} dimensions", f"shape {list(value.shape)}", "reshape it")
    if value.dtype not in dtypes:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise BadInput(f"{name} has dtype {known}", str(value.dtype), "cast it")
    if like is not None and value.device != like.device:
        raise BadInput(f"{name} lies on {like.device}, as the other tensors", str(value.device), "move it there")


def same_width(left: str, width: int, right: str, other: int) -> None:
    """Refuse rows of different widths."""
    if width != other:
        raise BadInput(f"{left} and {right} have one width", f"{width} and {other}", "take both from one index")


def nbits(value: Any) -> None:
    """Refuse anything but 1, 2, 4 or 8."""
    if not isinstance(value, int) or isinstance(value, bool) or value not in NBITS:
        raise BadInput("nbits is 1, 2, 4 or 8", repr(value), "pass the index's nbits")


def not_empty(name: str, value: Tensor) -> None:
    """Refuse a tensor without entries along its first dimension."""
    if not value.shape[0]:
        raise BadInput(f"{name} has at least one entry", "none", "train centroids first")


def size(name: str, value: Tensor, expected: int, why: str) -> None:
    """Refuse another number of entries along the first dimension."""
    if value.shape[0] != expected:
        raise BadInput(f"{name} has {expected} entries, {why}", str(value.shape[0]), "take both from one index")


def bytes_per_row(width: int, bits: int) -> int:
    """Return the bytes that ``width`` buckets of ``bits`` bits take; refuse what fills no whole byte."""
    if width * bits % 8:
        raise BadInput(
            f"a row of {bits}-bit residuals fills whole bytes", f"{width} dimensions", "use a width that 8 divides"
        )
    return width * bits // 8


def values_below(name: str, values: Tensor, end: int) -> None:
    """Refuse integers outside of ``[0, end)``; read on the CPU only, where that waits for nothing."""
    if values.device.type != "cpu" or not values.numel():
        return
    low, high = (int(bound) for bound in values.aminmax())
    if low < 0 or high >= end:
        raise BadInput(f"{name} lie in [0, {end})", f"{low} to {high}", "take codes and centroids from one index")


def number(name: str, value: Any) -> float:
    """Return a real number as float; refuse anything else."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise BadInput(f"{name} is a number", repr(value), "pass a float")
    return float(value)


def stored(
    codes: Tensor,
    residuals: Tensor,
    centroids: Tensor,
    bucket_weights: Tensor,
    bits: Any,
    like: Tensor | None = None,
) -> None:
    """Refuse what does not belong to one codec: codes ``[N]``, bytes, centroids ``[K, d]``, weights of buckets."""
    nbits(bits)
    tensor("codes", codes, 1, (torch.int32, torch.int64), like)
    tensor("residuals", residuals, 2, (torch.uint8,), codes)
    tensor("centroids", centroids, 2, FLOATS, codes)
    tensor("bucket_weights", bucket_weights, 1, (centroids.dtype,), codes)
    size("residuals", residuals, codes.shape[0], "one for each code")
    size("bucket_weights", bucket_weights, 2**bits, f"one for each bucket of {bits} bits")
    width = bytes_per_row(centroids.shape[1], bits)
    same_width(f"rows of {centroids.shape[1]} dimensions in {bits} bits", width, "residuals", residuals.shape[1])
