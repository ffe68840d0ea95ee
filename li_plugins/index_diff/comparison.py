"""Two index folders, artifact by artifact in the order in which a build makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from li_plugins.index_diff import codec, counts, inverted, rankings, recorded, tokens
from li_plugins.index_diff.capture import Capture, capture_of
from li_plugins.index_diff.finding import Finding, Tolerance
from li_plugins.index_diff.folder import CODEC_FILES, IndexFolder
from li_plugins.index_diff.lineage import diagnose
from li_plugins.index_diff.matching import match
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
        When a folder is no index, or a file in it is truncated or foreign.
    """
    folders = IndexFolder(a), IndexFolder(b)
    tolerance = tolerance or Tolerance()
    captures = capture_of(folders[0]), capture_of(folders[1])
    both = (captures[0], captures[1]) if captures[0] and captures[1] else None
    findings = list(_findings(*folders, both, Path(queries) if queries else None, top_k, tolerance, on_step))
    return Report(str(a), str(b), tuple(findings), diagnose(findings), recorded.notes(*captures))


def _findings(
    a: IndexFolder,
    b: IndexFolder,
    captures: tuple[Capture, Capture] | None,
    queries: Path | None,
    top_k: int,
    tolerance: Tolerance,
    on_step: Step,
) -> Iterator[Finding]:
    files = counts.compare_files(a, b)
    yield files
    lacking = {name for folder in (a, b) for name in folder.expected - folder.names}
    counted = [name for name in sorted(lacking) if name.endswith("metadata.json")]
    chunked = [name for name in sorted(lacking - {*counted}) if name[:1].isdigit() or name.startswith("doclens")]

    def absent(*names: str) -> str:
        return ", ".join(name for name in names if name in lacking)

    for artifact, name, comparison in (
        ("settings", "plan.json" if "plan.json" not in lacking else "metadata.json", counts.compare_settings),
        ("plan", "plan.json", counts.compare_plan),
    ):
        yield _missing(artifact, absent(name)) if name in lacking else comparison(a, b)
    if captures is not None:
        on_step("sample", None)
        yield from recorded.compare_samples(*captures, tolerance)
    if lacking & set(CODEC_FILES):
        for artifact, name in (("centroids", CODEC_FILES[0]), ("buckets", CODEC_FILES[1]),
                               ("avg_residual", CODEC_FILES[2])):  # fmt: skip
            if name in lacking:
                yield _missing(artifact, name)
        yield from _incomparable(f"without {absent(*CODEC_FILES)}", "codes", "residuals", "ivf")
        return
    on_step("centroids", None)
    same_width = a.centroids.shape[1] == b.centroids.shape[1]
    if same_width:
        matching = match(a.centroids, b.centroids)
        yield codec.compare_centroids(a, b, matching, tolerance)
    else:
        widths = f"{a.centroids.shape[1]} and {b.centroids.shape[1]} dimensions"
        yield Finding("centroids", "differs", widths, {"shapes": [list(x.centroids.shape) for x in (a, b)]})
    yield codec.compare_buckets(a, b, tolerance)
    yield codec.compare_average(a, b, tolerance)
    if chunked:
        yield _missing("codes", ", ".join(chunked))
        return
    yield counts.compare_doclens(a, b)
    if not same_width:
        yield from _incomparable("centroids have other dimensions", "codes", "residuals", "ivf", "reconstruction")
    else:
        total = int(torch.minimum(a.lengths.sum(), b.lengths.sum()))
        if captures is not None:
            yield recorded.compare_embeddings(a, b, captures, tolerance, on_step("embeddings", total))
        found = tokens.compare_tokens(a, b, matching, tolerance, captures, on_step("tokens", total))
        yield from found[:2]
        on_step("inverted file", None)
        yield (
            _missing("ivf", "ivf.pid.pt") if "ivf.pid.pt" in lacking else inverted.compare_ivf(a, b, matching, found[0])
        )
        yield found[2]
    yield _missing("metadata", ", ".join(counted)) if counted else counts.compare_metadata(a, b)
    if queries is not None:
        if not same_width:
            yield from _incomparable("no query has both dimensions", "rankings")
            return
        embeddings: Tensor = rankings.load_queries(queries, a.centroids.shape[1])
        both = int(a.lengths.sum() + b.lengths.sum())
        yield rankings.compare_rankings(a, b, embeddings, top_k, tolerance, on_step("rankings", both))


def _missing(artifact: str, names: str) -> Finding:
    return Finding(artifact, "missing", f"{names} is not in both folders")


def _incomparable(reason: str, *artifacts: str) -> Iterator[Finding]:
    for artifact in artifacts:
        yield Finding(artifact, "not compared", reason)
