"""What the Triton kernels that find near documents have to do; test_maxsim_triton.py runs them interpreted."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import pytest
import torch
from kmeans_triton_cases import DEVICE, DTYPES, by_name
from torch import Tensor

from li_plugins.ops.near.problem import NearProblem
from li_plugins.ops.near.reference import NEAR as REFERENCE
from li_plugins.testing.maxsim_cases import poisoned_memory

triton_kernel = import_module("li_plugins.ops.near.triton_kernel")
NEAR = triton_kernel.NEAR

pytestmark = [
    # until triton>=3.7 (triton#9171): its interpreter turns arrays of one element into loop bounds
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
]


def random_near(
    queries: int = 1,
    centroids: int = 40,
    length: int = 5,
    ncells: int = 2,
    documents: int = 100,
    dtype: torch.dtype = torch.float16,
    listed_dtype: torch.dtype = torch.int32,
    longest: int = 9,
) -> NearProblem:
    """Return a problem whose scores differ within each query token; lists go on behind the last."""
    random = torch.Generator().manual_seed(0)
    ranks = torch.rand(queries, length, centroids, generator=random).argsort(-1).mT.contiguous()
    # exact and different in every dtype, of both signs
    scores = ((ranks - centroids // 2).float() / 64).to(dtype)
    lengths = torch.randint(0, longest + 1, (centroids,), generator=random)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    listed = torch.randint(documents, (int(offsets[-1]) + 3,), generator=random).to(listed_dtype)
    return NearProblem(*(part.to(DEVICE) for part in (scores, listed, offsets)), ncells, documents)


def check(problem: NearProblem) -> Tensor:
    """Compare with the reference, on memory where zeros are not to be expected.

    The reference sorts on the CPU: to a GPU's sort a NaN with a sign is less than all numbers.
    """
    assert NEAR.supports(problem)
    with poisoned_memory():
        found = NEAR.forward(problem)
    assert (found.dtype, found.shape) == (torch.bool, problem.scores_shape)
    parts = {name: getattr(problem, name).cpu() for name in ("centroid_scores", "listed", "centroid_offsets")}
    assert torch.equal(found.cpu(), REFERENCE.forward(replace(problem, **parts)))
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
@pytest.mark.parametrize("ncells", [1, 2, 4])
@pytest.mark.parametrize("queries", [1, 3])
def test_dtypes(queries: int, ncells: int, dtype: torch.dtype) -> None:
    check(random_near(queries, ncells=ncells, dtype=dtype))


@pytest.mark.parametrize(
    "sizes",
    [
        {"length": 1},
        {"length": 33},
        {"length": 70, "centroids": 12},
        {"ncells": 40},
        {"centroids": 1, "ncells": 1},
        {"documents": 1},
        {"longest": 0},
        {"listed_dtype": torch.int64},
        {"length": 0},
        {"queries": 0},
    ],
    ids=str,
)
def test_any_shape(sizes: dict[str, object]) -> None:
    check(random_near(**sizes))


def test_several_blocks_and_several_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernel, "SCORES", 16 * 8)
    monkeypatch.setattr(triton_kernel, "KEYS", 4)
    monkeypatch.setattr(triton_kernel, "DOCUMENTS", 4)
    for ncells in (1, 3, 9):
        check(random_near(2, centroids=45, ncells=ncells, longest=13))


def test_more_queries_than_a_grid_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernel, "MOST_QUERIES", 2)
    check(random_near(5))


def test_of_equal_ones_the_first_and_nan_before_all() -> None:
    problem = random_near(ncells=3, documents=400)
    scores = problem.centroid_scores.clone()
    scores[:, 7:] = scores[:, :1]
    scores[0, 30, 1] = torch.nan
    scores[0, 5, 2], scores[0, 6, 3] = torch.inf, -torch.inf
    check(replace(problem, centroid_scores=scores))


def test_signs_of_nan_and_zero_do_not_count() -> None:
    problem = random_near(ncells=2, documents=400, dtype=torch.float32)
    scores = problem.centroid_scores.clone().abs_().neg_()
    scores.view(torch.int32)[0, 31, 1] = -0x400000  # the NaN that x86 makes, sign and all
    assert scores[0, 31, 1].isnan()
    scores[0, 3, 2], scores[0, 20:24, 2] = -0.0, 0.0
    check(replace(problem, centroid_scores=scores))


def test_strided() -> None:
    problem = random_near(2)
    wide = torch.full((4, 50, 11), 9.0, dtype=torch.float16, device=DEVICE)
    wide[1::2, 3:43, 2:7] = problem.centroid_scores
    check(replace(problem, centroid_scores=wide[1::2, 3:43, 2:7]))
    check(replace(problem, centroid_scores=problem.centroid_scores.mT.contiguous().mT))
    apart = torch.stack([problem.listed, torch.zeros_like(problem.listed)], 1)[:, 0]
    check(replace(problem, listed=apart))


def test_what_is_not_served() -> None:
    assert not NEAR.supports(random_near(dtype=torch.float64))
