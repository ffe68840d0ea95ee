"""What the Triton kernels of the residual codec have to do, small enough for Triton's interpreter.

test_maxsim_triton.py runs them interpreted, tests/integration/gpu compiled.
"""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import import_module

import pytest
import torch
import views
from kmeans_triton_cases import DEVICE, DTYPES, by_name, some
from torch import Tensor
from torch.nn.functional import normalize

from li_plugins.ops.codec import blocked
from li_plugins.ops.codec.problem import BinarizeProblem, CompressProblem, DecompressProblem
from li_plugins.ops.kmeans.problem import AssignProblem
from li_plugins.testing.maxsim_cases import poisoned_memory
from li_plugins.testing.oracle import judge

triton_kernel = import_module("li_plugins.ops.codec.triton_kernel")
ASSIGN = import_module("li_plugins.ops.kmeans.triton_kernel").ASSIGN
BINARIZE, COMPRESS, DECOMPRESS = triton_kernel.BINARIZE, triton_kernel.COMPRESS, triton_kernel.DECOMPRESS
NBITS = (1, 2, 4, 8)

pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:divide by zero encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
    # until triton>=3.7 (triton#9171): its interpreter turns arrays of one element into loop bounds
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
]


def cutoffs_of(nbits: int) -> Tensor:
    return (some(2**nbits - 1, seed=3) * 0.7).sort().values


def weights_of(nbits: int, dtype: torch.dtype) -> Tensor:
    return (some(2**nbits, seed=4) * 0.7).sort().values.to(dtype)


def check_binarize(values: Tensor, cutoffs: Tensor, nbits: int) -> None:
    with poisoned_memory():
        residuals = BINARIZE.forward(BinarizeProblem(values, cutoffs, nbits))
    assert residuals.dtype is torch.uint8
    assert torch.equal(residuals, blocked.BINARIZE.forward(BinarizeProblem(values, cutoffs, nbits)))


def check_compress(embeddings: Tensor, centroids: Tensor, nbits: int) -> None:
    """Compare codes with those of assign, and bytes with those that plain torch makes of these codes."""
    cutoffs = cutoffs_of(nbits)
    with poisoned_memory():
        codes, residuals = COMPRESS.forward(CompressProblem(embeddings, centroids, cutoffs, nbits))
    expected, _ = ASSIGN.forward(AssignProblem(embeddings, centroids, by_distance=False))
    assert torch.equal(codes, expected)
    rest = embeddings - centroids[codes.long()]
    assert torch.equal(residuals, blocked.BINARIZE.forward(BinarizeProblem(rest, cutoffs, nbits)))


def check_decompress(problem: DecompressProblem) -> None:
    """Without a norm plain torch's bits; with one, two roundings to the dtype and four of fp32's, or torch's error."""
    with poisoned_memory():
        embeddings = DECOMPRESS.forward(problem)
    assert (embeddings.dtype, embeddings.shape) == (problem.out_dtype, problem.scores_shape)
    theirs = blocked.DECOMPRESS.forward(problem)
    if not problem.normalized:
        assert torch.equal(embeddings, theirs)
        return
    plain = DecompressProblem(*(getattr(problem, name) for name in ("codes", "residuals", "centroids")),
                              problem.bucket_weights, problem.nbits, normalized=False)  # fmt: skip
    exact = normalize(blocked.DECOMPRESS.forward(plain).double(), dim=-1)
    own = torch.finfo(problem.out_dtype)
    roundings = 1.01 + 4 * torch.finfo(torch.float32).eps / own.eps
    verdict = judge(embeddings, exact, theirs, magnitude=roundings * exact.abs() + own.smallest_normal)
    assert verdict, verdict


def stored(
    rows: int, centroids: int, width: int, nbits: int, dtype: torch.dtype, normalized: bool
) -> DecompressProblem:
    random = torch.Generator().manual_seed(5)
    return DecompressProblem(
        torch.randint(centroids, (rows,), generator=random, dtype=torch.int32).to(DEVICE),
        torch.randint(256, (rows, width * nbits // 8), generator=random, dtype=torch.uint8).to(DEVICE),
        normalize(some(centroids, width, seed=2), dim=-1).to(dtype),
        weights_of(nbits, dtype),
        nbits,
        normalized,
    )


@pytest.mark.parametrize("nbits", NBITS)
@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
def test_bytes_of_values(dtype, nbits):
    check_binarize(some(37, 16, dtype=dtype), cutoffs_of(nbits), nbits)


@pytest.mark.parametrize(("rows", "width"), [(1, 8), (0, 16), (3, 136), (300, 16), (5, 300), (2, 0)])
def test_bytes_of_odd_shapes(rows, width):
    check_binarize(some(rows, width), cutoffs_of(2), 2)


@pytest.mark.parametrize("nbits", NBITS)
def test_cutoffs_belong_to_the_lower_bucket_and_nan_to_the_last(nbits):
    cutoffs = torch.arange(2**nbits - 1, device=DEVICE).float()
    values = torch.tensor([0.0, 0.5, -1.0, math.nan, math.inf, -math.inf, 1e-45, -0.0, 1, 2, 100, 253, 254, 255, 7, 14])
    check_binarize(values[None].to(DEVICE), cutoffs, nbits)


@pytest.mark.parametrize("nbits", NBITS)
def test_equal_cutoffs(nbits):
    cutoffs = torch.arange(2**nbits - 1, device=DEVICE).float() // 4
    check_binarize((some(9, 16) * 2).round(), cutoffs, nbits)


@pytest.mark.parametrize("centroid_dtype", DTYPES, ids=by_name)
@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
def test_codes_and_bytes(dtype, centroid_dtype):
    check_compress(some(70, 16, dtype=dtype), some(70, 16, seed=2, dtype=centroid_dtype), 2)


@pytest.mark.parametrize("nbits", NBITS)
def test_codes_and_bytes_of_other_bits(nbits):
    check_compress(some(70, 16, dtype=torch.float16), some(70, 16, seed=2, dtype=torch.float16), nbits)


@pytest.mark.parametrize(("rows", "centroids", "width"), [(0, 3, 8), (1, 1, 8), (3, 65, 136), (130, 9, 96)])
def test_compression_of_odd_shapes(rows, centroids, width):
    check_compress(some(rows, width, dtype=torch.float16), some(centroids, width, seed=2, dtype=torch.float16), 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=by_name)
def test_differences_are_rounded_to_the_dtype_of_both(dtype):
    # a cutoff between a difference and its rounding tells them apart
    embeddings, centroids = some(70, 16, dtype=dtype), some(70, 16, seed=2, dtype=dtype)
    codes, _ = ASSIGN.forward(AssignProblem(embeddings, centroids, by_distance=False))
    rest = embeddings.float() - centroids.float()[codes.long()]
    off = (rest.to(dtype).float() > rest).nonzero()[0]
    row, column = off.tolist()
    middle = (rest[row, column] + rest.to(dtype).float()[row, column]) / 2
    _, residuals = COMPRESS.forward(CompressProblem(embeddings, centroids, middle[None], 1))
    assert (int(residuals[row, column // 8]) >> (7 - column % 8)) & 1 == 1
    _, unrounded = COMPRESS.forward(CompressProblem(embeddings.float(), centroids.float(), middle[None], 1))
    assert (int(unrounded[row, column // 8]) >> (7 - column % 8)) & 1 == 0


@pytest.mark.parametrize("nbits", NBITS)
@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
def test_embeddings(dtype, nbits):
    check_decompress(stored(37, 11, 16, nbits, dtype, normalized=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
def test_embeddings_as_they_are(dtype):
    check_decompress(stored(37, 11, 16, 2, dtype, normalized=False))


@pytest.mark.parametrize(("rows", "centroids", "width"), [(0, 3, 8), (1, 1, 8), (3, 65, 136), (9, 9, 96), (2, 3, 5120)])
def test_embeddings_of_odd_shapes(rows, centroids, width):
    check_decompress(stored(rows, centroids, width, 2, torch.float16, True))


@pytest.mark.parametrize(("width", "nbits"), [(12, 2), (4, 2), (6, 4), (22, 4), (5, 8), (24, 1)])
@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
def test_embeddings_of_widths_that_are_no_multiples_of_eight(dtype, width, nbits):
    for normalized in (True, False):
        check_decompress(stored(5, 3, width, nbits, dtype, normalized))


@pytest.mark.parametrize("nbits", NBITS)
@pytest.mark.parametrize("rows", [1, 127, 128, 129, 300, 777])
def test_embeddings_in_several_steps(monkeypatch, rows, nbits):
    monkeypatch.setattr(triton_kernel, "PROGRAMS", 1)
    monkeypatch.setattr(triton_kernel, "MOST_STEPS", 3)
    check_decompress(stored(rows, 11, 16, nbits, torch.float16, normalized=False))
    check_decompress(stored(rows, 11, 16, nbits, torch.float16, normalized=True))


@pytest.mark.parametrize("scale", [1, 2**-9, 2**-14])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=by_name)
def test_quotients_are_rounded_as_torch_rounds_them(dtype, scale):
    """Each row is that of torch for its norm, or for the number next to it; subnormal quotients too."""
    problem = stored(300, 200, 32, 2, dtype, normalized=True)
    problem.centroids[:, 1:] *= scale
    problem.bucket_weights.mul_(scale)
    plain = replace(problem, normalized=False)
    rows = blocked.DECOMPRESS.forward(plain)
    norms = rows.float().norm(dim=1, keepdim=True).to(dtype)
    steps = [norms.view(torch.int16).add(step).view(dtype) for step in (-1, 0, 1)]
    found = DECOMPRESS.forward(problem)
    is_torchs = torch.stack([(found == rows / norm).all(1) for norm in steps])
    assert bool(is_torchs.any(0).all())
    assert int(is_torchs[1].sum()) > 290


def test_residuals_far_apart(monkeypatch):
    monkeypatch.setattr(triton_kernel, "WIDEST_STRIDE", 4)
    check_decompress(stored(37, 11, 32, 2, torch.float16, normalized=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
def test_rows_without_a_direction(dtype):
    problem = stored(37, 3, 16, 2, dtype, True)
    problem.centroids.zero_()
    problem.bucket_weights.zero_()
    expected = blocked.DECOMPRESS.forward(problem)
    torch.testing.assert_close(DECOMPRESS.forward(problem), expected, rtol=0, atol=0, equal_nan=True)
    problem.bucket_weights[1] = math.nan
    expected = blocked.DECOMPRESS.forward(problem)
    assert torch.equal(DECOMPRESS.forward(problem).isnan(), expected.isnan())


@pytest.mark.parametrize("view", views.STRIDED.values(), ids=views.STRIDED)
def test_memory_of_any_layout(view):
    embeddings, centroids = some(70, 16, dtype=torch.float16), some(70, 16, seed=2, dtype=torch.float16)
    check_compress(view(embeddings), view(centroids), 2)
    check_binarize(view(embeddings), cutoffs_of(2).repeat_interleave(2)[::2], 2)
    problem = stored(20, 7, 16, 2, torch.float16, True)
    codes = problem.codes.long().repeat_interleave(2)[::2]
    weights = problem.bucket_weights.repeat_interleave(2)[::2]
    check_decompress(DecompressProblem(codes, view(problem.residuals), view(problem.centroids), weights, 2, True))


def test_they_decline_what_they_cannot_compute():
    rows, cutoffs = some(3, 8), cutoffs_of(1)
    problem = stored(3, 3, 8, 1, torch.float32, True)
    wide = stored(1, 1, 2 * triton_kernel.WIDEST, 1, torch.float16, True)
    for kernel, unserved, reason in (
        (BINARIZE, BinarizeProblem(rows.double(), cutoffs, 1), "float64"),
        (COMPRESS, CompressProblem(rows.double(), rows, cutoffs, 1), "float64"),
        (COMPRESS, CompressProblem(rows, rows.double(), cutoffs, 1), "float64"),
        (DECOMPRESS, wide, "d = 32768"),
    ):
        support = kernel.supports(unserved)
        assert not support
        assert reason in support.reason
    assert DECOMPRESS.supports(problem)
