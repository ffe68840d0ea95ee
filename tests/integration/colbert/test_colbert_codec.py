"""colbert-ai's ``ResidualCodec``, patched, against the library's own: bit for bit, codes but for ties."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from colbert.indexing.codecs.residual import ResidualCodec
from colbert.infra import ColBERTConfig

from li_plugins.testing.parity import call_unpatched, outcome

CASES = [(nbits, dim) for nbits in (1, 2, 4, 8) for dim in (64, 96, 128) if dim % (8 * nbits) == 0]


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


def embeddings(dim: int, count: int = 3000) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, dim), dim=-1).half()


@pytest.mark.parametrize(("nbits", "dim"), CASES)
def test_compress(nbits: int, dim: int) -> None:
    ours, embs = codec(nbits, dim), embeddings(dim)
    found, expected = ours.compress(embs), call_unpatched(ours.compress, embs)
    assert (found.codes.dtype, found.residuals.dtype) == (torch.int32, torch.uint8)
    similarities = embs.double() @ ours.centroids.double().T
    gap = similarities.gather(1, expected.codes.long()[:, None]) - similarities.gather(1, found.codes.long()[:, None])
    assert gap.abs().max() < 1e-6
    same = found.codes == expected.codes
    assert same.float().mean() > 0.999
    assert torch.equal(found.residuals[same], expected.residuals[same])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_compress_into_codes(dtype: torch.dtype) -> None:
    ours, embs = codec(2, 64), embeddings(64).to(dtype)
    found = ours.compress_into_codes(embs, out_device="cpu")
    expected = call_unpatched(ours.compress_into_codes, embs, out_device="cpu")
    assert found.dtype is expected.dtype is torch.int64
    assert (found == expected).float().mean() > 0.999


def test_the_first_of_equal_centroids() -> None:
    ours, embs = codec(2, 64, centroids=20), embeddings(64)
    ours.centroids[10:] = ours.centroids[:10].clone()
    assert ours.compress_into_codes(embs, out_device="cpu").max() < 10


@pytest.mark.parametrize(("nbits", "dim"), CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_binarize(nbits: int, dim: int, dtype: torch.dtype) -> None:
    ours, rest = codec(nbits, dim), (torch.randn(1000, dim) * 0.05).to(dtype)
    rest[0, : len(ours.bucket_cutoffs)] = ours.bucket_cutoffs[:dim].to(dtype)
    assert torch.equal(ours.binarize(rest), call_unpatched(ours.binarize, rest))


@pytest.mark.parametrize(("nbits", "dim"), CASES)
def test_decompress(nbits: int, dim: int) -> None:
    ours = codec(nbits, dim)
    codes = torch.randint(0, 200, (40_000,), dtype=torch.int32)
    residuals = torch.randint(0, 256, (40_000, dim * nbits // 8), dtype=torch.uint8)
    stored = ResidualCodec.Embeddings(codes, residuals)
    assert torch.equal(ours.decompress(stored), call_unpatched(ours.decompress, stored))


@pytest.mark.allow_fallback(reason="what the library takes as well, or refuses")
@pytest.mark.parametrize("what", ["int32 residuals", "codes from behind", "a code of no centroid"])
def test_decompress_of_what_no_codec_writes(what: str) -> None:
    ours = codec(2, 64)
    codes = torch.randint(0, 200, (400,), dtype=torch.int32)
    residuals = torch.randint(0, 256, (400, 16), dtype=torch.uint8)
    if what == "int32 residuals":
        residuals = residuals.int()
    elif what == "codes from behind":
        codes = -1 - codes
    else:
        codes[7] = 10_000
    stored = SimpleNamespace(codes=codes, residuals=residuals)
    found = outcome(lambda: ours.decompress(stored))
    expected = call_unpatched(outcome, lambda: ours.decompress(stored))
    if what == "a code of no centroid":
        assert found == expected
        assert found[0] is IndexError
    else:
        assert torch.equal(found, expected)


@pytest.mark.allow_fallback(reason="the library has an error of its own")
@pytest.mark.parametrize(("nbits", "dim"), [(8, 96), (2, 20)])
def test_the_library_refuses_widths_that_fill_no_bytes(nbits: int, dim: int) -> None:
    ours = codec(nbits, dim)
    with pytest.raises(AssertionError):
        ours.compress(embeddings(dim))
    with pytest.raises(AssertionError):
        ours.binarize(torch.randn(3, dim))


@pytest.mark.allow_fallback(reason="somebody else's step is theirs to take")
def test_a_step_of_somebody_else_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, embs = codec(2, 64), embeddings(64)
    monkeypatch.setattr(
        ResidualCodec, "compress_into_codes", lambda self, embs, out_device: torch.full((len(embs),), 7)
    )
    assert ours.compress(embs).codes.unique().tolist() == [7]
