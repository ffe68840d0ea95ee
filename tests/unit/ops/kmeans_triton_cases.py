"""What the Triton kernels of k-means have to do, small enough for Triton's interpreter.

test_maxsim_triton.py runs them interpreted, tests/integration/gpu compiled; sizes recur, since each dtype, width and
number of rows is compiled apart.
"""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch
import views
from torch import Tensor

from li_plugins.ops.kmeans import reference
from li_plugins.ops.kmeans.problem import AssignProblem, SumsProblem
from li_plugins.ops.kmeans.ranks import Alone
from li_plugins.ops.kmeans.training import train
from li_plugins.testing.maxsim_cases import assert_close, poisoned_memory

triton_kernel = import_module("li_plugins.ops.kmeans.triton_kernel")
ASSIGN, SUMS = triton_kernel.ASSIGN, triton_kernel.SUMS
DEVICE = "cpu" if import_module("li_plugins.ops.maxsim.triton_arguments").INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BY = ("dot", "distance")

pytestmark = [
    # numpy speaks up where tests put NaN and infinities on purpose
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
    # until triton>=3.7 (triton#9171): its interpreter turns arrays of one element into loop bounds
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
]


def by_name(value: object) -> str:
    return str(value).removeprefix("torch.")


def some(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def steps(rows: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return rows of three whole numbers from -2 to 2 and zeros: similarities are exact, and many of them equal."""
    numbers = torch.randint(-2, 3, (rows, 3), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.pad(numbers, (0, 13)).to(dtype).to(DEVICE)


def assigned(rows: Tensor, centroids: Tensor, by: str = "dot") -> tuple[Tensor, Tensor]:
    with poisoned_memory():
        codes, best = ASSIGN.forward(AssignProblem(rows, centroids, by == "distance"))
    assert (codes.dtype, best.dtype) == (torch.int32, torch.float32)
    assert codes.shape == best.shape == rows.shape[:1]
    return codes.long(), best


def check_assign(rows: Tensor, centroids: Tensor, by: str = "dot", at_once: int = 4096) -> None:
    """Compare with float64: a code may be off where two similarities are equal but for the rounding of fp32."""
    codes, best = assigned(rows, centroids, by)
    again, best_again = assigned(rows, centroids, by)
    assert torch.equal(codes, again)
    assert torch.equal(best, best_again)
    exact_centroids = centroids.double()
    half_squares = exact_centroids.square().sum(1) / 2 if by == "distance" else exact_centroids.new_zeros(())
    for start in range(0, len(rows), at_once):
        block = slice(start, start + at_once)
        points = rows[block].double()
        exact = points @ exact_centroids.T - half_squares
        assert bool(((codes[block] >= 0) & (codes[block] < len(centroids))).all())
        chosen = exact.gather(1, codes[block, None])[:, 0]
        of_chosen = exact_centroids[codes[block]]
        sizes = (points.abs() * of_chosen.abs()).sum(1) + half_squares.expand(len(centroids))[codes[block]]
        assert_close(best[block], chosen, sizes, name="best")
        shortfall = exact.amax(1) - chosen
        allowed = 16 * torch.finfo(torch.float32).eps * (sizes + exact.abs().amax(1))
        assert bool((shortfall <= allowed).all()), f"{int((shortfall > allowed).sum())} codes are not the nearest"


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("centroid_dtype", DTYPES, ids=by_name)
@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
def test_dtypes(dtype, centroid_dtype, by):
    check_assign(some(70, 16, dtype=dtype), some(150, 16, seed=1, dtype=centroid_dtype), by)


@pytest.mark.parametrize(
    ("rows", "centroids", "dim", "dtype", "by"),
    [
        (1, 1, 1, torch.float16, "distance"),
        (1, 64, 8, torch.float16, "dot"),
        (300, 65, 16, torch.float16, "distance"),
        (300, 65, 16, torch.float32, "dot"),
        (17, 63, 48, torch.bfloat16, "distance"),
        (5, 33, 96, torch.float16, "distance"),
        (5, 33, 96, torch.float32, "distance"),
        (3, 129, 130, torch.float16, "dot"),
        (3, 129, 130, torch.float32, "distance"),
        (9, 32, 400, torch.float16, "distance"),
        (4, 7, 0, torch.float16, "distance"),
    ],
    ids=by_name,
)
def test_odd_shapes(rows, centroids, dim, dtype, by):
    check_assign(some(rows, dim, dtype=dtype), some(centroids, dim, seed=1, dtype=dtype), by)


@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
@pytest.mark.parametrize("centroids", [3, 31, 64, 65, 100, 200])
@pytest.mark.parametrize("by", BY)
def test_the_first_of_equals(centroids, dtype, by):
    rows, centres = steps(70, dtype=dtype), steps(centroids, seed=1, dtype=dtype)
    codes, best = assigned(rows, centres, by)
    expected, expected_best = reference.ASSIGN.forward(AssignProblem(rows.double(), centres.double(), by == "distance"))
    assert torch.equal(codes, expected.long())
    assert torch.equal(best.double(), expected_best)


@pytest.mark.parametrize("place", [0, 7, 70, 99])
def test_equal_centroids(place):
    rows = some(70, 16, seed=2)
    assert not assigned(rows, some(1, 16).expand(100, 16))[0].any()
    centroids = -8 * some(100, 16, seed=3).abs()
    centroids[place:] = 1
    codes, _ = assigned(rows.abs(), centroids)
    assert bool((codes == place).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("place", [0, 6, 40, 90, 99])
def test_nan_is_the_greatest_and_the_first_of_them_counts(place, by, dtype):
    rows, centroids = some(70, 16, dtype=dtype), some(100, 16, seed=1, dtype=dtype)
    centroids[place] = math.nan
    centroids[98, 3] = math.nan
    rows[2, 5] = math.nan
    codes, best = assigned(rows, centroids, by)
    assert codes.tolist() == [min(place, 98) if row != 2 else 0 for row in range(70)]
    assert best.isnan().all()


@pytest.mark.parametrize("by", BY)
def test_infinities_are_as_in_the_reference(by):
    rows, centroids = some(70, 16).abs(), some(100, 16, seed=1).abs()
    centroids[70, 2] = math.inf if by == "dot" else 1e18
    rows[3] = -math.inf
    codes, best = assigned(rows, centroids, by)
    expected, expected_best = reference.ASSIGN.forward(AssignProblem(rows, centroids, by == "distance"))
    assert torch.equal(codes, expected.long())
    torch.testing.assert_close(best, expected_best, equal_nan=True)


def test_similarities_far_below_zero():
    """A centroid beyond the last would be the nearest of all."""
    for centroids in (5, 70):
        check_assign(4 + some(70, 16).abs(), -4 - some(centroids, 16, seed=1).abs())


@pytest.mark.parametrize("view", views.STRIDED.values(), ids=views.STRIDED)
def test_memory_of_any_layout(view):
    rows, centroids = some(70, 16, dtype=torch.float16), some(70, 16, seed=1, dtype=torch.float16)
    codes, _ = assigned(rows, centroids, "distance")
    assert torch.equal(assigned(view(rows), view(centroids), "distance")[0], codes)
    sums, sizes = SUMS.forward(SumsProblem(rows, codes, 70))
    again, sizes_again = SUMS.forward(SumsProblem(view(rows), codes.repeat_interleave(2)[::2], 70))
    assert torch.equal(sums, again)
    assert torch.equal(sizes, sizes_again)


@pytest.mark.parametrize("by", BY)
def test_rows_in_parts(monkeypatch, by):
    rows, centroids = some(50, 16), some(70, 16, seed=1)
    whole = assigned(rows, centroids, by)
    monkeypatch.setattr(triton_kernel, "ROWS_AT_ONCE", 16)
    assert all(torch.equal(*pair) for pair in zip(assigned(rows, centroids, by), whole, strict=True))
    check_sums(rows, whole[0], 70)


def check_sums(rows: Tensor, codes: Tensor, clusters: int) -> None:
    with poisoned_memory():
        sums, sizes = SUMS.forward(SumsProblem(rows, codes, clusters))
        again, _ = SUMS.forward(SumsProblem(rows, codes, clusters))
    assert torch.equal(sums, again)
    assert (sums.dtype, sizes.dtype) == (torch.float32, torch.int64)
    exact, exact_sizes = reference.SUMS.forward(SumsProblem(rows.double(), codes, clusters))
    terms, _ = reference.SUMS.forward(SumsProblem(rows.double().abs(), codes, clusters))
    assert torch.equal(sizes, exact_sizes)
    assert_close(sums, exact, terms, name="sums")


@pytest.mark.parametrize("code_dtype", [torch.int32, torch.int64], ids=by_name)
@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
def test_sums(dtype, code_dtype):
    codes = torch.randint(20, (300,), generator=torch.Generator().manual_seed(1)).to(code_dtype).to(DEVICE)
    check_sums(some(300, 16, dtype=dtype), codes, 23)


@pytest.mark.parametrize(("rows", "clusters", "dim"), [(0, 3, 8), (1, 1, 1), (40, 5, 130), (9, 4, 0), (30, 200, 16)])
def test_sums_of_odd_shapes(rows, clusters, dim):
    codes = torch.randint(clusters, (rows,), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    check_sums(some(rows, dim), codes, clusters)


@pytest.mark.parametrize("part", [4, 16, 33])
def test_large_clusters_are_added_in_parts(monkeypatch, part):
    monkeypatch.setattr(triton_kernel, "PART", part)
    codes = torch.randint(3, (200,), generator=torch.Generator().manual_seed(1)).square().to(DEVICE)
    check_sums(some(200, 16), codes, 6)
    check_sums(some(200, 16), torch.zeros_like(codes), 2)


def test_codes_of_no_cluster_are_left_out():
    rows = some(40, 16)
    codes = torch.arange(40, device=DEVICE) % 7 - 2
    sums, sizes = SUMS.forward(SumsProblem(rows, codes, 3))
    inside = (codes >= 0) & (codes < 3)
    expected, expected_sizes = SUMS.forward(SumsProblem(rows[inside], codes[inside], 3))
    assert torch.equal(sums, expected)
    assert torch.equal(sizes, expected_sizes)


def test_nan_stays_in_its_cluster():
    rows, codes = some(40, 16), torch.arange(40, device=DEVICE) % 4
    rows[5, 3] = math.nan
    sums, _ = SUMS.forward(SumsProblem(rows, codes, 4))
    assert sums.isnan().nonzero().tolist() == [[1, 3]]


@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
def test_training_on_these_kernels(dtype):
    centres = 10 * some(6, 16, seed=7)
    rows = (centres.repeat(20, 1) + 0.1 * some(120, 16, seed=8)).to(dtype)

    def assign(points: Tensor, centroids: Tensor, by: str) -> tuple[Tensor, Tensor]:
        return ASSIGN.forward(AssignProblem(points, centroids, by == "distance"))

    def cluster_sums(points: Tensor, codes: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
        return SUMS.forward(SumsProblem(points, codes, clusters))

    found = train(rows, 12, 8, 0, None, assign, cluster_sums, Alone())
    assert torch.cdist(rows.double(), found.double()).amin(1).square().mean() < 0.2


def test_they_decline_what_they_cannot_compute():
    rows = some(3, 8)
    for kernel, problem in (
        (ASSIGN, AssignProblem(rows.double(), rows, True)),
        (ASSIGN, AssignProblem(rows, rows.double(), True)),
        (SUMS, SumsProblem(rows.double(), torch.zeros(3, dtype=torch.int32, device=DEVICE), 1)),
    ):
        support = kernel.supports(problem)
        assert not support
        assert "float64" in support.reason
    assert ASSIGN.supports(AssignProblem(rows, rows.half(), True))
