"""What ``index-diff capture`` leaves in an index folder: what a build had in its hands and the index does not keep."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from li_plugins.errors import BadInput
from li_plugins.index_diff.folder import IndexFolder
from li_plugins.index_diff.saved import load

FOLDER = "capture"
"""Inside an index folder; the library does not look at it."""

MANIFEST, ENVIRONMENT, PASSAGES, RNG, CENTROIDS = (
    "manifest.json", "environment.json", "sampled_passages.pt", "rng.pt", "centroids.pt",
)  # fmt: skip
SAMPLE, EMBEDDINGS, LAYERS = "sample.{}.pt", "{}.embeddings.pt", "layers.pt"

_MADE = re.compile(r"centroids\.pt|buckets\.pt|avg_residual\.pt|\d+\.(codes|residuals)\.pt|doclens\.\d+\.json")
"""Files of an index that a build makes of what is captured: their sha256 ties the capture to the index."""

_REMEDY = "build the index again with `li-plugins index-diff capture`"


class ForeignCapture(BadInput):
    """A capture in the folder of an index that is not, or no longer, the one which was built under it."""


@dataclass(frozen=True)
class Manifest:
    """What a capture holds, by file, and the sha256 of the files of its index."""

    files: dict[str, Any]
    index: dict[str, str]


class Capture:
    """The artifacts of one build, read from ``INDEX/capture``; a file is compared with its sha256 first.

    Parameters
    ----------
    index
        The index folder.

    Raises
    ------
    ForeignCapture
        When it is not a capture of this index.
    BadInput
        When there is no finished capture, or a file is missing or not what was captured; the error names the file.
    """

    def __init__(self, index: str | Path) -> None:
        self.path = Path(index) / FOLDER
        if not (self.path / MANIFEST).is_file():
            found = "an unfinished capture" if self.path.is_dir() else "no capture"
            raise BadInput(f"{index} was built under capture", found, _REMEDY)
        manifest = read_manifest(self.path)
        self.files, built, there = manifest.files, manifest.index, digests(Path(index))
        if not built or there != built:
            asked = f"{self.path} is a capture of the index that it lies in"
            raise ForeignCapture(asked, _apart(there, built), f"delete it, or {_REMEDY}")
        self._checked: set[str] = set()
        self.environment: dict[str, Any] = read_json(self.file(ENVIRONMENT))

    @property
    def sampled_passages(self) -> Tensor:
        """The numbers of the passages in the sample, rising, int64."""
        return self._tensor(PASSAGES, 1)

    @cached_property
    def sample(self) -> Tensor:
        """The sample's embeddings, of one rank after the other, ``[n, d]`` float16."""
        ranks = sum(name.startswith("sample.") for name in self.files)
        return torch.cat([self._tensor(SAMPLE.format(rank), 2) for rank in range(max(ranks, 1))])

    @property
    def rng(self) -> dict[str, Tensor]:
        """The random states before the sample is shuffled, by generator: ``torch``, ``numpy``, ``python``."""
        found = load(self.file(RNG))
        if not isinstance(found, dict) or not all(isinstance(state, Tensor) for state in found.values()):
            raise BadInput(f"{self.path / RNG} holds random states", type(found).__name__, _REMEDY)
        return found

    @property
    def centroids(self) -> Tensor:
        """The centroids before they are rounded to the index's float16, ``[K, d]``."""
        return self._tensor(CENTROIDS, 2)

    def embeddings(self, chunk: int) -> Tensor:
        """Return the embeddings of a chunk before they are compressed, ``[tokens, d]`` float16."""
        return self._tensor(EMBEDDINGS.format(chunk), 2)

    @property
    def layers(self) -> dict[str, Any]:
        """The hidden states of some texts, as ``hidden.watch_layers`` wrote them."""
        found = load(self.file(LAYERS))
        if not isinstance(found, dict) or not {"input_ids", "attention_mask", "layers", "weights"} <= found.keys():
            raise BadInput(f"{self.path / LAYERS} holds hidden states", type(found).__name__, _REMEDY)
        return found

    def file(self, name: str) -> Path:
        """Return the path of a file, which is what was captured."""
        path = self.path / name
        if name not in self._checked:
            check(path, self.files)
            self._checked.add(name)
        return path

    def _tensor(self, name: str, rank: int) -> Tensor:
        found = load(self.file(name))
        if not isinstance(found, Tensor) or found.dim() != rank:
            kind = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise BadInput(f"{self.path / name} holds a tensor of {rank} dimensions", str(kind), _REMEDY)
        return found


def capture_of(index: IndexFolder) -> Capture | None:
    """Return the capture in an index folder, or None when there is none."""
    return Capture(index.path) if (index.path / FOLDER / MANIFEST).is_file() else None


def check(path: Path, files: dict[str, Any]) -> None:
    """Raise ``BadInput`` unless a file is what a manifest's ``files`` say."""
    if not path.is_file():
        raise BadInput(f"{path} is part of the capture", "no such file", _REMEDY)
    said = files.get(path.name)
    if not isinstance(said, dict) or said.get("sha256") != _sha256(path):
        found = "another sha256: it was changed or damaged" if said else "a file that the manifest does not name"
        raise BadInput(f"{path} is what was captured", found, f"copy the folder again, or {_REMEDY}")


def lacking(folder: Path, chunks: Iterable[int]) -> list[str]:
    """Return which files a capture of these chunks needs and does not have."""
    needed = (ENVIRONMENT, PASSAGES, SAMPLE.format(0), RNG, CENTROIDS, *map(EMBEDDINGS.format, chunks))
    return [name for name in needed if not (folder / name).is_file()]


def digests(index: Path) -> dict[str, str]:
    """Return the sha256 of the files of an index that tie a capture to it."""
    return {path.name: _sha256(path) for path in sorted(index.iterdir()) if _MADE.fullmatch(path.name)}


def write_manifest(folder: Path) -> None:
    """Write what the folder's files hold: their shapes, dtypes and sha256; and of which index they are."""
    files: dict[str, Any] = {ENVIRONMENT: {"sha256": _sha256(folder / ENVIRONMENT)}}
    for path in sorted(folder.glob("*.pt")):
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        files[path.name] = {"sha256": _sha256(path)}
        if isinstance(found, Tensor):
            files[path.name] |= {"shape": list(found.shape), "dtype": str(found.dtype).removeprefix("torch.")}
    save_manifest(folder, files)


def save_manifest(folder: Path, files: dict[str, Any]) -> None:
    """Write a manifest of these files, and of the index in whose folder they lie."""
    said = asdict(Manifest(files, digests(folder.parent)))
    (folder / MANIFEST).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Return what a capture's manifest says; of no index where it was written by a release that did not say."""
    said = read_json(folder / MANIFEST)
    files, index = said.get("files"), said.get("index", {})
    if not isinstance(files, dict) or not isinstance(index, dict):
        raise BadInput(f"{folder / MANIFEST} says what a capture holds", f"keys {', '.join(said)}", _REMEDY)
    return Manifest(files, index)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file of a capture holds."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # missing, no UTF-8, or no JSON
        raise BadInput(f"{path} is a JSON file of a capture", str(error), _REMEDY) from error
    if not isinstance(found, dict):
        raise BadInput(f"{path} holds a JSON object", type(found).__name__, _REMEDY)
    return found


def named(names: Sequence[str]) -> str:
    """Return a few of many names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _apart(there: dict[str, str], built: dict[str, str]) -> str:
    """Say what of an index is not what its captured build wrote."""
    if not built:
        return "a manifest that does not say of which index it is"
    changed = [name for name, digest in there.items() if built.get(name) != digest]
    absent = [name for name in built if name not in there]
    parts = [f"{named(changed)} of another build, or changed since"] if changed else []
    return ", and ".join([*parts, *([f"no {named(absent)}"] if absent else [])])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
