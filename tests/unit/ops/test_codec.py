"""The residual codec against colbert-ai's own steps, written out, and what torch demands of an op."""

from __future__ import annotations

import math

import numpy as np
import pytest
import refusal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from li_plugins.ops import (
    binarize,
    compress,
    decompress,
    dispatch,
    explain_binarize,
    explain_compress,
    explain_decompress,
)
from li_plugins.ops.codec import bits, blocked
from li_plugins.ops.kmeans import blocked as assigning

NBITS = (1, 2, 4, 8)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "BLOCK_ELEMENTS", {"cpu": 64 * 5})
    monkeypatch.setattr(assigning, "TILE", {"cpu": (7, 4)})


def some(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def codec(nbits: int, width: int = 64, centroids: int = 11) -> dict[str, Tensor]:
    """Return centroids, cutoffs and bucket weights as colbert-ai trains them."""
    return {
        "centroids": torch.nn.functional.normalize(some(centroids, width, seed=2), dim=-1),
        "cutoffs": (some(2**nbits - 1, seed=3) * 0.7).sort().values,
        "bucket_weights": (some(2**nbits, seed=4) * 0.7).sort().values,
    }


def colbert_bytes(rest: Tensor, cutoffs: Tensor, nbits: int) -> Tensor:
    """``ResidualCodec.binarize`` of colbert-ai 0.2.22 on the CPU."""
    residuals = torch.bucketize(rest.float(), cutoffs).to(dtype=torch.uint8)
    residuals = residuals.unsqueeze(-1).expand(*residuals.size(), nbits)
    residuals = (residuals >> torch.arange(0, nbits, dtype=torch.uint8)) & 1
    packed = np.packbits(np.asarray(residuals.contiguous().flatten()))
    return torch.as_tensor(packed, dtype=torch.uint8).reshape(rest.size(0), rest.size(1) // 8 * nbits)


@pytest.mark.parametrize("nbits", NBITS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.usefixtures("kernel")
def test_bytes_are_colberts(nbits: int, dtype: torch.dtype) -> None:
    parts, embeddings = codec(nbits), some(29, 64, dtype=dtype)
    codes, residuals = compress(embeddings, parts["centroids"], parts["cutoffs"], nbits=nbits)
    assert (codes.dtype, residuals.dtype) == (torch.int32, torch.uint8)
    assert torch.equal(codes.long(), (embeddings.double() @ parts["centroids"].double().T).argmax(1))
    rest = embeddings - parts["centroids"][codes.long()]
    assert torch.equal(residuals, colbert_bytes(rest, parts["cutoffs"], nbits))
    assert torch.equal(binarize(rest, parts["cutoffs"], nbits=nbits), residuals)


@pytest.mark.usefixtures("kernel")
def test_half_precision_centroids_are_subtracted_in_half_precision() -> None:
    parts, embeddings = codec(4), some(29, 64, dtype=torch.float16)
    centroids = parts["centroids"].half()
    codes, residuals = compress(embeddings, centroids, parts["cutoffs"], nbits=4)
    rest = embeddings - centroids[codes.long()]
    assert rest.dtype is torch.float16
    assert torch.equal(residuals, colbert_bytes(rest, parts["cutoffs"], 4))


@pytest.mark.parametrize("nbits", NBITS)
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.usefixtures("kernel")
def test_embeddings_are_colberts(nbits: int, normalized: bool, dtype: torch.dtype) -> None:
    parts = codec(nbits)
    centroids, weights = parts["centroids"].to(dtype), parts["bucket_weights"].to(dtype)
    buckets = torch.randint(2**nbits, (23, 64), generator=torch.Generator().manual_seed(0))
    codes = torch.arange(23) % 11
    residuals = colbert_bytes(buckets.float() - 0.5, torch.arange(2**nbits - 1).float(), nbits)
    rows = centroids[codes] + weights[buckets]
    expected = torch.nn.functional.normalize(rows, p=2, dim=-1) if normalized else rows
    found = decompress(codes.int(), residuals, centroids, weights, nbits=nbits, normalized=normalized)
    assert found.dtype is dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("nbits", NBITS)
def test_the_order_of_bits(nbits: int) -> None:
    # the rule that was found by emulation of the library: colbert-ai, PyLate and fast-plaid agree on it
    per_byte = 8 // nbits
    table = bits.buckets_of_bytes(nbits, torch.device("cpu"))
    for byte in range(256):
        for place in range(per_byte):
            field = (byte >> (8 - nbits * (place + 1))) & (2**nbits - 1)
            assert table[byte, place] == int(f"{field:0{nbits}b}"[::-1], 2)


@settings(max_examples=60)
@given(
    nbits=st.sampled_from(NBITS),
    octets=st.integers(1, 5),
    rows=st.integers(0, 12),
    centroids=st.integers(1, 9),
    seed=st.integers(0, 2**20),
    kernel=st.sampled_from(["blocked", "reference"]),
)
def test_any_shape(nbits: int, octets: int, rows: int, centroids: int, seed: int, kernel: str) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("LI_PLUGINS_BACKEND", kernel)
        dispatch.reset()
        width = 8 * octets
        parts, embeddings = codec(nbits, width, centroids), some(rows, width, seed=seed)
        codes, residuals = compress(embeddings, parts["centroids"], parts["cutoffs"], nbits=nbits)
        rest = embeddings - parts["centroids"][codes.long()]
        assert torch.equal(residuals, colbert_bytes(rest, parts["cutoffs"], nbits))
        rows_again = decompress(
            codes, residuals, parts["centroids"], parts["bucket_weights"], nbits=nbits, normalized=False
        )
        buckets = torch.bucketize(rest, parts["cutoffs"])
        assert torch.equal(rows_again, parts["centroids"][codes.long()] + parts["bucket_weights"][buckets])


@pytest.mark.parametrize("nbits", NBITS)
@pytest.mark.usefixtures("kernel")
def test_cutoffs_belong_to_the_lower_bucket_and_nan_to_the_last(nbits: int) -> None:
    cutoffs = torch.arange(2**nbits - 1).float()
    values = torch.tensor([0.0, 0.5, -1.0, math.nan, math.inf, -math.inf, 1e-45, -0.0]).repeat(nbits)[None]
    assert torch.equal(binarize(values, cutoffs, nbits=nbits), colbert_bytes(values, cutoffs, nbits))


@pytest.mark.usefixtures("kernel")
def test_equal_cutoffs() -> None:
    cutoffs = torch.tensor([0.0, 0.0, 0.5])
    values = torch.tensor([[-1.0, 0.0, 0.25, 1.0]])
    assert torch.equal(binarize(values, cutoffs, nbits=2), torch.tensor([[0b00000111]], dtype=torch.uint8))


@pytest.mark.usefixtures("kernel")
def test_strided_inputs_and_no_row() -> None:
    parts, wide = codec(2), some(64, 29).T
    strided = compress(wide, parts["centroids"], parts["cutoffs"], nbits=2)
    plain = compress(wide.contiguous(), parts["centroids"], parts["cutoffs"], nbits=2)
    assert all(torch.equal(*pair) for pair in zip(strided, plain, strict=True))
    codes, residuals = compress(wide[:0], parts["centroids"], parts["cutoffs"], nbits=2)
    assert (codes.shape, residuals.shape) == ((0,), (0, 16))
    assert decompress(codes, residuals, parts["centroids"], parts["bucket_weights"], nbits=2).shape == (0, 64)
    alternate = decompress(
        plain[0].repeat_interleave(2)[::2], plain[1], parts["centroids"], parts["bucket_weights"], nbits=2
    )
    assert torch.equal(alternate, decompress(*plain, parts["centroids"], parts["bucket_weights"], nbits=2))


@pytest.mark.usefixtures("kernel")
def test_nothing_of_it_has_a_gradient() -> None:
    parts = codec(2)
    embeddings, centroids = some(5, 64).requires_grad_(), parts["centroids"].requires_grad_()
    codes, residuals = compress(embeddings, centroids, parts["cutoffs"], nbits=2)
    assert not decompress(codes, residuals, centroids, parts["bucket_weights"], nbits=2).requires_grad


@pytest.mark.parametrize("nbits", NBITS)
@pytest.mark.parametrize("rows", [0, 9])
def test_torch_accepts_the_ops(nbits: int, rows: int) -> None:
    parts, embeddings = codec(nbits), some(rows, 64)
    cutoffs, centroids = parts["cutoffs"], parts["centroids"]
    codes, residuals = compress(embeddings, centroids, cutoffs, nbits=nbits)
    ops = torch.ops.li_plugins
    for op, arguments in (
        (ops.compress, (embeddings, centroids, cutoffs, nbits)),
        (ops.binarize, (embeddings, cutoffs, nbits)),
        (ops.decompress, (codes, residuals, centroids, parts["bucket_weights"], nbits, True)),
    ):
        torch.library.opcheck(op.default, arguments)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_traces_whole() -> None:
    parts = codec(2)

    def there_and_back(embeddings: Tensor) -> Tensor:
        stored = compress(embeddings, parts["centroids"], parts["cutoffs"], nbits=2)
        return decompress(*stored, parts["centroids"], parts["bucket_weights"], nbits=2)

    compiled = torch.compile(there_and_back, fullgraph=True, backend="eager", dynamic=True)
    for rows in (5, 9):
        assert torch.equal(compiled(some(rows, 64)), there_and_back(some(rows, 64)))


def test_the_plans_say_why() -> None:
    parts = codec(2)
    codes, residuals = compress(some(3, 64), parts["centroids"], parts["cutoffs"], nbits=2)
    for plan in (
        explain_compress(some(3, 64), parts["centroids"], parts["cutoffs"], nbits=2),
        explain_binarize(some(3, 64), parts["cutoffs"], nbits=2),
        explain_decompress(codes, residuals, parts["centroids"], parts["bucket_weights"], nbits=2),
    ):
        assert plan.kernel.name == "blocked"
        assert plan.rejected == (("triton", "runs on cuda, not on cpu"), ("reference", "ranks after blocked"))


ROWS, CODES = torch.zeros(3, 64), torch.zeros(3, dtype=torch.int32)
BYTES, CENTROIDS = torch.zeros(3, 16, dtype=torch.uint8), torch.zeros(4, 64)
CUTOFFS, WEIGHTS = torch.zeros(3), torch.zeros(4)


@pytest.mark.parametrize(
    ("call", "asked"),
    [
        (lambda: compress(ROWS, CENTROIDS, CUTOFFS, nbits=3), "nbits is 1, 2, 4 or 8"),
        (lambda: compress(ROWS, CENTROIDS, CUTOFFS, nbits=True), "nbits is 1, 2, 4 or 8"),
        (lambda: compress(ROWS, CENTROIDS, CUTOFFS[:2], nbits=2), "cutoffs has 3 entries"),
        (lambda: compress(ROWS, CENTROIDS, CUTOFFS.half(), nbits=2), "cutoffs has dtype float32"),
        (lambda: compress(ROWS[:, :9], CENTROIDS[:, :9], CUTOFFS, nbits=2), "fills whole bytes"),
        (lambda: compress(ROWS, CENTROIDS[:, :32], CUTOFFS, nbits=2), "embeddings and centroids have one width"),
        (lambda: compress(ROWS, CENTROIDS[:0], CUTOFFS, nbits=2), "centroids has at least one entry"),
        (lambda: compress(ROWS.int(), CENTROIDS, CUTOFFS, nbits=2), "embeddings has dtype"),
        (lambda: compress([1.0], CENTROIDS, CUTOFFS, nbits=2), "embeddings is a tensor"),
        (lambda: compress(ROWS.to_sparse(), CENTROIDS, CUTOFFS, nbits=2), "embeddings is a dense tensor"),
        (lambda: compress(ROWS, CENTROIDS.to("meta"), CUTOFFS, nbits=2), "centroids lies on cpu"),
        (lambda: binarize(ROWS[0], CUTOFFS, nbits=2), "values has 2 dimensions"),
        (lambda: decompress(CODES, BYTES[:2], CENTROIDS, WEIGHTS, nbits=2), "residuals has 3 entries"),
        (
            lambda: decompress(CODES, BYTES[:, :8], CENTROIDS, WEIGHTS, nbits=2),
            "2 bits and residuals have one width",
        ),
        (lambda: decompress(CODES, BYTES, CENTROIDS, WEIGHTS.half(), nbits=2), "bucket_weights has dtype float32"),
        (lambda: decompress(CODES, BYTES, CENTROIDS, WEIGHTS[:3], nbits=2), "bucket_weights has 4 entries"),
        (lambda: decompress(CODES + 4, BYTES, CENTROIDS, WEIGHTS, nbits=2), "codes lie in [0, 4)"),
        (lambda: decompress(CODES - 1, BYTES, CENTROIDS, WEIGHTS, nbits=2), "codes lie in [0, 4)"),
    ],
)
def test_what_has_no_meaning_is_refused(call, asked: str) -> None:
    refusal.check(call, asked)
