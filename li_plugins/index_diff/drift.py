"""How far two tensors are apart: in numbers, in units in the last place, and against their dtype's tolerance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from li_plugins.index_diff.finding import State

ROWS = 2**16
"""Most rows whose differences are in memory at a time."""

TOLERANCES = {
    # one unit in the last place, for small numbers that of 0.06: sums that cancel keep the error of their terms
    torch.float16: (2.0**-10, 2.0**-14),
    torch.bfloat16: (2.0**-7, 2.0**-11),
    torch.float32: (1.3e-6, 1e-5),
    torch.float64: (1e-7, 1e-7),
}
"""Relative and absolute tolerance of a dtype; integers have none."""

_COARSEST_FIRST = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}


@dataclass
class Drift:
    """The difference of two tensors of one shape; ``dtypes`` are theirs where they are not the same."""

    count: int = 0
    different: int = 0
    beyond: int = 0
    max_abs: float = 0.0
    max_ulp: int | None = 0
    dtypes: tuple[str, str] | None = None

    @property
    def state(self) -> State:
        """Identical, close or differs."""
        return "differs" if self.beyond else "close" if self.different or self.dtypes else "identical"

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain data; what no number is near is an infinite distance, ``null``."""
        fraction = self.different / self.count if self.count else 0.0
        most = self.max_abs if math.isfinite(self.max_abs) else None
        found: dict[str, Any] = {"different": fraction, "beyond_tolerance": self.beyond, "max_abs": most}
        if self.dtypes:
            found["dtypes"] = list(self.dtypes)
        return found if self.max_ulp is None else {**found, "max_ulp": self.max_ulp}


def drift(
    a: Tensor, b: Tensor, scale: float = 1.0, as_dtype: torch.dtype | None = None, onto: Drift | None = None
) -> Drift:
    """Compare two tensors of one shape; of two dtypes the coarser one counts.

    Parameters
    ----------
    a, b
        Tensors of one shape, floating or integers.
    scale
        Multiplies the tolerance.
    as_dtype
        Whose tolerance counts; default: that of the numbers.
    onto
        Is added to, and returned.
    """
    total = Drift() if onto is None else onto
    if a.dtype != b.dtype:
        total.dtypes = name(a.dtype), name(b.dtype)
        dtype = next((dtype for dtype in _COARSEST_FIRST if dtype in (a.dtype, b.dtype)), torch.int64)
    else:
        dtype = a.dtype
    relative, absolute = TOLERANCES.get(as_dtype or dtype, (0.0, 0.0))
    if dtype not in _BITS:
        total.max_ulp = None
    for rows_a, rows_b in zip(a.split(ROWS), b.split(ROWS), strict=True):
        _add(total, rows_a.to(dtype), rows_b.to(dtype), relative * scale, absolute * scale)
    return total


def name(dtype: torch.dtype) -> str:
    """Return a dtype's name without its module."""
    return str(dtype).removeprefix("torch.")


def _add(total: Drift, a: Tensor, b: Tensor, relative: float, absolute: float) -> None:
    total.count += a.numel()
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return
    a, b = a[~same], b[~same]
    total.different += a.numel()
    wide_a, wide_b = a.double(), b.double()
    distance = (wide_a - wide_b).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    allowed = torch.maximum(wide_a.abs(), wide_b.abs()).mul(relative).add(absolute)
    # an infinite number is near none but itself, whatever infinity is relative to
    total.beyond += int(((distance > allowed) | distance.isinf() | allowed.isnan()).sum())
    total.max_abs = max(total.max_abs, float(distance.max()))
    if total.max_ulp is not None:
        total.max_ulp = max(total.max_ulp, int((_places(a) - _places(b)).abs().max()))


def _places(values: Tensor) -> Tensor:
    """Return the places of values among all of their dtype: neighbours differ by 1."""
    bits = values.contiguous().view(_BITS[values.dtype])
    magnitude = bits.long() & torch.iinfo(bits.dtype).max
    return torch.where(bits < 0, -magnitude, magnitude)
