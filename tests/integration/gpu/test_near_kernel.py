"""The kernels that find near documents, compiled: the interpreter's cases, and an index of real size."""

from __future__ import annotations

import pytest
import torch
from near_triton_cases import *  # noqa: F403
from near_triton_cases import random_near

from li_plugins.ops import dispatch, near_documents
from li_plugins.ops.near.blocked import NEAR as BLOCKED
from li_plugins.ops.near.triton_kernel import NEAR
from li_plugins.testing.waiting import waits_for_nothing

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize(("queries", "ncells"), [(1, 1), (1, 2), (3, 4)])
def test_real_sizes(queries: int, ncells: int) -> None:
    # fp32: float16 has fewer numbers than there are centroids
    problem = random_near(queries, 2**17, 32, ncells, 1_000_000, torch.float32, longest=700)
    found = NEAR.forward(problem)
    assert torch.equal(found, BLOCKED.forward(problem))
    assert torch.equal(found, NEAR.forward(problem))
    assert found.any()


def test_the_function_runs_it_without_waiting() -> None:
    dispatch.reset()
    problem = random_near(2)
    arguments = problem.centroid_scores, problem.listed, problem.centroid_offsets
    near_documents(*arguments, ncells=2, document_count=100)  # compiles
    with waits_for_nothing():
        near_documents(*arguments, ncells=2, document_count=100)
    assert dispatch.counters() == {("near_documents", "triton"): 2}
