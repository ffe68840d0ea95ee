"""Two index folders, artifact by artifact in the order in which a build makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path

import torch

from li_plugins.index_diff import codec, counts, inverted, rankings, recorded, tokens
from li_plugins.index_diff.capture import Capture
from li_plugins.index_diff.finding import Finding, Tolerance
from li_plugins.index_diff.folder import IndexFolder
from li_plugins.index_diff.lineage import diagnose
from li_plugins.index_diff.matching import Matching, match
from li_plugins.index_diff.report import Report

Step = Callable[[str, "int | None"], Callable[[int], object]]
"""Is told what begins and of how many tokens it is, or None; returns what is told of tokens that are behind."""


def _unheard(step: str, tokens: int | None) -> Callable[[int], object]:
    return lambda done: None


def compare(
    a: str | Path,
    b: str | Path,
    *,
    queries: str | Path | None = None,
    top_k: int = 10,
    tolerance: Tolerance | None = None,
    on_step: Step = _unheard,
) -> Report:
    """Compare two index folders of colbert-ai.

    Parameters
    ----------
    a, b
        The folders.
    queries
        A ``.pt`` or ``.npy`` file of query embeddings ``[Q, Lq, d]``: the best documents are compared too.
    top_k
        How many of them.
    tolerance
        From which difference on artifacts differ.
    on_step
        Is told of the progress.

    Returns
    -------
    Report
        What was found, and where the builds part.

    Raises
    ------
    BadInput
        When a folder is no index, or a file in it is truncated, damaged or foreign.
    """
    folders = IndexFolder(a), IndexFolder(b)
    on_step("captures", None)
    captures, left_out = recorded.captures_of(*folders)
    both = (captures[0], captures[1]) if captures[0] and captures[1] else None
    comparison = _Comparison(*folders, both, tolerance or Tolerance(), on_step)
    findings = [*([left_out] if left_out else ()), *comparison.artifacts()]
    if queries is not None:
        findings.append(comparison.rankings(Path(queries), top_k))
    notes = (recorded.UNUSED,) if left_out else recorded.notes(*captures)
    return Report(str(a), str(b), tuple(findings), diagnose(findings), notes)


class _Comparison:
    """Two folders, and what their comparisons share."""

    def __init__(
        self,
        a: IndexFolder,
        b: IndexFolder,
        captures: tuple[Capture, Capture] | None,
        tolerance: Tolerance,
        on_step: Step,
    ) -> None:
        self._a, self._b, self._captures, self._tolerance, self._on_step = a, b, captures, tolerance, on_step
        self._lacking = sorted((a.expected - a.names) | (b.expected - b.names))

    def artifacts(self) -> Iterator[Finding]:
        """Yield the findings in the order of a build."""
        yield counts.compare_files(self._a, self._b)
        settings = ("metadata.json",) if "plan.json" in self._lacking else ("plan.json",)
        yield self._where("settings", settings, counts.compare_settings)
        yield self._where("plan", ("plan.json",), counts.compare_plan)
        if self._captures is not None:
            self._on_step("sample", None)
            yield from recorded.compare_samples(*self._captures, self._tolerance)
        self._on_step("centroids", None)
        yield self._where("centroids", ("centroids.pt",), self._centroids)
        for name, comparison in (("buckets", codec.compare_buckets), ("avg_residual", codec.compare_average)):
            yield self._where(name, (f"{name}.pt",), partial(comparison, tolerance=self._tolerance))
        yield self._where("doclens", self._absent("doclens."), counts.compare_doclens)
        yield from self._tokens()
        yield self._where("metadata", self._absent("metadata.json"), counts.compare_metadata)

    def rankings(self, queries: Path, top_k: int) -> Finding:
        """Return how the best documents of queries compare."""
        obstacle = self._obstacle
        if obstacle:
            return Finding("rankings", "not compared", obstacle)
        embeddings = rankings.load_queries(queries, self._a.centroids.shape[1])
        on_tokens = self._on_step("rankings", int(self._a.lengths.sum() + self._b.lengths.sum()))
        return rankings.compare_rankings(self._a, self._b, embeddings, top_k, self._tolerance, on_tokens)

    def _tokens(self) -> Iterator[Finding]:
        obstacle = self._obstacle
        if obstacle:
            for artifact in ("codes", "residuals"):
                absent = self._absent(f"{artifact}.pt")
                yield _missing(artifact, absent) if absent else Finding(artifact, "not compared", obstacle)
            yield Finding("ivf", "not compared", obstacle)
            return
        a, b, total = self._a, self._b, int(torch.minimum(self._a.lengths.sum(), self._b.lengths.sum()))
        if self._captures is not None:
            yield recorded.compare_embeddings(a, b, self._captures, self._tolerance, self._on_step("embeddings", total))
        codes, residuals, reconstruction = tokens.compare_tokens(
            a, b, self._matching, self._tolerance, self._captures, self._on_step("tokens", total)
        )
        yield from (codes, residuals)
        self._on_step("inverted file", None)
        yield self._where("ivf", ("ivf.pid.pt",), partial(inverted.compare_ivf, matching=self._matching, codes=codes))
        yield reconstruction

    def _centroids(self, a: IndexFolder, b: IndexFolder) -> Finding:
        shapes = [list(folder.centroids.shape) for folder in (a, b)]
        if shapes[0][1] != shapes[1][1]:
            text = f"{shapes[0][1]} and {shapes[1][1]} dimensions"
            return Finding("centroids", "differs", text, {"shapes": shapes})
        return codec.compare_centroids(a, b, self._matching, self._tolerance)

    @cached_property
    def _matching(self) -> Matching:
        return match(self._a.centroids, self._b.centroids)

    @cached_property
    def _obstacle(self) -> str:
        """What keeps tokens from being compared; empty: nothing."""
        needed = [name for name in self._lacking if name.endswith((".codes.pt", ".residuals.pt"))]
        needed += [*self._absent("doclens."), *self._absent("centroids.pt"), *self._absent("buckets.pt")]
        if needed:
            return f"without {', '.join(needed)}"
        widths = [folder.centroids.shape[1] for folder in (self._a, self._b)]
        return "" if widths[0] == widths[1] else f"centroids have {widths[0]} and {widths[1]} dimensions"

    def _absent(self, part: str) -> tuple[str, ...]:
        return tuple(name for name in self._lacking if part in name)

    def _where(
        self, artifact: str, names: Sequence[str], comparison: Callable[[IndexFolder, IndexFolder], Finding]
    ) -> Finding:
        """Return the comparison of an artifact, or that one of its files is missing."""
        absent = [name for name in names if name in self._lacking]
        return _missing(artifact, absent) if absent else comparison(self._a, self._b)


def _missing(artifact: str, names: Sequence[str]) -> Finding:
    return Finding(artifact, "missing", f"{', '.join(names)} not in both folders")
