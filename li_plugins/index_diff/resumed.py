"""A build that is resumed: whether it goes on with the capture that lies in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from li_plugins.errors import BadInput
from li_plugins.index_diff import capture, saved
from li_plugins.index_diff.environment import changes
from li_plugins.index_diff.folder import CHUNK_FILES, CODEC_FILES, IndexFolder


def is_trained(index: Path) -> bool:
    """Return whether a build that is resumed here finds a codec, and trains none."""
    return all((index / name).is_file() for name in CODEC_FILES)


def obstacle(index: Path, about: Mapping[str, Any]) -> str:
    """Return why the capture that lies here is none of the build that is resumed; empty: it is, and is gone on with.

    Parameters
    ----------
    index
        The folder, in which there is a codec.
    about
        The environment of now and what is injected: those of the capture, if anything is left to record or inject.
    """
    try:
        return _obstacle(IndexFolder(index), index / capture.FOLDER, about)
    except BadInput as error:
        return str(error)


def _obstacle(index: IndexFolder, recorded: Path, about: Mapping[str, Any]) -> str:
    if not recorded.is_dir():
        return "nothing was recorded of its beginning"
    chunks = range(index.chunks)
    there = [chunk for chunk in chunks if index.names.issuperset(name.format(chunk) for name in CHUNK_FILES)]
    is_finished = (recorded / capture.MANIFEST).is_file()
    found = _of_another_end(index, recorded) if is_finished else _of_another_beginning(index, recorded, there)
    if found or (len(there) == len(chunks) and not about["injected"]):
        return found
    changed = changes(capture.read_json(recorded / capture.ENVIRONMENT), about)
    return f"its beginning was recorded with another {', '.join(changed)}" if changed else ""


def _of_another_end(index: IndexFolder, recorded: Path) -> str:
    """Say what tells a finished capture from one of this index, of which chunks may have been removed since."""
    manifest = capture.read_manifest(recorded)
    other = [name for name, digest in capture.digests(index.path).items() if manifest.index.get(name) != digest]
    if other:
        return f"the capture in it is not of its {capture.named(other)}"
    for name in manifest.files:
        capture.check(recorded / name, manifest.files)
    return ""


def _of_another_beginning(index: IndexFolder, recorded: Path, there: list[int]) -> str:
    """Say what tells an unfinished capture from one of this index; without a manifest their content ties them."""
    absent = capture.lacking(recorded, there)
    if absent:
        return f"the capture in it has no {capture.named(absent)}"
    if not torch.equal(_tensor(recorded / capture.CENTROIDS).half(), index.centroids.half()):
        return "the capture in it has other centroids"
    for chunk in there:
        if len(_tensor(recorded / capture.EMBEDDINGS.format(chunk))) != len(index.codes(chunk)):
            return f"the capture in it has other embeddings of chunk {chunk}"
    return ""


def _tensor(path: Path) -> Tensor:
    saved.check(path)
    found = saved.load(path)
    if not isinstance(found, Tensor):
        raise BadInput(f"{path} holds a tensor", type(found).__name__, "build the index from its start")
    return found
