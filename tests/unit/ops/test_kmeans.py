"""k-means: assignment and update against the formula in float64, and what training promises."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import refusal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from li_plugins.ops import assign, cluster_sums, dispatch, explain_assign, kmeans
from li_plugins.ops.kmeans import blocked, training
from li_plugins.testing.oracle import judge

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "TILE", {"cpu": (7, 4)})
    monkeypatch.setattr(blocked, "SUMMED_ROWS", 5)
    monkeypatch.setattr(training, "ROWS_AT_ONCE", 6)


def some(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def similarities(rows: Tensor, centroids: Tensor, by: str) -> Tensor:
    exact = rows.double() @ centroids.double().T
    return exact - centroids.double().square().sum(1) / 2 if by == "distance" else exact


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("centroid_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("by", ["dot", "distance"])
@pytest.mark.usefixtures("kernel")
def test_the_nearest(dtype: torch.dtype, centroid_dtype: torch.dtype, by: str) -> None:
    rows, centroids = some(23, 9, dtype=dtype), some(10, 9, seed=1, dtype=centroid_dtype)
    codes, best = assign(rows, centroids, by=by)
    exact = similarities(rows, centroids, by)
    assert codes.dtype is torch.int32
    assert best.dtype is (torch.float64 if torch.float64 in (dtype, centroid_dtype) else torch.float32)
    assert torch.equal(codes.long(), exact.argmax(1))
    verdict = judge(best, exact.amax(1), magnitude=4 * exact.abs().max(), name="best")
    assert verdict, verdict


def test_the_distance_follows_from_what_is_returned() -> None:
    rows, centroids = some(23, 9, dtype=torch.float64), some(10, 9, seed=1, dtype=torch.float64)
    codes, best = assign(rows, centroids, by="distance")
    distances = torch.cdist(rows, centroids)
    assert torch.equal(codes.long(), distances.argmin(1))
    torch.testing.assert_close((rows.square().sum(1) - 2 * best).sqrt(), distances.amin(1))


@settings(max_examples=60)
@given(
    rows=st.integers(0, 20),
    centroids=st.integers(1, 20),
    width=st.integers(1, 5),
    seed=st.integers(0, 2**20),
    by=st.sampled_from(["dot", "distance"]),
    kernel=st.sampled_from(["blocked", "reference"]),
)
def test_any_shape_and_ties_go_to_the_first(
    rows: int, centroids: int, width: int, seed: int, by: str, kernel: str
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("LI_PLUGINS_BACKEND", kernel)
        dispatch.reset()
        # few values, so that many similarities are equal, and exactly so
        points = some(rows, width, seed=seed).round()
        centres = some(centroids, width, seed=seed + 1).round()
        codes, best = assign(points, centres, by=by)
        exact = similarities(points, centres, by)
        expected = exact.max(1)
        assert torch.equal(codes.long(), expected.indices)
        assert torch.equal(best.double(), expected.values)
        sums, sizes = cluster_sums(points, codes, centroids)
        one_hot = torch.nn.functional.one_hot(codes.long(), centroids).double()
        assert torch.equal(sums.double(), one_hot.T @ points.double())
        assert torch.equal(sizes, one_hot.sum(0).long())


@pytest.mark.usefixtures("kernel")
def test_nan_is_the_greatest() -> None:
    rows, centroids = some(4, 3), some(11, 3, seed=1)
    centroids[6] = math.nan
    rows[2] = math.nan
    codes, best = assign(rows, centroids)
    assert codes.tolist() == [6, 6, 0, 6]
    assert best.isnan().all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.usefixtures("kernel")
def test_sums_are_accumulated_in_float32(dtype: torch.dtype) -> None:
    # 4,096 + 1 is 4,096 in 16 bits
    rows = torch.cat([torch.full((1, 2), 4096.0), torch.ones(12, 2)]).to(dtype)
    sums, sizes = cluster_sums(rows, torch.zeros(13, dtype=torch.int32), 3)
    assert sums.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert sums.tolist() == [[4108.0, 4108.0], [0.0, 0.0], [0.0, 0.0]]
    assert sizes.tolist() == [13, 0, 0]


@pytest.mark.parametrize("rows", [0, 9])
def test_torch_accepts_the_ops(rows: int) -> None:
    points, centroids = some(rows, 6), some(4, 6, seed=1)
    codes, _ = assign(points, centroids)
    for by_distance in (True, False):
        torch.library.opcheck(torch.ops.li_plugins.assign.default, (points, centroids, by_distance))
    torch.library.opcheck(torch.ops.li_plugins.cluster_sums.default, (points, codes, 4))


def blobs(count: int = 400, clusters: int = 8, width: int = 5) -> Tensor:
    centres = 10 * some(clusters, width, seed=7)
    return centres.repeat(count // clusters, 1) + 0.1 * some(count, width, seed=8)


def objective(rows: Tensor, centroids: Tensor) -> float:
    return torch.cdist(rows.double(), centroids.double()).amin(1).square().mean().item()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_training_finds_blobs_whatever_it_begins_with(dtype: torch.dtype) -> None:
    rows = blobs().to(dtype)
    for seed in range(3):
        centroids = kmeans(rows, 24, iterations=20, seed=seed)
        assert centroids.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
        assert objective(rows, centroids) < 0.1


def test_the_same_seed_gives_the_same_centroids_and_torchs_own_state_stays() -> None:
    rows = blobs()
    state = torch.get_rng_state()
    first = kmeans(rows, 16, iterations=3, seed=5)
    torch.rand(3)
    again = kmeans(rows, 16, iterations=3, seed=5)
    assert torch.equal(first, again)
    assert not torch.equal(first, kmeans(rows, 16, iterations=3, seed=6))
    torch.set_rng_state(state)
    kmeans(rows, 16, iterations=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_each_iteration_lowers_the_objective() -> None:
    rows = some(500, 4)
    costs = [objective(rows, kmeans(rows, 20, iterations=iterations)) for iterations in range(6)]
    assert all(later < earlier for earlier, later in pairwise(costs))


def test_clusters_that_lose_their_rows_begin_anew() -> None:
    # 395 equal rows: most centroids begin there, and of equal ones only the first keeps rows
    rows = torch.cat([torch.zeros(395, 2), 10 * torch.eye(2), torch.tensor([[30.0, 30], [-40, 5], [7, -60]])])
    for seed in range(5):
        centroids = kmeans(rows, 6, iterations=6, seed=seed)
        assert objective(rows, centroids) == 0
        assert centroids.unique(dim=0).shape[0] == 6


def test_fewer_different_rows_than_clusters() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(20, 1)
    centroids = kmeans(rows, 5, iterations=4)
    assert centroids.isfinite().all()
    assert objective(rows, centroids) == 0


def test_as_many_clusters_as_rows() -> None:
    rows = some(12, 3)
    centroids = kmeans(rows, 12, iterations=4)
    assert torch.equal(centroids.sort(0).values, rows.sort(0).values)


def test_rows_beyond_the_limit_are_left_out() -> None:
    rows = some(1000, 3)
    seen = []
    original = blocked.ASSIGN.forward
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(
            blocked.Assign, "forward", lambda self, problem: seen.append(len(problem.rows)) or original(problem)
        )
        kmeans(rows, 4, iterations=1, max_rows_per_cluster=10)
        kmeans(rows, 4, iterations=1, max_rows_per_cluster=None)
    assert seen == [40, 1000]


def test_explain() -> None:
    plan = explain_assign(some(3, 4), some(2, 4))
    assert str(plan).splitlines() == [
        "assign (scores) torch.float32 d=4 NONE on cpu: blocked",
        "  rows (3, 4), centroids (2, 4) -> (3,)",
        "  not triton: runs on cuda, not on cpu",
        "  not reference: ranks after blocked",
    ]


ROWS, CENTROIDS, CODES = torch.zeros(3, 4), torch.zeros(2, 4), torch.zeros(3, dtype=torch.int32)


@pytest.mark.parametrize(
    ("call", "asked"),
    [
        (lambda: assign(ROWS[0], CENTROIDS), "rows has 2 dimensions"),
        (lambda: assign(ROWS, CENTROIDS[:, :2]), "rows and centroids have one width"),
        (lambda: assign(ROWS, CENTROIDS[:0]), "centroids has at least one entry"),
        (lambda: assign(ROWS, CENTROIDS, by="cosine"), "by is 'dot' or 'distance'"),
        (lambda: assign(ROWS.int(), CENTROIDS), "rows has dtype"),
        (lambda: cluster_sums(ROWS, CODES[:2], 2), "codes has 3 entries"),
        (lambda: cluster_sums(ROWS, CODES.short(), 2), "codes has dtype int32, int64"),
        (lambda: cluster_sums(ROWS, CODES + 2, 2), "codes lie in [0, 2)"),
        (lambda: cluster_sums(ROWS, CODES, 0), "clusters is a positive number"),
        (lambda: kmeans(ROWS, 4), "4 clusters need at least as many rows"),
        (lambda: kmeans(ROWS, 0), "at least one cluster"),
        (lambda: kmeans(ROWS, 2, iterations=-1), "no negative iterations"),
        (lambda: kmeans(ROWS / 0, 2), "the rows of kmeans are finite"),
    ],
)
def test_what_has_no_meaning_is_refused(call, asked: str) -> None:
    refusal.check(call, asked)
