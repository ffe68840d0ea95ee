"""What ``index-diff capture`` leaves in an index folder: what a build had in its hands and the index does not keep."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from li_plugins.errors import BadInput
from li_plugins.index_diff.folder import IndexFolder, load

FOLDER = "capture"
"""Inside an index folder; the library does not look at it."""

MANIFEST, ENVIRONMENT, PASSAGES, RNG, CENTROIDS = (
    "manifest.json", "environment.json", "sampled_passages.pt", "rng.pt", "centroids.pt",
)  # fmt: skip
SAMPLE, EMBEDDINGS, LAYERS = "sample.{}.pt", "{}.embeddings.pt", "layers.pt"

_REMEDY = "build the index again with `li-plugins index-diff capture`"


class Capture:
    """The artifacts of one build, read from ``INDEX/capture``.

    Parameters
    ----------
    index
        The index folder.

    Raises
    ------
    BadInput
        When there is no finished capture, or a file is missing, truncated or foreign; the error names the file.
    """

    def __init__(self, index: str | Path) -> None:
        self.path = Path(index) / FOLDER
        manifest = self.path / MANIFEST
        if not manifest.is_file():
            found = "an unfinished capture" if self.path.is_dir() else "no capture"
            raise BadInput(f"{index} was built under capture", found, _REMEDY)
        self.files: dict[str, Any] = _json(manifest).get("files", {})
        self.environment: dict[str, Any] = _json(self.path / ENVIRONMENT)

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
        found = load(self._file(RNG))
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
        found = load(self._file(LAYERS))
        if not isinstance(found, dict) or not {"input_ids", "attention_mask", "layers", "weights"} <= found.keys():
            raise BadInput(f"{self.path / LAYERS} holds hidden states", type(found).__name__, _REMEDY)
        return found

    def _tensor(self, name: str, rank: int) -> Tensor:
        found = load(self._file(name))
        if not isinstance(found, Tensor) or found.dim() != rank:
            kind = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise BadInput(f"{self.path / name} holds a tensor of {rank} dimensions", str(kind), _REMEDY)
        return found

    def _file(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise BadInput(f"{path} is part of the capture", "no such file", _REMEDY)
        return path


def capture_of(index: IndexFolder) -> Capture | None:
    """Return the capture in an index folder, or None when there is none."""
    return Capture(index.path) if (index.path / FOLDER / MANIFEST).is_file() else None


def write_manifest(folder: Path) -> None:
    """Write what the folder's files hold: their shapes, dtypes and sha256."""
    files = {}
    for path in sorted(folder.glob("*.pt")):
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        about: dict[str, Any] = {"sha256": _sha256(path)}
        if isinstance(found, Tensor):
            about |= {"shape": list(found.shape), "dtype": str(found.dtype).removeprefix("torch.")}
        files[path.name] = about
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # missing, no UTF-8, or no JSON
        raise BadInput(f"{path} is a JSON file of a capture", str(error), _REMEDY) from error
    if not isinstance(found, dict):
        raise BadInput(f"{path} holds a JSON object", type(found).__name__, _REMEDY)
    return found
