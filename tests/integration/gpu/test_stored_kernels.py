"""The Triton kernels for stored documents at real sizes, and that the public functions run them without waiting."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from stored_triton_cases import (
    CODE,
    RESIDUAL,
    by_name,
    check_code,
    check_residual,
    random_code,
    random_residual,
    tuning,
)

from li_plugins.ops import code_maxsim, decompress, dispatch, explain_residual_maxsim, maxsim_packed, residual_maxsim
from li_plugins.ops.residual.problem import ResidualProblem
from li_plugins.testing.waiting import waits_for_nothing

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
CENTROIDS = 9
LENGTHS = tuple(torch.randint(20, 221, (300,), generator=torch.Generator().manual_seed(3)).tolist())
MANY = (LENGTHS * 5)[:1300]
"""So many that documents are decoded once for several tiles of query tokens."""


def called(problem: ResidualProblem) -> torch.Tensor:
    """Return what the public function returns for a problem."""
    pairs = None if problem.pair_queries is None else (problem.pair_queries, problem.pair_documents)
    return residual_maxsim(
        problem.token_queries,
        problem.codes,
        problem.residuals,
        problem.centroids,
        problem.bucket_weights,
        problem.document_offsets,
        nbits=problem.nbits,
        pairs=pairs,
        normalized=problem.normalized,
        least=problem.least,
        out_dtype=problem.out_dtype,
    )


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [FP16, BF16, FP32], ids=by_name)
@pytest.mark.parametrize(("queries", "query_length"), [(1, 32), (32, 32), (3, 48), (1, 256)])
def test_real_sizes(queries, query_length, dtype, nbits):
    check_residual(
        random_residual(
            LENGTHS[:120],
            queries=queries,
            query_length=query_length,
            dim=128,
            nbits=nbits,
            dtype=dtype,
            centroids=2**14,
        )
    )


@pytest.mark.parametrize("dim", [64, 96, 256])
@pytest.mark.parametrize("nbits", [2, 4])
def test_other_widths(dim, nbits):
    check_residual(random_residual(LENGTHS[:50], queries=5, query_length=32, dim=dim, nbits=nbits, centroids=2**12))


def test_queries_in_fp32_against_centroids_in_fp16():
    check_residual(random_residual(LENGTHS[:50], queries=1, query_length=32, dim=128, query_dtype=FP32, pairs=300))


@pytest.fixture
def decoded_once(monkeypatch):
    """Record what was chosen where documents may be decoded once."""
    if torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("needs the shared memory of compute capability 9.0")
    chosen, choose = [], tuning.many
    monkeypatch.setattr(tuning, "many", lambda *sizes: chosen.append(choose(*sizes)) or chosen[-1])
    return chosen


@pytest.mark.parametrize(
    ("lengths", "queries", "query_length"),
    [
        (MANY, 32, 32),
        (MANY, 3, 200),
        (MANY, 20, 24),
        ((900, 0, 3, 2500, *MANY, 5000, 1), 9, 32),
        ((300,) * 600, 9, 32),
    ],
    ids=["usual", "long queries", "ragged", "some longer than the scratch", "fewer at once"],
)
@pytest.mark.parametrize(("nbits", "dtype"), [(2, FP16), (4, FP16), (4, BF16), (8, BF16)])
def test_many_documents_and_queries(lengths, queries, query_length, nbits, dtype, decoded_once):
    problem = random_residual(
        lengths, queries=queries, query_length=query_length, dim=128, nbits=nbits, dtype=dtype, centroids=2**14
    )
    check_residual(problem)
    assert all(decoded_once)
    assert torch.equal(RESIDUAL.forward(problem), RESIDUAL.forward(problem))


def test_documents_decoded_once_are_scored_as_alone(decoded_once):
    """To fp32's rounding, but for the documents of a token whose norm rounds the other way."""
    problem = random_residual(MANY, queries=32, query_length=32, dim=128, centroids=2**14)
    found = RESIDUAL.forward(problem)
    for query in (0, 7, 31):
        alone = RESIDUAL.forward(replace(problem, token_queries=problem.token_queries[query : query + 1]))
        assert ((found[query] - alone[0]).abs() > 1e-5).float().mean() < 0.05
        torch.testing.assert_close(found[query : query + 1], alone, rtol=0, atol=2e-2)
    assert decoded_once[0]
    assert decoded_once[1] is None


def test_thousands_of_pairs_in_no_order():
    problem = random_residual(LENGTHS, queries=8, query_length=32, dim=128, nbits=4, pairs=5000, centroids=2**14)
    check_residual(problem)
    everything = replace(problem, pair_queries=None, pair_documents=None)
    expected = RESIDUAL.forward(everything)[problem.pair_queries, problem.pair_documents]
    torch.testing.assert_close(RESIDUAL.forward(problem), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [FP16, BF16], ids=by_name)
def test_what_is_scored_are_the_rows_of_decompress(dtype, nbits):
    """To fp32's rounding, but for the documents of a token whose norm rounds the other way."""
    problem = random_residual(LENGTHS, queries=1, query_length=32, dim=128, nbits=nbits, dtype=dtype, centroids=2**14)
    stored = problem.codes, problem.residuals, problem.centroids, problem.bucket_weights
    rows = decompress(*stored, nbits=nbits)[: int(problem.document_offsets[-1])]
    offsets = torch.tensor([0, 32], device="cuda")
    expected = maxsim_packed(problem.token_queries[0], rows, offsets, problem.document_offsets, out_dtype=FP32)
    differing = (called(problem) - expected).abs() > 1e-4
    assert differing.float().mean() < 0.05


def test_one_document_is_far_longer_than_the_others():
    check_residual(random_residual((5, 40_000, 7, 0, 30), query_length=32, dim=128, pairs=9, centroids=2**10))
    check_code(random_code((5, 40_000, 7, 0, 30), pairs=9, centroids=2**10))


@pytest.mark.parametrize("kept", [None, 0.3])
@pytest.mark.parametrize("dtype", [FP16, BF16, FP32], ids=by_name)
@pytest.mark.parametrize("query_length", [32, 48, 256])
def test_scores_by_codes_at_real_sizes(query_length, dtype, kept):
    problem = random_code(
        LENGTHS[:60], queries=3, query_length=query_length, dtype=dtype, kept=kept, pairs=500, centroids=2**13
    )
    check_code(problem)


def test_elements_beyond_2_to_31():
    """Offsets of 32 bits wrap here: the far end has to be scored like a problem of its own."""
    free, _ = torch.cuda.mem_get_info()
    if free < 8 * 2**30:
        pytest.skip(f"needs 8 GiB of free device memory; found {free / 2**30:.0f}")
    problem = random_residual((60, 100, 3), query_length=32, dim=128, nbits=4)
    total = 2**31 // 64 + 1000  # 2**31 bytes of residuals before the documents
    tail = problem.codes.shape[0]
    codes = torch.zeros(total + tail, dtype=torch.int32, device="cuda")
    residuals = torch.zeros(total + tail, 64, dtype=torch.uint8, device="cuda")
    codes[total:], residuals[total:] = problem.codes, problem.residuals
    far = replace(problem, codes=codes, residuals=residuals, document_offsets=problem.document_offsets + total)
    assert torch.equal(RESIDUAL.forward(far), RESIDUAL.forward(problem))
    scores = random_code((60, 100, 3), query_length=32, centroids=CENTROIDS)
    many = torch.zeros(1, 2**31 // 32 + 1000 + CENTROIDS, 32, device="cuda", dtype=FP16)
    many[0, -CENTROIDS:] = scores.centroid_scores[0]
    near = replace(scores, centroid_scores=many[:, -CENTROIDS:].clone())
    behind = replace(scores, centroid_scores=many, codes=scores.codes.long() + many.shape[1] - CENTROIDS)
    assert torch.equal(CODE.forward(behind), CODE.forward(near))


def test_the_public_functions_run_triton_and_wait_for_nothing(decoded_once):
    problem = random_residual(LENGTHS, queries=1, query_length=32, dim=128, pairs=200, centroids=2**10)
    scores = random_code(LENGTHS, queries=1, pairs=200, kept=0.5, centroids=2**10)
    dispatch.reset()
    many = random_residual(MANY, queries=32, query_length=32, dim=128, centroids=2**10)
    for _ in range(2):  # the first compiles, which may wait
        found = called(problem)
        called(many)
        with waits_for_nothing():
            called(problem)
            called(many)
            code_maxsim(
                scores.centroid_scores,
                scores.codes,
                scores.document_offsets,
                pairs=(scores.pair_queries, scores.pair_documents),
                kept=scores.kept,
            )
    assert torch.equal(found, RESIDUAL.forward(problem))
    assert dispatch.counters() == {("residual_maxsim", "triton"): 8, ("code_maxsim", "triton"): 2}


def test_centroids_of_another_dtype_are_another_plan():
    problem = random_residual(query_dtype=FP32, dtype=FP16)
    names = []
    for dtype in (FP16, torch.float64):
        stored = problem.centroids.to(dtype), problem.bucket_weights.to(dtype), problem.document_offsets
        plan = explain_residual_maxsim(problem.token_queries, problem.codes, problem.residuals, *stored, nbits=2)
        names.append(plan.kernel.name)
    assert names == ["triton", "blocked"]


def test_memory_is_that_of_the_scores():
    problem = random_residual(LENGTHS, queries=32, query_length=32, dim=128, centroids=2**14)
    called(problem)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    called(problem)
    assert torch.cuda.max_memory_allocated() - before <= 4 * 32 * len(LENGTHS) + 2**10


def test_the_scratch_of_many_queries_is_bounded(decoded_once):
    problem = random_residual((2000, *MANY), queries=32, query_length=32, dim=128, centroids=2**14)
    called(problem)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    called(problem)
    assert torch.cuda.max_memory_allocated() - before <= 2**27 + 2**22
    assert all(decoded_once)


@pytest.mark.parametrize(("lengths", "queries"), [(LENGTHS, 1), (MANY, 32)], ids=["one", "many"])
def test_a_launch_can_be_captured_and_replayed(lengths, queries, decoded_once):
    problem = random_residual(lengths, queries=queries, query_length=32, dim=128, centroids=2**10)
    expected = called(problem)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scores = called(problem)
    for _ in range(2):
        scores.zero_()
        graph.replay()
        assert torch.equal(scores, expected)


def test_another_device_than_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    problem = random_residual()
    moved = {name: getattr(problem, name).to("cuda:1") for name in ("codes", "document_offsets", "token_queries")}
    moved |= {name: getattr(problem, name).to("cuda:1") for name in ("residuals", "centroids", "bucket_weights")}
    assert torch.equal(RESIDUAL.forward(replace(problem, **moved)).cpu(), RESIDUAL.forward(problem).cpu())


def test_two_runs_agree_to_the_bit_at_real_sizes():
    problem = random_residual(LENGTHS, queries=32, query_length=32, dim=128, nbits=4, centroids=2**14)
    assert torch.equal(called(problem), called(problem))
