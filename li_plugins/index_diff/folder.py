"""An index folder of colbert-ai, read without the library: every file checked, no more than a chunk at a time."""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from li_plugins.errors import BadInput
from li_plugins.index_diff import saved

CODEC_FILES = ("centroids.pt", "buckets.pt", "avg_residual.pt")
CHUNK_FILES = ("{}.codes.pt", "{}.residuals.pt", "doclens.{}.json", "{}.metadata.json")
_OF_AN_INDEX = re.compile(r"(\d+\.(codes|residuals)\.pt|doclens\.\d+\.json|\d+\.metadata\.json|sample\.\d+\.pt)")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Codec(NamedTuple):
    """What turns codes and bytes into embeddings: ``centroids [K, d]`` and ``weights [2**nbits]`` in float32."""

    centroids: Tensor
    weights: Tensor
    nbits: int


class IndexFolder:
    """The artifacts of one index.

    Parameters
    ----------
    path
        The folder that holds ``metadata.json``, ``centroids.pt`` and the chunks.

    Raises
    ------
    BadInput
        When the folder is no index, or a file is missing, truncated, damaged or holds something else; the error names
        the file. Files are read, and judged, when they are asked for.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._checked: set[str] = set()
        if not self.path.is_dir():
            raise BadInput(f"{self.path} is an index folder", "no folder of this name", "pass .../indexes/NAME")
        self.names = frozenset(entry.name for entry in self.path.iterdir() if entry.is_file())
        if not {"metadata.json", "plan.json", "centroids.pt"} & self.names:
            raise BadInput(
                f"{self.path} is an index folder of colbert-ai",
                "neither metadata.json, plan.json nor centroids.pt in it",
                "pass the folder that the indexer wrote, .../indexes/NAME",
            )

    def __str__(self) -> str:
        return str(self.path)

    @cached_property
    def chunks(self) -> int:
        """How many chunks the index has, by ``metadata.json`` or, before that is written, by ``plan.json``."""
        name = "metadata.json" if "metadata.json" in self.names else "plan.json"
        count = self.json(name).get("num_chunks")
        if not isinstance(count, int) or count < 1:
            raise self._foreign(name, "num_chunks is a positive number", repr(count))
        return count

    @property
    def expected(self) -> frozenset[str]:
        """The names of the files that a complete index of so many chunks has."""
        chunk_files = (name.format(chunk) for chunk in range(self.chunks) for name in CHUNK_FILES)
        return frozenset(("plan.json", "metadata.json", *CODEC_FILES, "ivf.pid.pt", *chunk_files))

    @property
    def strangers(self) -> frozenset[str]:
        """The names of files that are none of an index's."""
        return frozenset(name for name in self.names if name not in self.expected and not _OF_AN_INDEX.fullmatch(name))

    def json(self, name: str) -> dict[str, Any]:
        """Return the object that a JSON file holds."""
        data = self._json(name)
        if not isinstance(data, dict):
            raise self._foreign(name, "it holds a JSON object", type(data).__name__)
        return data

    @cached_property
    def centroids(self) -> Tensor:
        """``[K, d]``, in the dtype of the file (float16)."""
        return self._matrix(self._load("centroids.pt"), "centroids.pt", _FLOATS)

    @cached_property
    def buckets(self) -> tuple[Tensor, Tensor]:
        """Cutoffs ``[2**nbits - 1]`` and weights ``[2**nbits]``."""
        found = self._load("buckets.pt")
        if (
            not isinstance(found, (tuple, list))
            or len(found) != 2
            or any(not isinstance(part, Tensor) or part.dim() != 1 or part.dtype not in _FLOATS for part in found)
            or len(found[1]) not in (2, 4, 16, 256)
            or len(found[0]) != len(found[1]) - 1
        ):
            raise self._foreign("buckets.pt", "it holds cutoffs and weights of 1, 2, 4 or 8 bits", _kind(found))
        return found[0], found[1]

    @property
    def nbits(self) -> int:
        """Bits of a dimension."""
        return len(self.buckets[1]).bit_length() - 1

    @property
    def average_residual(self) -> Tensor:
        """``[1]``; the file has a number or one of these."""
        found = self._load("avg_residual.pt")
        if not isinstance(found, Tensor) or found.numel() != 1 or found.dtype not in _FLOATS:
            raise self._foreign("avg_residual.pt", "it holds one number", _kind(found))
        return found.reshape(1)

    @property
    def codec(self) -> Codec:
        """What decodes this index."""
        return Codec(self.centroids.float(), self.buckets[1].float(), self.nbits)

    def doclens(self, chunk: int) -> Tensor:
        """Return the numbers of tokens of a chunk's passages, ``[passages]`` int64."""
        name = f"doclens.{chunk}.json"
        found = self._json(name)
        if not isinstance(found, list) or any(not isinstance(length, int) or length < 0 for length in found):
            raise self._foreign(name, "it holds a list of lengths", _kind(found))
        return torch.tensor(found, dtype=torch.int64)

    @cached_property
    def lengths(self) -> Tensor:
        """The numbers of tokens of all passages, ``[passages]`` int64: what is kept of a chunk."""
        return torch.cat([self.doclens(chunk) for chunk in range(self.chunks)])

    def codes(self, chunk: int) -> Tensor:
        """Return the codes of a chunk's tokens, ``[tokens]`` int32, mapped from the file."""
        name = f"{chunk}.codes.pt"
        found = self._load(name)
        if not isinstance(found, Tensor) or found.dim() != 1 or found.dtype not in (torch.int32, torch.int64):
            raise self._foreign(name, "it holds int32 codes [tokens]", _kind(found))
        tokens = int(self.doclens(chunk).sum())
        if len(found) != tokens:
            raise self._foreign(name, f"it has {tokens} tokens, as doclens.{chunk}.json says", str(len(found)))
        if len(found):
            low, high = (int(bound) for bound in found.aminmax())
            if low < 0 or high >= len(self.centroids):
                raise self._foreign(name, f"codes lie below {len(self.centroids)}, the centroids", f"{low} to {high}")
        return found

    def residuals(self, chunk: int) -> Tensor:
        """Return the bytes of a chunk's tokens, ``[tokens, d * nbits / 8]`` uint8, mapped from the file."""
        name = f"{chunk}.residuals.pt"
        found = self._matrix(self._load(name), name, (torch.uint8,))
        shape = (int(self.doclens(chunk).sum()), self.centroids.shape[1] * self.nbits // 8)
        if found.shape != shape:
            raise self._foreign(
                name,
                f"it has the shape {list(shape)}, by doclens.{chunk}.json, centroids.pt and buckets.pt",
                str(list(found.shape)),
            )
        return found

    @cached_property
    def ivf(self) -> tuple[Tensor, Tensor]:
        """Passages of all cells, one cell after the other, without the padding, and the cells' lengths ``[K]``."""
        found = self._load("ivf.pid.pt")
        if (
            not isinstance(found, (tuple, list))
            or len(found) != 2
            or any(not isinstance(part, Tensor) or part.dim() != 1 or part.is_floating_point() for part in found)
        ):
            raise self._foreign("ivf.pid.pt", "it holds passages and lengths of cells", _kind(found))
        passages, lengths = found[0], found[1].long()
        total = int(lengths.sum())
        if len(lengths) != len(self.centroids) or total > len(passages):
            raise self._foreign(
                "ivf.pid.pt",
                f"it has a cell for each of {len(self.centroids)} centroids, {total} passages in all",
                f"{len(lengths)} cells, {len(passages)} passages",
            )
        return passages[:total], lengths

    def _json(self, name: str) -> Any:
        path = self._file(name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:  # unreadable, no UTF-8, or no JSON
            raise BadInput(
                f"{path} is a JSON file", str(error), f"it is truncated or foreign: {saved.REMEDY}"
            ) from error

    def _load(self, name: str) -> Any:
        path = self._file(name)
        if name not in self._checked:
            saved.check(path)
            self._checked.add(name)
        return saved.load(path)

    def _file(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise BadInput(f"{path} is part of the index", "no such file", saved.REMEDY)
        return path

    def _matrix(self, found: Any, name: str, dtypes: tuple[torch.dtype, ...]) -> Tensor:
        if not isinstance(found, Tensor) or found.dim() != 2 or found.dtype not in dtypes:
            kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise self._foreign(name, f"it holds a matrix of {kinds}", _kind(found))
        return found

    def _foreign(self, name: str, asked: str, found: str) -> BadInput:
        return BadInput(f"{self.path / name}: {asked}", found, f"it is none of this index's: {saved.REMEDY}")


def _kind(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"
    if isinstance(found, (tuple, list)):
        return f"{type(found).__name__} of {len(found)}: {', '.join(_kind(part) for part in found[:3])}"
    return type(found).__name__
