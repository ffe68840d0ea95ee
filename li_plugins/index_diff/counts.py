"""Files, settings, counts and lengths: what two folders say in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from li_plugins.index_diff.finding import Finding
from li_plugins.index_diff.folder import IndexFolder

OF_A_RUN = frozenset(
    (
        "name", "root", "experiment", "index_root", "index_name", "index_path", "index_location", "checkpoint",
        "collection", "queries", "triples", "overwrite", "resume", "rank", "nranks", "gpus", "avoid_fork_if_possible",
        "meta", "model_name",
    )
)  # fmt: skip
"""Settings that say where and as what a build ran; the numbers of an index do not depend on them."""

OF_ANOTHER_TASK = frozenset(
    (
        "ncells", "centroid_score_threshold", "ndocs", "load_index_with_mmap", "query_maxlen", "query_token",
        "query_token_id", "attend_to_mask_tokens", "interaction", "bsize", "accumsteps", "lr", "maxsteps", "save_every",
        "warmup", "warmup_bert", "relu", "nway", "use_ib_negatives", "reranker", "distillation_alpha", "ignore_scores",
    )
)  # fmt: skip
"""Settings of search and training, which are stored with those of the index."""


def compare_files(a: IndexFolder, b: IndexFolder) -> Finding:
    """Compare the names of an index's files; strangers in a folder are told of and do not count."""
    only = [sorted(one.names - other.names - one.strangers) for one, other in ((a, b), (b, a))]
    lacking = [sorted(folder.expected - folder.names) for folder in (a, b)]
    strangers = [sorted(folder.strangers) for folder in (a, b)]
    figures = {"only_in_a": only[0], "only_in_b": only[1], "strangers": strangers}
    parts = [f"{side} lacks {', '.join(names)}" for side, names in zip("AB", lacking, strict=True) if names]
    parts += [
        f"only in {side}: {', '.join(names)}"
        for side, names in zip("AB", only, strict=True)
        if names and not lacking["BA".index(side)]
    ]
    state: Any = "missing" if parts else "identical"
    if not parts:
        parts = [f"{len(a.names - a.strangers)} in both"]
    parts += [f"not of an index, in {side}: {', '.join(names)}" for side, names in zip("AB", strangers, strict=True)
              if names]  # fmt: skip
    return Finding("files", state, "; ".join(parts), figures)


def compare_settings(a: IndexFolder, b: IndexFolder) -> Finding:
    """Compare the settings that the numbers of an index depend on."""
    name = "plan.json" if "plan.json" in a.names & b.names else "metadata.json"
    mine, theirs = (_object(folder.json(name).get("config")) for folder in (a, b))
    keys = (mine.keys() | theirs.keys()) - OF_A_RUN - OF_ANOTHER_TASK
    changed = {key: [mine.get(key), theirs.get(key)] for key in sorted(keys) if mine.get(key) != theirs.get(key)}
    figures: dict[str, Any] = {"changed": changed}
    notes = ""
    if mine.get("checkpoint") != theirs.get("checkpoint"):
        figures["checkpoints"] = [mine.get("checkpoint"), theirs.get("checkpoint")]
        notes = "; the checkpoint has another path"
    if not changed:
        return Finding("settings", "identical", "the same" + notes, figures)
    text = ", ".join(f"{key}: {old} and {new}" for key, (old, new) in changed.items())
    return Finding("settings", "differs", text + notes, figures)


def compare_plan(a: IndexFolder, b: IndexFolder) -> Finding:
    """Compare what was estimated from the sample: how many partitions, embeddings, tokens of a passage."""
    return _numbers("plan", a, b, "plan.json", ("num_partitions", "num_embeddings_est", "avg_doclen_est"))


def compare_metadata(a: IndexFolder, b: IndexFolder) -> Finding:
    """Compare what was counted at the end, of the whole and, where both have as many, of each chunk."""
    found = _numbers("metadata", a, b, "metadata.json", ("num_partitions", "num_embeddings", "avg_doclen"))
    if a.chunks != b.chunks:
        return found
    names = [f"{chunk}.metadata.json" for chunk in range(a.chunks)]
    other = [name for name in names if a.json(name) != b.json(name)]
    if not other:
        return found
    text = f"{found.text}; {', '.join(other[:3])}{' and others' if len(other) > 3 else ''} not the same"
    return Finding("metadata", "differs", text, {**found.figures, "chunks": other})


def compare_doclens(a: IndexFolder, b: IndexFolder) -> Finding:
    """Compare the passages' lengths, exactly."""
    mine, theirs = a.lengths, b.lengths
    both = min(len(mine), len(theirs))
    other = int((mine[:both] != theirs[:both]).sum())
    figures: dict[str, Any] = {
        "passages": [len(mine), len(theirs)],
        "tokens": [int(mine.sum()), int(theirs.sum())],
        "other": other,
    }
    parts = [f"{len(mine):,} and {len(theirs):,} passages"] if len(mine) != len(theirs) else []
    if other:
        first = int((mine[:both] != theirs[:both]).nonzero()[0, 0])
        lengths = f"{int(mine[first])} and {int(theirs[first])} tokens"
        parts.append(f"{other:,} of {both:,} passages have another length, the first is {first} ({lengths})")
    if parts:
        return Finding("doclens", "differs", "; ".join(parts), figures)
    text = f"the same lengths of {both:,} passages, {figures['tokens'][0]:,} tokens"
    if a.chunks != b.chunks:
        text += f", in {a.chunks} and {b.chunks} chunks"
    return Finding("doclens", "identical", text, figures)


def _numbers(artifact: str, a: IndexFolder, b: IndexFolder, name: str, keys: tuple[str, ...]) -> Finding:
    mine, theirs = ({key: folder.json(name).get(key) for key in keys} for folder in (a, b))
    changed = {key: [mine[key], theirs[key]] for key in keys if not _equal(mine[key], theirs[key])}
    if not changed:
        text = ", ".join(f"{key} {_short(value)}" for key, value in mine.items())
        return Finding(artifact, "identical", text, {"values": mine})
    text = ", ".join(f"{key}: {_short(old)} and {_short(new)}" for key, (old, new) in changed.items())
    return Finding(artifact, "differs", text, {"changed": changed})


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return abs(a - b) <= 1e-6 * max(abs(a), abs(b))  # estimates pass through float32 on their way
    return bool(a == b)


def _short(value: Any) -> str:
    return f"{value:,.2f}".rstrip("0").rstrip(".") if isinstance(value, (int, float)) else str(value)


def _object(config: Any) -> Mapping[str, Any]:
    return config if isinstance(config, dict) else {}
