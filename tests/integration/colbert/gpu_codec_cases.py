"""colbert-ai's codec and k-means where it sees a GPU, patched and by itself: on a real GPU and on a pretended one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_colbert
import torch
from colbert.indexing import collection_indexer
from colbert.indexing.codecs.residual import ResidualCodec
from colbert.infra import ColBERTConfig
from colbert.modeling import colbert
from li_plugins_colbert.extensions import StandIn
from torch import Tensor

import li_plugins
from li_plugins.ops import kmeans

ULP = 2.0**-11
"""A rounding step of float16 between 0.5 and 1, which no similarity exceeds."""
CASES = [(nbits, dim) for nbits in (1, 2, 4, 8) for dim in (64, 96, 128) if dim % (8 * nbits) == 0]
ATTRIBUTES = ("decompress_residuals", "packbits", "loaded_extensions")


def decompress_residuals(
    residuals: Tensor, weights: Tensor, reverse: Tensor, table: Tensor, codes: Tensor, centroids: Tensor, *_: int
) -> Tensor:
    """Return what decompress_residuals.cu of the library does, by its two tables."""
    buckets = table[reverse[residuals.long()].long()].flatten(1)
    return centroids[codes.long()] + weights[buckets.long()]


def packbits(flags: Tensor) -> Tensor:
    """Return what packbits.cu of the library does."""
    return torch.from_numpy(np.packbits(flags.cpu().numpy())).to(flags.device)


@contextmanager
def library() -> Iterator[None]:
    """Let colbert-ai run by itself, with its two CUDA extensions in plain torch: the bits of the compiled ones."""
    with li_plugins.suspended():
        own = {name: vars(ResidualCodec)[name] for name in ATTRIBUTES if name in vars(ResidualCodec)}
        ResidualCodec.decompress_residuals = staticmethod(decompress_residuals)
        ResidualCodec.packbits = staticmethod(packbits)
        ResidualCodec.loaded_extensions = True
        try:
            yield
        finally:
            for name in ATTRIBUTES:
                delattr(ResidualCodec, name)
            for name, value in own.items():
                setattr(ResidualCodec, name, value)


def codec(nbits: int, dim: int, centroids: int = 200) -> Any:
    rest = torch.randn(4096) * 0.05
    quantiles = torch.arange(0, 2**nbits) / 2**nbits
    return ResidualCodec(
        config=ColBERTConfig(dim=dim, nbits=nbits),
        centroids=torch.nn.functional.normalize(torch.randn(centroids, dim), dim=-1).half(),
        avg_residual=torch.tensor(0.1),
        bucket_cutoffs=rest.quantile(quantiles[1:]),
        bucket_weights=rest.quantile(quantiles + 0.5 / 2**nbits),
    )


def unit(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1).to(dtype)


def gap(ours: Any, embeddings: Tensor, found: Tensor, expected: Tensor) -> Tensor:
    """Return by how much the similarities of two choices of centroids differ."""
    similarities = embeddings.double() @ ours.centroids.double().cpu().T
    return (similarities.gather(1, expected.long()[:, None]) - similarities.gather(1, found.long()[:, None])).abs()


@pytest.mark.parametrize(("nbits", "dim"), CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_compress(nbits: int, dim: int, dtype: torch.dtype) -> None:
    ours, rows = codec(nbits, dim), unit(3000, dim, dtype=dtype)
    found = ours.compress(rows)
    with library():
        expected = ours.compress(rows)
    assert (found.codes.dtype, found.residuals.dtype) == (torch.int32, torch.uint8)
    assert found.codes.device == found.residuals.device == expected.codes.device
    assert gap(ours, rows.half(), found.codes, expected.codes).max() <= 2 * ULP
    same = found.codes == expected.codes
    assert same.float().mean() > 0.97, "more than what float16 makes equal"
    assert torch.equal(found.residuals[same], expected.residuals[same])


def test_compress_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, rows = codec(2, 64), unit(3000, 64)
    once = ours.compress(rows)
    monkeypatch.setattr("li_plugins_colbert.codec.ROWS_AT_ONCE", 700)
    found = ours.compress(rows)
    assert torch.equal(found.codes, once.codes)
    assert torch.equal(found.residuals, once.residuals)


@pytest.mark.parametrize("out_device", ["cpu", "cuda"])
def test_compress_into_codes(out_device: str) -> None:
    ours, rows = codec(2, 64), unit(3000, 64)
    found = ours.compress_into_codes(rows, out_device=out_device)
    with library():
        expected = ours.compress_into_codes(rows, out_device=out_device)
    assert (found.dtype, found.device) == (expected.dtype, expected.device)
    assert gap(ours, rows, found.cpu(), expected.cpu()).max() <= 2 * ULP


@pytest.mark.parametrize(("nbits", "dim"), CASES)
def test_binarize(nbits: int, dim: int) -> None:
    ours, rest = codec(nbits, dim), (torch.randn(1000, dim) * 0.05).half().cuda()
    found = ours.binarize(rest)
    with library():
        expected = ours.binarize(rest)
    assert found.device == expected.device
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("nbits", "dim"), CASES)
def test_decompress(nbits: int, dim: int) -> None:
    ours = codec(nbits, dim)
    codes = torch.randint(0, 200, (40_000,), dtype=torch.int32)
    stored = ResidualCodec.Embeddings(codes, torch.randint(0, 256, (40_000, dim * nbits // 8), dtype=torch.uint8))
    found = ours.decompress(stored)
    with library():
        expected = ours.decompress(stored)
    assert (found.dtype, found.device) == (expected.dtype, expected.device)
    # the norm of a row is rounded to float16 and may fall on either side
    torch.testing.assert_close(found, expected, rtol=0, atol=ULP)
    assert (found == expected).float().mean() > 0.99


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
def test_the_operations_in_the_place_of_cuda(nbits: int) -> None:
    ours = codec(nbits, 64)
    assert isinstance(ResidualCodec.decompress_residuals, StandIn)
    assert isinstance(ResidualCodec.packbits, StandIn)
    codes = torch.randint(0, 200, (5000,), dtype=torch.int32).cuda()
    residuals = torch.randint(0, 256, (5000, 8 * nbits), dtype=torch.uint8).cuda()
    tables = ours.bucket_weights, ours.reversed_bit_map, ours.decompression_lookup_table
    arguments = (residuals, *tables, codes, ours.centroids, 64, nbits)
    assert torch.equal(ResidualCodec.decompress_residuals(*arguments), decompress_residuals(*arguments))
    flags = torch.randint(0, 2, (32 * 999,), dtype=torch.uint8).cuda()
    assert torch.equal(ResidualCodec.packbits(flags), packbits(flags))


def test_nothing_is_compiled(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_nothing(**arguments: Any) -> None:
        raise AssertionError(f"compiles {arguments['name']}")

    for owner in (colbert, collection_indexer.ResidualCodec):
        monkeypatch.setattr(f"{getattr(owner, '__module__', owner.__name__)}.load", compile_nothing)
    texts = tiny_colbert.passages()
    tiny_colbert.build(checkpoint, tmp_path, texts)
    assert tiny_colbert.searcher(checkpoint, tmp_path, texts).search(texts[7], k=3)[0][0] == 7


def test_centroids() -> None:
    centres = unit(100, 32)
    rows = torch.nn.functional.normalize(centres.repeat(60, 1) + 0.1 * torch.randn(6000, 32), dim=-1).half()
    found = collection_indexer.compute_faiss_kmeans(32, 64, 8, [[rows]])
    assert (found.shape, found.dtype, found.device.type) == ((64, 32), torch.float32, "cpu")

    def objective(centroids: Tensor) -> float:
        return torch.cdist(rows.float(), centroids).amin(1).square().mean().item()

    assert objective(found) < 1.01 * objective(kmeans(rows, 64, iterations=8, seed=123))
