"""The files of colbert-ai's indexes: which of them is not as it was written, and what to do then.

Names, order and content are the library's: metadata.json comes last, so that an index without it is unfinished.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from li_plugins.errors import LiPluginsError
from li_plugins.ops.checksums import flaw

METADATA, PLAN, IVF = "metadata.json", "plan.json", "ivf.pid.pt"
CODEC = ("centroids.pt", "buckets.pt", "avg_residual.pt")
"""In the order in which they are written."""

ANEW = "build the index again with overwrite=True"
FROM_CHUNKS = "build the index with overwrite='resume': it is made from the chunks, which stay"


class DamagedIndex(LiPluginsError, RuntimeError):
    """A file of an index is missing, cannot be read, or is not what was written."""

    def __init__(self, file: str, found: str, remedy: str) -> None:
        self.file, self.found, self.remedy = file, found, remedy
        super().__init__(f"{file}: {found}; {remedy}")


def chunk_files(chunk: int) -> tuple[str, ...]:
    """Return the names of a chunk's files in the order in which they are written."""
    return f"{chunk}.codes.pt", f"{chunk}.residuals.pt", f"doclens.{chunk}.json", f"{chunk}.metadata.json"


def of_chunk(chunk: int) -> str:
    """Say what to do where a file of a chunk is damaged."""
    return f"remove {', '.join(chunk_files(chunk))} and build the index with overwrite='resume', or {ANEW}"


def unreadable(file: str) -> str | None:
    """Return why a file of an index cannot be read, ``None`` where it can."""
    try:
        found = _read(file)
        name = os.path.basename(file)
        if name == METADATA and not isinstance(found, dict):
            return f"it holds no record but {type(found).__name__}"
        if name == METADATA and type(found.get("num_chunks")) is not int:
            return f"it tells of {found.get('num_chunks')!r} chunks"
        if name.startswith("doclens.") and not (isinstance(found, list) and all(type(n) is int for n in found)):
            return "it holds no list of lengths"
    except FileNotFoundError:
        return "it is missing"
    except Exception as error:  # of a file that is cut off, torch, pickle and json make what they like
        size = os.path.getsize(file) if os.path.isfile(file) else 0
        return f"it cannot be read, {size} bytes: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return altered(file)


def altered(file: str) -> str | None:
    """Return what tells that a file of tensors is not as it was written."""
    found = None if file.endswith(".json") else flaw(file)
    return f"its bytes are not those that were written: {found}" if found else None


def is_finished(folder: str) -> bool:
    """Return whether a build of an index came to its end."""
    return os.path.exists(os.path.join(folder, METADATA))


def has_codec(folder: str) -> bool:
    """Return whether the centroids of an index are trained, and can be read."""
    return not any(unreadable(os.path.join(folder, name)) for name in CODEC)


def damage(folder: str, *, is_loaded: bool = False, is_mapped: bool = False) -> DamagedIndex | None:
    """Return the first file of an index that a searcher needs and that is not as it was written, ``None`` without one.

    Reads every byte of them, once and a little at a time.

    Parameters
    ----------
    is_loaded
        Whether the library has just read the files: only what it does not look at can be wrong.
    is_mapped
        Whether codes and residuals stay in their files, which may be larger than memory: they are not read.
    """
    if not is_finished(folder) and os.path.exists(os.path.join(folder, PLAN)):
        unfinished = "it is missing, and is written last: the build of this index did not come to its end"
        return DamagedIndex(
            os.path.join(folder, METADATA), unfinished, f"{FROM_CHUNKS}, or {ANEW}" if has_codec(folder) else ANEW
        )
    for name, remedy in _needed(folder):
        file = os.path.join(folder, name)
        if is_mapped and name.endswith((".codes.pt", ".residuals.pt")):
            continue
        found = altered(file) if is_loaded else unreadable(file)
        if found:
            return DamagedIndex(file, found, remedy)
    return _miscounted(folder)


def _needed(folder: str) -> Iterator[tuple[str, str]]:
    """Yield what a searcher reads, and what to do if it cannot; metadata.json first, which names the chunks."""
    yield METADATA, FROM_CHUNKS
    for name in CODEC:
        yield name, ANEW
    is_old = not os.path.exists(os.path.join(folder, IVF)) and os.path.exists(os.path.join(folder, "ivf.pt"))
    yield "ivf.pt" if is_old else IVF, FROM_CHUNKS
    for chunk in _chunks(folder):
        *files, _ = chunk_files(chunk)
        for name in files:
            yield name, of_chunk(chunk)


def _chunks(folder: str) -> range:
    return range(_read(os.path.join(folder, METADATA))["num_chunks"])


def _miscounted(folder: str) -> DamagedIndex | None:
    """Return a file that has another number of embeddings than those beside it."""
    total = 0
    for chunk in _chunks(folder):
        *files, _ = chunk_files(chunk)  # not its record: the library's updater leaves others than searchers can read
        counts = {name: _embeddings(os.path.join(folder, name)) for name in files}
        [(wanted, agreeing)] = Counter(counts.values()).most_common(1)
        for name, count in counts.items():
            if count != wanted:
                found = f"it has {count} embeddings, and {wanted} in {agreeing} of the other files of its chunk"
                return DamagedIndex(os.path.join(folder, name), found, of_chunk(chunk))
        total += wanted
    named = _read(os.path.join(folder, METADATA)).get("num_embeddings")
    if isinstance(named, (int, float)) and named >= total:  # the library's updater counts some twice
        return None
    found = f"it tells of {named!r} embeddings, the chunks have {total}"
    return DamagedIndex(os.path.join(folder, METADATA), found, FROM_CHUNKS)


def _embeddings(file: str) -> int:
    found = _read(file)
    return sum(found) if file.endswith(".json") else len(found)


def _read(file: str) -> Any:
    if not file.endswith(".json"):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    with open(file) as stream:
        return json.load(stream)
