"""What two captured builds had in their hands: sample, random states, embeddings, and the environments around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from li_plugins.index_diff.aligned import TOKENS, aligned, comparable
from li_plugins.index_diff.capture import Capture, ForeignCapture, capture_of
from li_plugins.index_diff.drift import Drift, drift
from li_plugins.index_diff.environment import changes
from li_plugins.index_diff.finding import Finding, Tolerance
from li_plugins.index_diff.folder import IndexFolder

UNUSED = "A capture is not of its index: environment, sample, shuffle and encoder are not compared."

Captures = tuple["Capture | None", "Capture | None"]


def captures_of(a: IndexFolder, b: IndexFolder) -> tuple[Captures, Finding | None]:
    """Return the captures of two folders, and what is said of one that is not of its index, which is left out."""
    found: list[Capture | None] = []
    foreign: dict[str, str] = {}
    for side, folder in (("A", a), ("B", b)):
        try:
            found.append(capture_of(folder))
        except ForeignCapture as error:  # what the folders themselves hold can be compared without
            found.append(None)
            foreign[side] = str(error)
    if not foreign:
        return (found[0], found[1]), None
    text = "; ".join(f"that of {side} is not used: {said}" for side, said in foreign.items())
    return (found[0], found[1]), Finding("capture", "left out", text, {"foreign": foreign})


def notes(a: Capture | None, b: Capture | None) -> tuple[str, ...]:
    """Return what the environments of two builds have apart, or that one of them was not captured."""
    if a is None or b is None:
        return (
            () if a is b else (f"Only {'A' if a else 'B'} was captured: sample, shuffle and encoder are not compared.",)
        )
    changed = changes(a.environment, b.environment)
    if not changed:
        return ("Environment: the same.",)
    return ("Environment: " + "; ".join(f"{key} {_said(old)} and {_said(new)}" for key, (old, new) in changed.items()),)


def compare_samples(a: Capture, b: Capture, tolerance: Tolerance) -> Iterator[Finding]:
    """Compare which passages were sampled, their embeddings, and the random states before the shuffle."""
    mine, theirs = a.sampled_passages, b.sampled_passages
    if torch.equal(mine, theirs):
        yield Finding("sampled passages", "identical", f"the same {len(mine):,} passages", {"passages": len(mine)})
    else:
        common = int(torch.isin(mine, theirs).sum())
        text = f"{len(mine):,} and {len(theirs):,} passages, {common:,} in both"
        yield Finding("sampled passages", "differs", text, {"passages": [len(mine), len(theirs)], "common": common})
    if a.sample.shape != b.sample.shape:
        text = f"shapes {list(a.sample.shape)} and {list(b.sample.shape)}"
        yield Finding("sample", "differs", text, {"shapes": [list(a.sample.shape), list(b.sample.shape)]})
    else:
        rows = _Rows(tolerance)
        for one, other in zip(a.sample.split(TOKENS), b.sample.split(TOKENS), strict=True):
            rows.add(one, other)
        yield rows.finding("sample")
    apart = [name for name, state in a.rng.items() if not torch.equal(state, b.rng.get(name, torch.empty(0)))]
    text = f"the random states of {', '.join(apart)} are not the same" if apart else "the same random states"
    # the shuffle is torch's; what else was drawn from the others is seen elsewhere
    yield Finding("rng", "differs" if "torch" in apart else "close" if apart else "identical", text, {"other": apart})


def compare_embeddings(
    a: IndexFolder,
    b: IndexFolder,
    captures: tuple[Capture, Capture],
    tolerance: Tolerance,
    on_tokens: Callable[[int], object] = lambda tokens: None,
) -> Finding:
    """Compare the embeddings before they are compressed, of the passages with as many tokens in both."""
    rows = _Rows(tolerance)
    for (mine,), (theirs,) in aligned(
        a, b, comparable(a, b), lambda folder, chunk: (captures[0 if folder is a else 1].embeddings(chunk),), on_tokens
    ):
        rows.add(mine, theirs)
    return rows.finding("embeddings")


class _Rows:
    """Drift and cosine of embeddings, block by block."""

    def __init__(self, tolerance: Tolerance) -> None:
        self._drift, self._scale = Drift(), tolerance.scale
        self._count, self._least, self._sum = 0, 1.0, 0.0

    def add(self, a: Tensor, b: Tensor) -> None:
        drift(a, b, self._scale, onto=self._drift)
        cosine = cosine_similarity(a.float(), b.float(), dim=1)
        self._count += len(a)
        self._sum += float(cosine.double().sum())
        self._least = min(self._least, float(cosine.min()))

    def finding(self, artifact: str) -> Finding:
        found = self._drift
        if not self._count:
            return Finding(artifact, "not compared", "no passage has as many tokens in both")
        figures = {**found.to_dict(), "rows": self._count, "mean_cosine": self._sum / self._count}
        figures["least_cosine"] = self._least
        text = f"the same {self._count:,} embeddings"
        if found.different:
            text = f"{found.different / found.count:.2%} of numbers differ, by {found.max_abs:.2e} at most"
            text += f", {found.beyond:,} beyond tolerance" if found.beyond else ""
            text += f"; cosine {figures['mean_cosine']:.6f} on average, {self._least:.6f} at least"
        return Finding(artifact, found.state, text, figures)


def _said(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
