"""The oracle: how far a result may be from float64, and a verdict that says where it is not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a result earns its keep, and its worst element; true when it does, and prints as one line.

    The worst element is the one whose error exceeds its budget most (or comes closest to it).
    """

    name: str
    ok: bool
    elements: int
    failures: int
    index: tuple[int, ...] = ()
    ours: float = 0.0
    exact: float = 0.0
    error: float = 0.0
    library_error: float | None = None
    floor: float = 0.0
    complaint: str = ""

    @property
    def budget(self) -> float:
        """The largest error that the worst element may have."""
        return max(self.library_error or 0.0, self.floor)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        if self.complaint:
            return f"{self.name}: {self.complaint}"
        if not self.elements:
            return f"{self.name}: no element"
        library = "no library" if self.library_error is None else f"the library's {self.library_error:.3g}"
        return (
            f"{self.name}: {self.failures} of {self.elements} elements are off; worst at {list(self.index)}: "
            f"{self.ours:.9g}, float64 {self.exact:.9g}, error {self.error:.3g} of {self.budget:.3g} "
            f"({library}, floor {self.floor:.3g})"
        )


def judge(
    ours: Tensor,
    exact: Tensor,
    library: Tensor | None = None,
    *,
    magnitude: Tensor | float | None = None,
    rounding: torch.dtype | None = None,
    name: str = "result",
) -> Verdict:
    """Compare a result with float64: ``|ours - exact| <= max(|library - exact|, floor)``, element by element.

    Parameters
    ----------
    ours
        The result, any shape.
    exact
        The same in float64.
    library
        What the unpatched library returns for the same inputs; ``None``: the floor alone is the budget.
    magnitude
        Size of the intermediate values whose rounding is the floor; default: the largest finite ``|exact|``.
    rounding
        The dtype whose rounding step is the floor; default: that of ``ours``.
    name
        What the verdict calls it.

    Returns
    -------
    Verdict
        NaN is right where float64 has NaN and an infinity where it has the same one; both are wrong elsewhere.
    """
    if ours.shape != exact.shape:
        return Verdict(name, False, 0, 0, complaint=f"shape {list(ours.shape)}, expected {list(exact.shape)}")
    if not ours.numel():
        return Verdict(name, True, 0, 0)
    found, truth = ours.detach().double().cpu(), exact.detach().double().cpu()
    error = _distance(found, truth)
    budget = theirs = torch.zeros_like(error)
    if library is not None:
        theirs = _distance(library.detach().double().cpu(), truth)
        budget = theirs
    if magnitude is None:
        finite = truth[truth.isfinite()].abs()
        magnitude = finite.max() if finite.numel() else 0.0
    floor = torch.finfo(rounding or ours.dtype).eps * torch.as_tensor(magnitude, dtype=torch.float64).cpu()
    floor = floor.abs().expand(error.shape)
    budget = torch.maximum(budget, floor)
    is_off = (error > budget).reshape(-1)
    excess = (error - budget).masked_fill(error == budget, 0).reshape(-1)  # inf - inf is nobody's excess
    worst = int(excess.argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape))
    return Verdict(
        name=name,
        ok=not bool(is_off.any()),
        elements=error.numel(),
        failures=int(is_off.sum()),
        index=index,
        ours=float(found[index]),
        exact=float(truth[index]),
        error=float(error[index]),
        library_error=None if library is None else float(theirs[index]),
        floor=float(floor[index]),
    )


def _distance(found: Tensor, truth: Tensor) -> Tensor:
    """Return ``|found - truth|``; 0 for equal infinities and NaN meeting NaN, infinite for NaN meeting a number."""
    is_same = (found == truth) | (found.isnan() & truth.isnan())
    return (found - truth).abs().nan_to_num(nan=torch.inf, posinf=torch.inf).masked_fill(is_same, 0)
