"""What of an index is made of what: where two builds part first, what that explains, and what it does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from li_plugins.index_diff.finding import Finding

MADE_OF: Mapping[str, tuple[str, ...]] = {
    "settings": (),
    "sampled passages": (),
    "sample": ("settings", "sampled passages"),
    "plan": ("sample",),
    "rng": (),
    "centroids": ("settings", "plan", "sample", "rng"),
    "buckets": ("settings", "centroids", "sample", "rng"),
    "avg_residual": ("centroids", "sample", "rng"),
    "embeddings": ("settings",),
    "doclens": ("settings",),
    "codes": ("embeddings", "centroids", "doclens"),
    "residuals": ("settings", "codes", "embeddings", "centroids", "buckets"),
    "ivf": ("codes", "doclens"),
    "metadata": ("plan", "doclens"),
}
"""The artifacts in the order in which a build makes them, each with those that it is made of."""

OF_ONE_STEP: Mapping[str, tuple[str, ...]] = {"nbits": ("buckets", "residuals"), "kmeans_niters": ("centroids",)}
"""Settings that the encoder does not read: what is made with them."""

OF_THE_ENCODER = ("sample", "embeddings", "doclens")
"""What is made with any other setting."""

CAUSES: Mapping[str, str] = {
    "settings": "the configuration: the builds were asked for different things",
    "sampled passages": "Python's random state, or another collection",
    "sample": "the encoder or the tokenizer: compare its layers with `li-plugins index-diff layers`",
    "plan": "the sample had other lengths: the tokenizer, or other passages",
    "rng": "something before the shuffle drew another number of random values, as when a model is initialised; "
    "inject A's `rng` and build again",
    "centroids": "the sample, its shuffle, or k-means; the index does not keep the first two: `li-plugins index-diff "
    "capture` does",
    "buckets": "the centroids agree: the part of the sample that is held out for it, or how quantiles are computed",
    "avg_residual": "the centroids agree: the part of the sample that is held out for it",
    "embeddings": "the encoder: compare its layers with `li-plugins index-diff layers`",
    "doclens": "the tokenizer, the mask of punctuation, or other passages",
    "codes": "the centroids agree: the encoder, or how the nearest centroid is found",
    "residuals": "codes, centroids and buckets agree: the encoder, or how bits are packed",
    "ivf": "codes and lengths agree: how cells are built",
    "metadata": "what is counted agrees: the file was written by another build",
}
"""What makes an artifact differ when nothing before it does."""

RECORDED = {
    "centroids": "sample and shuffle are the same: k-means, or its threads",
    "codes": "centroids and embeddings are the same: how the nearest centroid is found",
    "residuals": "codes, centroids, buckets and embeddings are the same: how bits are packed",
}
"""The same where both builds were captured."""

LACKING = "a build that did not end, or a folder that was not copied whole"
"""What makes an artifact missing."""

GROWN = "the sample, which drifts within tolerance: k-means makes much of little; inject A's `sample` and build again"
"""What other centroids may come from when the samples are not the same to the bit."""


@dataclass(frozen=True)
class Cause:
    """An artifact that differs although nothing that it is made of does, and what differs because of it."""

    artifact: str
    hint: str
    explains: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return {"artifact": self.artifact, "hint": self.hint, "explains": list(self.explains)}


@dataclass(frozen=True)
class Diagnosis:
    """Where two builds part.

    Parameters
    ----------
    first
        The first artifact, in the order of a build, that differs; None when all agree within tolerance.
    drifts
        The first that is not the same to the bit, within tolerance or not.
    causes
        Every artifact whose difference nothing before it explains, ``first`` among them.
    agrees
        What is made of ``first`` and is the same all the same.
    """

    first: str | None
    drifts: str | None
    causes: tuple[Cause, ...]
    agrees: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain data."""
        causes = [cause.to_dict() for cause in self.causes]
        return {"first": self.first, "first_drift": self.drifts, "causes": causes, "agrees": list(self.agrees)}


def diagnose(findings: Sequence[Finding]) -> Diagnosis:
    """Find where the builds part: a difference explains those of all that is made of it, directly or not."""
    found = {finding.artifact: finding for finding in findings if finding.artifact in MADE_OF}
    order = [name for name in MADE_OF if name in found]
    before = _ancestors(found["settings"].figures.get("changed", ()) if "settings" in found else ())
    differs = [name for name in order if found[name].severity == 2]
    missing = {name for name in differs if found[name].state == "missing"}
    roots = [name for name in differs if name in missing or not before[name] & set(differs)]
    captured = "sample" in found and "embeddings" in found
    hints = {**CAUSES, **RECORDED} if captured else CAUSES
    if "sample" in found and found["sample"].state == "close":
        hints = {**hints, "centroids": GROWN}
    hints = {name: LACKING if found[name].state == "missing" else hint for name, hint in hints.items() if name in found}
    drifting = [name for name in order if found[name].severity and name not in missing]
    causes = tuple(Cause(root, hints[root], tuple(name for name in drifting if root in before[name])) for root in roots)
    first = differs[0] if differs else None
    agrees = tuple(name for name in order if first in before[name] and found[name].state == "identical")
    drifts = next((name for name in order if found[name].severity), None)
    return Diagnosis(first, drifts, causes, agrees)


def _ancestors(changed_settings: Iterable[str]) -> dict[str, frozenset[str]]:
    """Return all that each artifact is made of; of the settings those that changed count."""
    by_settings = {name for key in changed_settings for name in OF_ONE_STEP.get(key, OF_THE_ENCODER)}
    found: dict[str, frozenset[str]] = {}
    for name, parents in MADE_OF.items():  # in the order of a build: parents come first
        direct = frozenset(parents) - (frozenset() if name in by_settings else {"settings"})
        found[name] = direct.union(*(found[parent] for parent in direct))
    return found
