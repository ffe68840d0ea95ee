"""An index of colbert-ai with a million passages, made of random codes and bytes, for the benchmark of its search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 100_000
"""Passages in a file; the library has 25,000."""
TOPICS, CENTROIDS_OF_TOPIC = 4_000, 256
OWN = 0.7
"""How many of a passage's tokens have a centroid of its topic; the others have any."""


class Made(NamedTuple):
    """What an index was made of, on the device, to make queries of and to score by hand."""

    codes: Tensor
    residuals: Tensor
    offsets: Tensor
    centroids: Tensor
    weights: Tensor


def make(folder: Path, passages: int, centroids: int, device: str, dim: int = 128, nbits: int = 2) -> Made:
    """Write an index of passages of 60 to 80 tokens into a folder, and return what it was made of."""
    from colbert.infra import ColBERTConfig

    random = torch.Generator(device).manual_seed(0)
    lengths = torch.randint(60, 81, (passages,), generator=random, device=device)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    owners = torch.arange(passages, device=device).repeat_interleave(lengths)
    total = len(owners)
    of_topics = torch.randint(centroids, (TOPICS, CENTROIDS_OF_TOPIC), generator=random, device=device)
    topics = torch.randint(TOPICS, (passages,), generator=random, device=device)
    places = torch.randint(CENTROIDS_OF_TOPIC, (total,), generator=random, device=device)
    codes = of_topics.view(-1)[topics[owners] * CENTROIDS_OF_TOPIC + places]
    anything = torch.randint(centroids, (total,), generator=random, device=device)
    is_own = torch.rand(total, generator=random, device=device) < OWN
    codes = torch.where(is_own, codes, anything).int()
    residuals = torch.randint(256, (total, dim * nbits // 8), generator=random, device=device, dtype=torch.uint8)
    rows = torch.nn.functional.normalize(torch.randn(centroids, dim, generator=random, device=device), dim=-1).half()
    # what is left of an embedding is a third of it
    spread = torch.distributions.Normal(0.0, 0.33 / dim**0.5).icdf
    levels = torch.arange(2**nbits, dtype=torch.float32) / 2**nbits
    weights = spread(levels + 0.5 / 2**nbits).half().to(device)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(rows.cpu(), folder / "centroids.pt")
    torch.save((spread(levels[1:]), weights.cpu()), folder / "buckets.pt")
    torch.save(torch.tensor([0.02]), folder / "avg_residual.pt")
    torch.save(_cells(codes, owners, centroids, passages), folder / "ivf.pid.pt")
    del owners, places, anything, is_own
    ends, counts = offsets.tolist(), lengths.tolist()
    for chunk, start in enumerate(range(0, passages, CHUNK)):
        stop = min(start + CHUNK, passages)
        part = slice(ends[start], ends[stop])
        torch.save(codes[part].cpu(), folder / f"{chunk}.codes.pt")
        torch.save(residuals[part].cpu(), folder / f"{chunk}.residuals.pt")
        (folder / f"doclens.{chunk}.json").write_text(json.dumps(counts[start:stop]))
        record = {"passage_offset": start, "num_passages": stop - start, "num_embeddings": part.stop - part.start}
        (folder / f"{chunk}.metadata.json").write_text(json.dumps({**record, "embedding_offset": part.start}))
    config = ColBERTConfig(dim=dim, nbits=nbits, index_path=str(folder)).export()
    metadata = {"config": config, "num_chunks": chunk + 1, "num_partitions": centroids, "num_embeddings": total}
    (folder / "metadata.json").write_text(json.dumps({**metadata, "avg_doclen": total / passages}, default=str))
    return Made(codes, residuals, offsets, rows, weights)


def queries(made: Made, count: int, length: int = 32) -> tuple[Tensor, Tensor]:
    """Return queries ``[count, length, dim]`` float32 of passages' tokens with noise, and which passages these are."""
    device = made.codes.device
    random = torch.Generator(device).manual_seed(1)
    passages = torch.randint(len(made.offsets) - 1, (count,), generator=random, device=device)
    places = torch.rand(count, length, generator=random, device=device)
    begins, ends = made.offsets[passages], made.offsets[passages + 1]
    rows = begins[:, None] + (places * (ends - begins)[:, None]).long()
    tokens = decoded(made, rows.view(-1)).view(count, length, -1)
    noise = torch.randn(tokens.shape, generator=random, device=device) * (0.3 / tokens.shape[-1] ** 0.5)
    return torch.nn.functional.normalize(tokens.float() + noise, dim=-1), passages


def decoded(made: Made, rows: Tensor) -> Tensor:
    """Return the embeddings of stored tokens in float64."""
    from li_plugins.ops.codec.problem import DecompressProblem
    from li_plugins.ops.codec.reference import DECOMPRESS

    stored = made.codes[rows], made.residuals[rows]
    nbits = made.residuals.shape[1] * 8 // made.centroids.shape[1]
    return DECOMPRESS.forward(DecompressProblem(*stored, made.centroids.double(), made.weights.double(), nbits, True))


def _cells(codes: Tensor, owners: Tensor, centroids: int, passages: int) -> tuple[Tensor, Tensor]:
    """Return the passages of each centroid, ascending, and how many they are, as ``optimize_ivf`` saves them."""
    keys = (codes.long() * passages + owners).unique()
    lengths = torch.bincount(keys // passages, minlength=centroids)
    found = (keys % passages).int()
    padding = found.new_zeros(int(lengths.max()) if lengths[-1] < lengths.max() else 0)
    return torch.cat([found, padding]).cpu(), lengths.cpu()
