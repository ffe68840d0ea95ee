"""k-means on CUDA at real sizes: against float64, twice the same, without waiting, in little memory."""

from __future__ import annotations

import pytest
import torch
from kmeans_triton_cases import ASSIGN, DTYPES, SUMS, by_name, check_assign, check_sums
from torch import Tensor
from torch.nn.functional import normalize

from li_plugins.ops import assign, cluster_sums, dispatch, kmeans
from li_plugins.ops.kmeans import blocked
from li_plugins.ops.kmeans.problem import AssignProblem, SumsProblem
from li_plugins.testing.waiting import waits_for_nothing

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

FP16, FP32 = torch.float16, torch.float32


def units(rows: int, width: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    random = torch.Generator("cuda").manual_seed(seed)
    return normalize(torch.randn(rows, width, generator=random, device="cuda"), dim=-1).to(dtype)


def clustered(rows: int, centres: int, width: int, dtype: torch.dtype) -> Tensor:
    random = torch.Generator("cuda").manual_seed(1)
    of = torch.randint(centres, (rows,), generator=random, device="cuda")
    noise = torch.randn(rows, width, generator=random, device="cuda") * (0.5 / width**0.5)
    return normalize(units(centres, width, FP32)[of] + noise, dim=-1).to(dtype)


@pytest.mark.parametrize("by", ["dot", "distance"])
@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
@pytest.mark.parametrize(("rows", "centroids"), [(100_000, 16_384), (20_001, 65_537), (100_000, 1)])
def test_assignment_of_the_benchmark(rows, centroids, dtype, by):
    check_assign(units(rows, 128, dtype), 0.9 * units(centroids, 128, dtype, seed=1), by)


@pytest.mark.parametrize(
    ("rows", "centroids", "width", "dtype"),
    [
        (50_000, 1_000, 96, FP16),
        (50_000, 4_097, 64, FP16),
        (3_000, 8_191, 48, FP16),
        (20_000, 2_000, 256, FP16),
        (5_000, 3_000, 768, FP16),
        (5_000, 3_000, 768, FP32),
        (1, 100_000, 128, FP16),
        (40, 100_000, 128, FP32),
    ],
    ids=by_name,
)
def test_assignment_of_other_widths(rows, centroids, width, dtype):
    check_assign(units(rows, width, dtype), 0.9 * units(centroids, width, dtype, seed=1), "distance")


@pytest.mark.parametrize(("dtype", "centroid_dtype"), [(FP16, FP32), (torch.bfloat16, FP32), (FP32, FP16)], ids=by_name)
def test_two_dtypes_meet_in_float32(dtype, centroid_dtype):
    check_assign(units(50_000, 128, dtype), units(4_096, 128, centroid_dtype, seed=1), "distance")


@pytest.mark.parametrize("dtype", [FP16, torch.bfloat16], ids=by_name)
def test_near_ties_are_told_apart_better_than_by_a_product_in_half_precision(dtype):
    rows, centroids = clustered(100_000, 500, 128, dtype), clustered(8_192, 500, 128, dtype)
    exact = torch.cat([part.double() @ centroids.double().T for part in rows.split(4096)])
    codes, _ = assign(rows, centroids)
    theirs = torch.cat([(centroids @ part.T).max(0).indices for part in rows.split(4096)])
    nearest = exact.argmax(1)
    assert (codes.long() != nearest).sum() <= 20
    assert (theirs != nearest).sum() > 100


@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
@pytest.mark.parametrize(("rows", "clusters"), [(1_000_000, 16_384), (5_000_000, 1_000), (300_000, 1), (1000, 65_536)])
def test_sums_of_the_benchmark(rows, clusters, dtype):
    random = torch.Generator("cuda").manual_seed(0)
    skewed = torch.rand(rows, generator=random, device="cuda").pow(4)
    check_sums(units(rows, 64, dtype), (skewed * clusters).int().clamp_(max=clusters - 1), clusters)


def test_training_is_the_same_twice_and_as_good_as_in_float32():
    rows = clustered(200_000, 3_000, 128, FP16)

    def objective(centroids: Tensor) -> float:
        nearest, best = blocked.ASSIGN.forward(AssignProblem(rows.float(), centroids, by_distance=True))
        assert nearest.unique().numel() > 1900
        return float((rows.float().square().sum(1) - 2 * best).double().mean())

    dispatch.reset()
    first = kmeans(rows, 2_048, iterations=6, seed=3)
    assert dispatch.counters() == {("assign", "triton"): 6, ("cluster_sums", "triton"): 6}
    assert first.dtype is FP32
    assert torch.equal(first, kmeans(rows, 2_048, iterations=6, seed=3))
    assert objective(first) < 1.005 * objective(kmeans(rows.float(), 2_048, iterations=6, seed=3))


def test_nothing_waits_for_the_device():
    rows, centroids = units(100_000, 128, FP16), units(1_024, 128, FP16, seed=1)
    codes, _ = assign(rows, centroids, by="distance")
    cluster_sums(rows, codes, 1_024)
    torch.cuda.synchronize()
    with waits_for_nothing():
        codes, _ = assign(rows, centroids, by="distance")
        cluster_sums(rows, codes, 1_024)
    with waits_for_nothing(), pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
        codes.sum().item()
    assert torch.cuda.get_sync_debug_mode() == 0


def test_memory_does_not_grow_with_the_matrix_of_similarities():
    rows, centroids = units(1_000_000, 128, FP16), units(16_384, 128, FP16, seed=1)
    for call, allowed in (
        (lambda: ASSIGN.forward(AssignProblem(rows, centroids, False)), 4 * len(rows)),
        (lambda: ASSIGN.forward(AssignProblem(rows, centroids, True)), 4 * len(rows) + 2 * 4 * centroids.numel()),
        (lambda: SUMS.forward(SumsProblem(rows, torch.zeros(len(rows), dtype=torch.int32, device="cuda"), 16_384)),
         48 * len(rows)),
    ):  # fmt: skip
        result = call()
        outputs = sum(tensor.nbytes for tensor in result)
        del result
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        assert torch.cuda.max_memory_allocated() - before < outputs + allowed + 2**22


def test_more_than_2_to_31_elements():
    """Offsets of 32 bits wrap here: the far end has to be assigned like rows of its own."""
    free, _ = torch.cuda.mem_get_info()
    if free < 20 * 2**30:
        pytest.skip(f"needs 20 GiB of free device memory; found {free / 2**30:.0f}")
    centroids = units(70, 128, FP16, seed=1)
    rows = torch.zeros(2**24 + 2**16, 128, device="cuda", dtype=FP16)
    assert rows.numel() > 2**31
    rows[-1000:] = units(1000, 128, FP16)
    codes, best = ASSIGN.forward(AssignProblem(rows, centroids, False))
    expected, expected_best = ASSIGN.forward(AssignProblem(rows[-1000:], centroids, False))
    assert torch.equal(codes[-1000:], expected)
    assert torch.equal(best[-1000:], expected_best)
    sums, sizes = SUMS.forward(SumsProblem(rows, codes, 70))
    far, _ = SUMS.forward(SumsProblem(rows[-1000:], expected, 70))
    torch.testing.assert_close(sums, far)
    assert int(sizes.sum()) == len(rows)
