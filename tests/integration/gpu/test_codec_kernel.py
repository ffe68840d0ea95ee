"""The residual codec on CUDA at real sizes: bytes, accuracy against the library's own product, memory."""

from __future__ import annotations

import pytest
import torch
from codec_triton_cases import (
    COMPRESS,
    DECOMPRESS,
    NBITS,
    check_binarize,
    check_compress,
    check_decompress,
    cutoffs_of,
    stored,
)
from kmeans_triton_cases import by_name
from test_kmeans_kernel import clustered

from li_plugins.ops import compress, decompress, dispatch
from li_plugins.ops.codec.problem import CompressProblem

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("width", "dtype", "nbits"),
    [(128, FP16, nbits) for nbits in NBITS] + [(128, BF16, 2), (128, FP32, 4), (96, FP16, 2), (48, FP16, 1)],
    ids=by_name,
)
def test_bytes(width, dtype, nbits):
    embeddings, centroids = clustered(100_003, 500, width, dtype), clustered(2_000, 500, width, dtype)
    check_compress(embeddings, centroids, nbits)
    check_binarize(embeddings, cutoffs_of(nbits), nbits)


def test_codes_are_nearer_than_those_of_colberts_product():
    embeddings, centroids = clustered(200_000, 3_000, 128, FP16), clustered(16_384, 3_000, 128, FP16)
    codes, _ = compress(embeddings, centroids, cutoffs_of(2), nbits=2)
    theirs = torch.cat([(centroids @ part.T).max(0).indices for part in embeddings.split(2**29 // 16_384)])
    exact = [(part.double() * centroids.double()[at]).sum() for part, at in ((embeddings, codes.long()),
                                                                             (embeddings, theirs))]  # fmt: skip
    assert exact[0] > exact[1]


@pytest.mark.parametrize(
    ("width", "dtype", "nbits"),
    [(128, FP16, nbits) for nbits in NBITS] + [(128, BF16, 2), (128, FP32, 4), (96, FP16, 2), (1024, FP16, 1)],
    ids=by_name,
)
def test_embeddings(width, dtype, nbits):
    for normalized in (True, False):
        check_decompress(stored(30_001, 2_000, width, nbits, dtype, normalized))


@pytest.mark.parametrize("nbits", NBITS)
def test_embeddings_of_many_rows(nbits):
    for normalized in (True, False):
        check_decompress(stored(300_001, 2_000, 128, nbits, FP16, normalized))


def test_twice_the_same():
    embeddings, centroids = clustered(200_000, 500, 128, FP16), clustered(8_192, 500, 128, FP16)
    runs = [compress(embeddings, centroids, cutoffs_of(2), nbits=2) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


def test_triton_serves_them():
    dispatch.reset()
    embeddings, centroids = clustered(1000, 50, 128, FP16), clustered(64, 50, 128, FP16)
    codes, residuals = compress(embeddings, centroids, cutoffs_of(2), nbits=2)
    weights = torch.linspace(-0.1, 0.1, 4, device="cuda", dtype=FP16)
    decompress(codes, residuals, centroids, weights, nbits=2)
    assert dispatch.counters() == {("compress", "triton"): 1, ("decompress", "triton"): 1}


def test_memory_of_ten_million_tokens():
    """A quarter of the centroids of such an index, so that it takes a tenth of a second."""
    free, _ = torch.cuda.mem_get_info()
    if free < 10 * 2**30:
        pytest.skip(f"needs 10 GiB of free device memory; found {free / 2**30:.0f}")
    embeddings = torch.zeros(10_000_000, 128, device="cuda", dtype=FP16)
    embeddings[::1000] = clustered(10_000, 500, 128, FP16)
    centroids = clustered(16_384, 500, 128, FP16)
    problem = CompressProblem(embeddings, centroids, cutoffs_of(2), 2)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    codes, residuals = COMPRESS.forward(problem)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak - codes.nbytes - residuals.nbytes < 200 * 2**20
    alone, _ = COMPRESS.forward(CompressProblem(embeddings[::1000].contiguous(), centroids, problem.cutoffs, 2))
    assert torch.equal(codes[::1000], alone)


def test_unpacking_needs_no_memory_but_its_result():
    problem = stored(500_000, 2_000, 128, 2, FP16, True)
    DECOMPRESS.forward(problem)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = DECOMPRESS.forward(problem)
    assert torch.cuda.max_memory_allocated() - before < result.nbytes + 2**20
