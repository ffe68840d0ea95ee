"""Centroids, bucket cutoffs and weights, and the average residual of two folders."""

from __future__ import annotations

import torch

from li_plugins.index_diff.drift import Drift, drift, name
from li_plugins.index_diff.finding import Finding, State, Tolerance
from li_plugins.index_diff.folder import IndexFolder
from li_plugins.index_diff.matching import Matching

MOST_ULPS = 1024
"""Up to which distance in units in the last place the text tells it; the figures always do."""


def compare_centroids(a: IndexFolder, b: IndexFolder, matching: Matching, tolerance: Tolerance) -> Finding:
    """Compare centroids number by number and, where they do not agree so, as ``matching`` pairs them."""
    mine, theirs = a.centroids, b.centroids
    figures = {
        "shapes": [list(mine.shape), list(theirs.shape)],
        "dtypes": [name(mine.dtype), name(theirs.dtype)],
        "moved": matching.moved,
        "mean_cosine": float(matching.cosine.mean()),
        "least_cosine": float(matching.cosine.min()),
    }
    cosine = f"cosine with their counterparts {figures['mean_cosine']:.4f} on average, {figures['least_cosine']:.4f}"
    cosine += " at least"
    if mine.shape != theirs.shape:
        text = f"{len(mine)} and {len(theirs)} centroids; {cosine}"
        return Finding("centroids", "differs", text, figures)
    found = drift(mine, theirs, tolerance.scale)
    if found.state == "differs" and matching.complete and matching.moved:
        ordered = drift(mine, theirs[matching.b_of_a], tolerance.scale)
        figures["reordered"] = ordered.to_dict()
        if ordered.state != "differs":
            text = f"the same but for their order: {matching.moved} of {len(mine)} have another number"
            text += f", and {_described(ordered)}" if ordered.different else ""
            return Finding("centroids", "reordered", text, {**figures, **found.to_dict()})
    text = _described(found)
    if found.state == "differs":
        text += f"; {cosine}"
        text += f"; {matching.moved} of {len(mine)} have another number" if matching.moved else ""
    return Finding("centroids", found.state, text, {**figures, **found.to_dict()})


def compare_buckets(a: IndexFolder, b: IndexFolder, tolerance: Tolerance) -> Finding:
    """Compare cutoffs and weights, with the tolerance of the float16 numbers that they are quantiles of."""
    if a.nbits != b.nbits:
        return Finding(
            "buckets", "differs", f"{a.nbits} and {b.nbits} bits for a number", {"nbits": [a.nbits, b.nbits]}
        )
    drifts = [
        drift(mine, theirs, tolerance.scale, torch.float16) for mine, theirs in zip(a.buckets, b.buckets, strict=True)
    ]
    state: State = max((found.state for found in drifts), key=("identical", "close", "differs").index)
    text = "; ".join(f"{part}: {_described(found)}" for part, found in zip(("cutoffs", "weights"), drifts, strict=True))
    if state == "identical":
        text = "the same cutoffs and weights"
    figures = {"nbits": [a.nbits, b.nbits], "cutoffs": drifts[0].to_dict(), "weights": drifts[1].to_dict()}
    return Finding("buckets", state, text, figures)


def compare_average(a: IndexFolder, b: IndexFolder, tolerance: Tolerance) -> Finding:
    """Compare the average residual, a number or an array of one."""
    mine, theirs = a.average_residual, b.average_residual
    found = drift(mine, theirs, tolerance.scale, torch.float16)
    text = f"{float(mine):.6f}" if found.state == "identical" else f"{float(mine):.6f} and {float(theirs):.6f}"
    return Finding("avg_residual", found.state, text, {"values": [float(mine), float(theirs)], **found.to_dict()})


def _described(found: Drift) -> str:
    stored = "" if found.dtypes is None else f", stored as {found.dtypes[0]} and {found.dtypes[1]}"
    if not found.different:
        return f"the same numbers{stored}"
    # in float32, next to 0, or between unlike numbers, millions of them say nothing
    ulps = "" if found.max_ulp is None or found.max_ulp > MOST_ULPS else f" ({found.max_ulp:,} ulp)"
    text = f"{found.different / found.count:.2%} of numbers differ, by {found.max_abs:.2e}{ulps} at most"
    return text + (f", {found.beyond:,} beyond tolerance" if found.beyond else "") + stored
