"""What a comparison says of one artifact, and from which difference on it counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["identical", "reordered", "close", "differs", "missing", "not compared", "left out"]
"""How an artifact of two builds compares.

identical: the same numbers. reordered: the same once centroids are numbered alike. close: within tolerance. differs.
missing: in one folder only. not compared: something before it makes the comparison meaningless, and says so.
left out: it lies in a folder and is not of its index.
"""

SEVERITY: Mapping[State, int] = {
    "identical": 0, "not compared": 0, "left out": 0, "reordered": 1, "close": 1, "differs": 2, "missing": 2,
}  # fmt: skip

COLOURS: Mapping[State, str] = {
    "identical": "green", "reordered": "cyan", "close": "cyan", "differs": "red", "missing": "red",
    "not compared": "dim", "left out": "yellow",
}  # fmt: skip


@dataclass(frozen=True)
class Tolerance:
    """From which difference on two artifacts differ.

    Parameters
    ----------
    scale
        Multiplies the tolerances of floating-point numbers, which ``drift`` has by dtype.
    tie
        Greatest loss of similarity, in cosine, with which another centroid is as near. Stored embeddings are known up
        to their quantisation, which moves the loss by about 0.005: a smaller tolerance would judge that.
    captured_tie
        The same where both builds were captured, and embeddings are known up to float16.
    buckets
        Greatest part of numbers that may be in the next bucket.
    mean_cosine, least_cosine
        Of the embeddings that the two folders stand for, over tokens.
    overlap
        Least mean overlap of the best documents.
    """

    scale: float = 1.0
    tie: float = 0.02
    captured_tie: float = 0.001
    buckets: float = 0.01
    mean_cosine: float = 0.999
    least_cosine: float = 0.9
    overlap: float = 0.95


@dataclass(frozen=True)
class Finding:
    """One artifact: its state, a sentence, and the figures behind it, ready for JSON."""

    artifact: str
    state: State
    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def severity(self) -> int:
        """0: the same or unknown; 1: the same within tolerance; 2: not the same."""
        return SEVERITY[self.state]

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return {"artifact": self.artifact, "state": self.state, "text": self.text, "figures": dict(self.figures)}


def worst(*states: State) -> State:
    """Return the state that says most against being the same; the first of equally severe ones."""
    return max(states, key=SEVERITY.__getitem__)


def share(part: int, whole: int) -> str:
    """Return a part in percent, never rounded to 0 or to all."""
    if not part or part == whole:
        return "none" if not part else "all"
    percent = 100 * part / whole
    return "less than 0.01 %" if percent < 0.01 else "more than 99.99 %" if percent > 99.99 else f"{percent:.2f} %"
