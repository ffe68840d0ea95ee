"""Builds of an index that are killed at a stage, each in a process of its own.

Run with a checkpoint, a folder with one root for each stage in which an index is, and a folder without one. It prints
by which signal each build ended.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_colbert
import torch

FIRST, SECOND = tiny_colbert.passages(), tiny_colbert.passages(90)[::-1]
"""What the index has, and what it is to have."""

CHUNK = 40
"""Passages of a chunk, so that there are some."""


def die(*_: Any, **__: Any) -> Any:
    """End this process as ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str, last: Callable[..., bool] = lambda *_: True) -> Callable[[], None]:
    """Die where ``owner.name`` is called with arguments that ``last`` accepts."""

    def arm() -> None:
        own = getattr(owner, name)
        setattr(owner, name, lambda *given, **named: die() if last(*given) else own(*given, **named))

    return arm


def half(name: str) -> Callable[[], None]:
    """Die with half of a file of tensors written."""

    def arm() -> None:
        own = torch.save

        def save(tensors: Any, path: str) -> None:
            own(tensors, path)
            if os.path.basename(path) == name:
                os.truncate(path, os.path.getsize(path) // 2)
                die()

        torch.save = save

    return arm


def stages() -> dict[str, Callable[[], None]]:
    """Return what kills a build, by stage, in the order of the stages."""
    import ujson
    from colbert.indexing import collection_indexer
    from li_plugins_colbert import staging

    def replaces(name: str) -> Callable[..., bool]:
        return lambda source, target: os.path.basename(target) == name

    return {
        "sample": half("sample.0.pt"),
        "plan": before(ujson, "dumps", lambda record, *_: "num_embeddings_est" in record),
        "kmeans": before(collection_indexer, "compute_faiss_kmeans"),
        "codec": half("buckets.pt"),
        "first chunk": half("0.codes.pt"),
        "second chunk": half("1.residuals.pt"),
        "record": before(os, "replace", replaces("1.metadata.json")),
        "ivf": half("ivf.pid.pt"),
        "metadata": before(os, "replace", replaces("metadata.json")),
        "exchange": before(staging, "_exchange"),
        "removal": before(shutil, "rmtree", lambda folder, *_: Path(folder).exists()),
    }


def build(checkpoint: Path, root: Path, texts: list[str], overwrite: Any = "force_silent_overwrite") -> Path:
    """Build an index of several chunks."""
    from colbert.data import Collection

    own = Collection.get_chunksize
    Collection.get_chunksize = lambda self: CHUNK
    try:
        return tiny_colbert.build(checkpoint, root, texts, overwrite=overwrite)
    finally:
        Collection.get_chunksize = own


def main(checkpoint: Path, indexed: Path, empty: Path) -> None:
    """Kill a build in each stage, over an index and where there is none."""
    import li_plugins

    torch.set_num_threads(1)  # threads do not survive the fork
    li_plugins.enable("colbert", strict=True)
    found: dict[str, int] = {}
    for folder in (indexed, empty):
        for stage, arm in stages().items():
            child = os.fork()
            if not child:
                try:
                    arm()
                    build(checkpoint, folder / stage, SECOND)
                finally:
                    os._exit(1)
            _, status = os.waitpid(child, 0)
            found[f"{folder.name}/{stage}"] = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    print("found", json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
