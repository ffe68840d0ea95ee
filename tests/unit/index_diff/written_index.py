"""Index folders as colbert-ai writes them, of embeddings that a test has: the obvious way, without the library."""

from __future__ import annotations

import json
import struct
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from li_plugins.index_diff.capture import write_manifest
from li_plugins.index_diff.recorder import rng

DIM, CENTROIDS = 32, 12


def embeddings(tokens: int, seed: int = 0) -> Tensor:
    """Return rows ``[tokens, DIM]`` around a few directions, float16 as the indexer has them."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(CENTROIDS, DIM, generator=generator)
    rows = directions[torch.randint(0, CENTROIDS, (tokens,), generator=generator)]
    return normalize(rows + 0.4 * torch.randn(tokens, DIM, generator=generator), dim=1).half()


def centroids(seed: int = 0) -> Tensor:
    """Return the directions that ``embeddings`` of the same seed lie around, ``[CENTROIDS, DIM]`` float16."""
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(CENTROIDS, DIM, generator=generator), dim=1).half()


def packed(buckets: np.ndarray, nbits: int) -> Tensor:
    """Return the bytes of buckets ``[n, d]``, as the library packs them: the lowest bit of each bucket first."""
    fields = (buckets[..., None] >> np.arange(nbits)) & 1
    return torch.from_numpy(np.packbits(fields.astype(np.uint8).reshape(-1)).reshape(len(buckets), -1))


@dataclass(frozen=True)
class Made:
    """An index in memory; ``write`` makes the folder."""

    rows: Tensor
    doclens: list[int]
    centroids: Tensor
    cutoffs: Tensor
    weights: Tensor
    codes: Tensor
    chunk_passages: int = 5
    settings: dict[str, Any] = field(default_factory=dict)
    residuals: Tensor | None = None

    @property
    def nbits(self) -> int:
        return len(self.weights).bit_length() - 1

    def with_codes(self, codes: Tensor) -> Made:
        """Return the index with other codes, and the residuals that these leave."""
        return replace(self, codes=codes)

    def reordered(self, order: Tensor) -> Made:
        """Return the index whose centroid ``i`` is this one's ``order[i]``."""
        return replace(self, centroids=self.centroids[order], codes=order.argsort()[self.codes.long()].int())

    def bytes(self) -> Tensor:
        if self.residuals is not None:
            return self.residuals
        rest = self.rows - self.centroids.float()[self.codes.long()]
        return packed(np.digitize(rest.numpy(), self.cutoffs.numpy(), right=True), self.nbits)

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        config = {
            "dim": DIM,
            "nbits": self.nbits,
            "kmeans_niters": 4,
            "doc_maxlen": 48,
            "root": str(folder),
            **self.settings,
        }
        chunks = [
            self.doclens[start : start + self.chunk_passages]
            for start in range(0, len(self.doclens), self.chunk_passages)
        ]
        ends = np.cumsum([0, *(sum(chunk) for chunk in chunks)])
        counts = {"num_chunks": len(chunks), "num_partitions": len(self.centroids)}
        average = sum(self.doclens) / len(self.doclens)
        plan = {"config": config, **counts, "num_embeddings_est": len(self.rows) * 1.0, "avg_doclen_est": average}
        (folder / "plan.json").write_text(json.dumps(plan))
        metadata = {"config": config, **counts, "num_embeddings": len(self.rows), "avg_doclen": average}
        (folder / "metadata.json").write_text(json.dumps(metadata))
        torch.save(self.centroids, folder / "centroids.pt")
        torch.save((self.cutoffs, self.weights), folder / "buckets.pt")
        torch.save(torch.tensor(0.05), folder / "avg_residual.pt")
        stored = self.bytes()
        for number, (lengths, start, end) in enumerate(zip(chunks, ends, ends[1:], strict=False)):
            torch.save(self.codes[start:end].clone(), folder / f"{number}.codes.pt")
            torch.save(stored[start:end].clone(), folder / f"{number}.residuals.pt")
            (folder / f"doclens.{number}.json").write_text(json.dumps(lengths))
            about = {"passage_offset": number * self.chunk_passages, "num_passages": len(lengths)}
            about |= {"num_embeddings": int(end - start), "embedding_offset": int(start)}
            (folder / f"{number}.metadata.json").write_text(json.dumps(about))
        torch.save(self.cells(), folder / "ivf.pid.pt")
        return folder

    def cells(self) -> tuple[Tensor, Tensor]:
        """Return the inverted file, with the zeros that the library appends."""
        owners = [passage for passage, length in enumerate(self.doclens) for _ in range(length)]
        cells: list[set[int]] = [set() for _ in range(len(self.centroids))]
        for code, owner in zip(self.codes.tolist(), owners, strict=True):
            cells[code].add(owner)
        passages = [passage for cell in cells for passage in sorted(cell)]
        lengths = [len(cell) for cell in cells]
        return torch.tensor(passages + [0] * max(lengths), dtype=torch.int32), torch.tensor(lengths)


def made(nbits: int = 2, passages: int = 13, seed: int = 0, **settings: Any) -> Made:
    """Return an index of random passages, coded by the obvious search in float64."""
    lengths = np.random.default_rng(seed).integers(3, 9, passages).tolist()
    rows, table = embeddings(sum(lengths), seed), centroids(seed)
    codes = (rows.double() @ table.double().T).argmax(1).int()
    rest = (rows - table.float()[codes.long()]).float()
    steps = torch.arange(2**nbits) / 2**nbits
    cutoffs, weights = rest.quantile(steps[1:]), rest.quantile(steps + 0.5 / 2**nbits)
    return Made(rows, lengths, table, cutoffs, weights, codes, settings=settings)


def hidden(noise=0.0, width=8):
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    layers = {name: torch.randn(2, 4, width, generator=generator) for name in ("embeddings", "layer 0", "projection")}
    layers["layer 0"][1, 2, 3] += noise
    layers["layer 0"][0, 3] += 9 * noise  # padding
    return {"input_ids": torch.arange(8).view(2, 4), "attention_mask": mask, "layers": layers,
            "weights": {"w": "aa", "v": "bb"}}  # fmt: skip


def captured(index, folder, *, rows=None, sample=None, passages=None, states=None, layers=None, **environment):
    """Write an index with the capture of its build; return the folder."""
    index.write(folder)
    capture = folder / "capture"
    capture.mkdir()
    rows = index.rows if rows is None else rows
    start = 0
    for chunk in range(0, len(index.doclens), index.chunk_passages):
        end = start + sum(index.doclens[chunk : chunk + index.chunk_passages])
        torch.save(rows[start:end].clone(), capture / f"{chunk // index.chunk_passages}.embeddings.pt")
        start = end
    torch.save(index.rows if sample is None else sample, capture / "sample.0.pt")
    numbers = torch.arange(len(index.doclens)) if passages is None else passages
    torch.save(numbers, capture / "sampled_passages.pt")
    torch.manual_seed(0)
    torch.save({**rng(), "python": torch.zeros(625), "numpy": torch.zeros(625), **(states or {})}, capture / "rng.pt")
    torch.save(index.centroids.float(), capture / "centroids.pt")
    torch.save(hidden() if layers is None else layers, capture / "layers.pt")
    (capture / "environment.json").write_text(json.dumps({"torch": "2.13.0", **environment}))
    write_manifest(capture)
    return folder


def nudged(rows, by=2.0**-11):
    """Return rows with one number of each a unit in the last place away."""
    moved = rows.clone()
    moved[:, 0] = (rows[:, 0].float() * (1 + 2 * by)).half()
    return moved


def states(report):
    """Return the state of each artifact of a report."""
    return {finding.artifact: finding.state for finding in report.findings}


def damage(path):
    """Flip a bit of the first tensor that a file of torch.save holds."""
    with zipfile.ZipFile(path) as archive:
        header = next(entry.header_offset for entry in archive.infolist() if entry.filename.endswith("/data/0"))
    content = bytearray(path.read_bytes())
    name, extra = struct.unpack_from("<HH", content, header + 26)
    content[header + 30 + name + extra] ^= 1
    path.write_bytes(content)
