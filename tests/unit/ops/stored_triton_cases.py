"""What the Triton kernels for stored documents have to do, small enough for Triton's interpreter.

test_maxsim_triton.py runs them interpreted, tests/integration/gpu compiled.
"""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
import views
from torch import Tensor

from li_plugins.ops.launch import Options
from li_plugins.ops.residual import blocked
from li_plugins.ops.residual.problem import CodeProblem, ResidualProblem
from li_plugins.ops.residual.reference import CODE as CODE_REFERENCE
from li_plugins.ops.residual.reference import RESIDUAL as RESIDUAL_REFERENCE
from li_plugins.testing.maxsim_cases import poisoned_memory
from li_plugins.testing.oracle import judge

arguments, programs = (
    import_module(f"li_plugins.ops.maxsim.{name}") for name in ("triton_arguments", "triton_programs")
)
triton_kernel, tuning = (
    import_module(f"li_plugins.ops.residual.{name}") for name in ("triton_kernel", "triton_tuning")
)
RESIDUAL, CODE = triton_kernel.RESIDUAL, triton_kernel.CODE
DEVICE = "cpu" if arguments.INTERPRETED else "cuda"
FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
DTYPES = (FP16, BF16, FP32)
LENGTHS = (5, 0, 1, 64, 70, 2)
CENTROIDS = 9

pytestmark = [
    # numpy speaks up where tests put NaN and infinities on purpose
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:divide by zero encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
    # until triton>=3.7 (triton#9171): its interpreter turns arrays of one element into loop bounds
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
]


def by_name(value: object) -> str:
    return str(value).removeprefix("torch.")


def random_residual(
    lengths: tuple[int, ...] = LENGTHS,
    *,
    queries: int = 2,
    query_length: int = 5,
    dim: int = 16,
    nbits: int = 2,
    dtype: torch.dtype = FP16,
    query_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype = FP32,
    pairs: int | None = None,
    normalized: bool = True,
    least: float = -math.inf,
    centroids: int = CENTROIDS,
    seed: int = 0,
) -> ResidualProblem:
    """Return a problem of ``len(lengths)`` documents, and some codes that go on behind the last; pairs in no order."""
    random = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(shape, generator=random), dim=-1)

    total = sum(lengths) + 3
    fields = {
        "codes": torch.randint(centroids, (total,), generator=random, dtype=torch.int32),
        "document_offsets": torch.tensor([0, *lengths]).cumsum(0),
        "pair_queries": None if pairs is None else torch.randint(queries, (pairs,), generator=random),
        "pair_documents": None if pairs is None else torch.randint(len(lengths), (pairs,), generator=random),
        "token_queries": unit(queries, query_length, dim).to(query_dtype or dtype),
        "residuals": torch.randint(256, (total, dim * nbits // 8), generator=random, dtype=torch.uint8),
        "centroids": unit(centroids, dim).to(dtype),
        "bucket_weights": (torch.randn(2**nbits, generator=random) / 8).sort().values.to(dtype),
    }
    return ResidualProblem(
        **{name: None if value is None else value.to(DEVICE) for name, value in fields.items()},
        least=least,
        nbits=nbits,
        normalized=normalized,
        out_dtype=out_dtype,
    )


def random_code(
    lengths: tuple[int, ...] = LENGTHS,
    *,
    queries: int = 2,
    query_length: int = 32,
    dtype: torch.dtype = FP32,
    pairs: int | None = None,
    kept: float | None = None,
    least: float = -9999.0,
    centroids: int = CENTROIDS,
    seed: int = 0,
) -> CodeProblem:
    """Return the same for scores by codes; ``kept`` is the share of centroids that count."""
    stored = random_residual(lengths, queries=queries, pairs=pairs, centroids=centroids, seed=seed)
    random = torch.Generator().manual_seed(seed + 1)
    return CodeProblem(
        codes=stored.codes,
        document_offsets=stored.document_offsets,
        pair_queries=stored.pair_queries,
        pair_documents=stored.pair_documents,
        least=least,
        centroid_scores=torch.randn(queries, centroids, query_length, generator=random).to(dtype).to(DEVICE),
        kept=None if kept is None else (torch.rand(queries, centroids, generator=random) < kept).to(DEVICE),
    )


def scored(kernel: Any, problem: Any) -> Tensor:
    """Return a kernel's scores, made in poisoned memory."""
    with poisoned_memory():
        scores = kernel.forward(problem)
    assert (scores.dtype, scores.shape) == (problem.out_dtype, problem.scores_shape)
    return scores


def in_float64(problem: ResidualProblem) -> ResidualProblem:
    return replace(
        problem,
        token_queries=problem.token_queries.double(),
        centroids=problem.centroids.double(),
        bucket_weights=problem.bucket_weights.double(),
        out_dtype=torch.float64,
    )


def check_residual(problem: ResidualProblem) -> None:
    """Compare with the reference in float64: as close as plain torch, or as the rounding of rows and scores allows.

    So each score, and all scores as a whole, where roundings to and fro do not add up to what one of them may be.
    """
    exact = in_float64(problem)
    truth = RESIDUAL_REFERENCE.forward(exact)
    longest = exact.centroids.norm(dim=-1).max() + exact.bucket_weights.abs().max() * exact.centroids.shape[1] ** 0.5
    magnitude = exact.token_queries.norm(dim=-1).sum(-1) * (1.0 if problem.normalized else longest)
    magnitude = magnitude[:, None] if problem.pair_queries is None else magnitude[problem.pair_queries]
    single, out, rows = (torch.finfo(dtype) for dtype in (FP32, problem.out_dtype, problem.centroids.dtype))
    floor = magnitude * max(rows.eps, 4 * single.eps) + (truth.abs() + out.smallest_normal) * out.eps
    found, plain = scored(RESIDUAL, problem), blocked.RESIDUAL.forward(problem)
    magnitude = torch.where(truth.isfinite(), floor / single.eps, 0.0)
    verdict = judge(found, truth, plain, magnitude=magnitude, rounding=FP32, name="scores")
    assert verdict, str(verdict)
    is_score = truth.isfinite()
    error, allowed = ((scores.double() - truth)[is_score].norm() for scores in (found, plain))
    assert error <= 1.5 * allowed + 4 * max(single.eps, out.eps) * truth[is_score].norm()


def check_code(problem: CodeProblem) -> None:
    """Compare with the reference and with plain torch: equal to the bit."""
    found = scored(CODE, problem)
    assert torch.equal(found, CODE_REFERENCE.forward(problem))
    assert torch.equal(found, blocked.CODE.forward(problem))


@pytest.mark.parametrize("pairs", [None, 9])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
def test_residuals_of_any_bits_and_dtype(nbits, dtype, normalized, pairs):
    check_residual(random_residual(nbits=nbits, dtype=dtype, normalized=normalized, pairs=pairs))


@pytest.mark.parametrize("nbits", [1, 2, 4])
def test_rows_are_those_of_decompress(nbits):
    """With the identity for a query, and documents of one token, the scores of each query token are the row."""
    problem = random_residual((1,) * 30, queries=16, query_length=1, nbits=nbits, normalized=False)
    problem = replace(problem, token_queries=torch.eye(16, dtype=FP16, device=DEVICE)[:, None])
    assert torch.equal(scored(RESIDUAL, problem), blocked.RESIDUAL.forward(problem))


@pytest.mark.parametrize("query_dtype", DTYPES, ids=by_name)
@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
def test_queries_and_centroids_of_two_dtypes(dtype, query_dtype):
    check_residual(random_residual((7, 3), dtype=dtype, query_dtype=query_dtype))


@pytest.mark.parametrize("out_dtype", [*DTYPES, torch.float64], ids=by_name)
def test_scores_are_rounded_once(out_dtype):
    check_residual(random_residual(dtype=BF16, out_dtype=out_dtype))


@pytest.mark.parametrize("pairs", [None, 5])
@pytest.mark.parametrize(
    ("queries", "query_length", "dim"),
    [(1, 1, 8), (1, 32, 24), (5, 3, 48), (3, 33, 128), (9, 32, 64), (2, 130, 40), (2, 7, 136), (1, 300, 16)],
)
def test_odd_shapes(queries, query_length, dim, pairs):
    check_residual(random_residual((1, 63, 65), queries=queries, query_length=query_length, dim=dim, pairs=pairs))


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
@pytest.mark.parametrize("dim", [8, 40, 96])
def test_rows_of_any_width(dim, nbits):
    check_residual(random_residual((9, 2), dim=dim, nbits=nbits, dtype=FP32 if dim == 40 else BF16))


@pytest.mark.parametrize("least", [-math.inf, -9999.0, 0.0, 0.4])
@pytest.mark.parametrize("pairs", [None, 7])
def test_maxima_are_at_least(least, pairs):
    check_residual(random_residual(least=least, pairs=pairs))


def test_similarities_far_below_zero():
    """A row that is not there would be the best of all."""
    problem = random_residual(normalized=False)
    check_residual(
        replace(problem, token_queries=1 + problem.token_queries.abs(), centroids=-4 - problem.centroids.abs())
    )


@pytest.mark.parametrize("documents", [2, 5])
def test_a_program_decodes_several_documents(documents, monkeypatch):
    choose = tuning.residual
    monkeypatch.setattr(tuning, "residual", lambda *sizes: choose(*sizes)._replace(documents=documents))
    check_residual(random_residual(queries=3))


@pytest.fixture
def decode_once(monkeypatch):
    """Return what makes every problem one of many queries, in small blocks, and records the sizes asked for."""

    def with_blocks(
        *, rows: int = 64, slots: int = 2, flat: int = 0, capacity: int = 64, documents: int = 3, programs: int = 2
    ) -> list[Any]:
        asked: list[Any] = []
        blocks = tuning.ManyBlocks(64, rows, slots, flat or slots, flat > 0, capacity, 32)
        many = tuning.Many(blocks, programs, documents, Options(num_warps=4, num_stages=2))
        monkeypatch.setattr(tuning, "many", lambda *sizes: asked.append(sizes) or many)
        return asked

    return with_blocks


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("dtype", [FP16, BF16], ids=by_name)
@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
def test_documents_decoded_once_for_several_tiles_of_queries(nbits, dtype, normalized, decode_once):
    asked = decode_once()
    check_residual(random_residual(queries=5, query_length=20, nbits=nbits, dtype=dtype, normalized=normalized))
    assert asked


@pytest.mark.parametrize("capacity", [16, 64, 128, 512])
@pytest.mark.parametrize("lengths", [(150, 3, 0, 64, 40, 65, 1), (0, 0), (129,), (30, 30, 30, 39, 1, 200)])
def test_documents_that_fit_the_scratch_or_do_not(lengths, capacity, decode_once):
    decode_once(capacity=capacity, documents=2 if capacity == 64 else 4)
    check_residual(random_residual(lengths, queries=5, query_length=32))


@pytest.mark.parametrize(("dim", "least", "out_dtype"), [(24, -math.inf, BF16), (40, 0.4, FP16), (128, -9999.0, FP32)])
def test_decoded_rows_of_any_width(dim, least, out_dtype, decode_once):
    decode_once(rows=128, slots=16)
    check_residual(random_residual(queries=17, query_length=3, dim=dim, nbits=4, least=least, out_dtype=out_dtype))


@pytest.mark.parametrize(("query_length", "queries", "flat", "slots"), [(20, 7, 3, 4), (17, 4, 3, 4), (40, 3, 1, 1)])
def test_queries_decoded_for_that_lie_one_behind_the_other(query_length, queries, flat, slots, decode_once):
    decode_once(flat=flat, slots=slots)
    check_residual(random_residual(queries=queries, query_length=query_length))


def test_decoded_once_from_memory_of_any_layout_and_what_is_no_number(decode_once):
    decode_once()
    problem = random_residual((9, 3), queries=3)
    for view in views.STRIDED.values():
        fields = {name: view(getattr(problem, name)) for name in ("token_queries", "residuals", "centroids")}
        check_residual(replace(problem, **fields, codes=problem.codes.long()))
    assert scored(RESIDUAL, random_residual(())).shape == (2, 0)
    assert scored(RESIDUAL, random_residual(queries=0)).shape == (0, 6)
    assert not scored(RESIDUAL, random_residual(query_length=0)).any()
    problem.centroids[4, 2] = math.nan
    assert torch.equal(scored(RESIDUAL, problem).isnan(), blocked.RESIDUAL.forward(problem).isnan())


def test_many_queries_and_documents_are_what_is_decoded_once():
    card = arguments.card_of(torch.device(DEVICE))._replace(shared_memory=232_448, processors=132)
    sizes = {"queries": 32, "query_length": 32, "documents": 4096, "stored": 490_000, "width": 128, "in_fp32": False}

    def chosen(**changed: Any) -> Any:
        return tuning.many(**{**sizes, **changed}, card=card)

    many = chosen()
    assert many.blocks.ROWS == 256
    assert many.documents * 120 <= many.blocks.CAPACITY
    assert many.programs * many.blocks.CAPACITY * 128 * 2 < 2**27
    assert chosen(query_length=24).blocks[2:5] == (16, 10, True)
    assert chosen(query_length=33).blocks[2:5] == (8, 7, True)
    assert chosen(query_length=150).blocks[2:5] == (1, 1, False)
    assert chosen(query_length=5).blocks[2:5] == (16, 16, False)
    for other in ({"queries": 8}, {"query_length": 300}, {"documents": 100}, {"width": 256}, {"in_fp32": True}):
        assert chosen(**other) is None
    assert tuning.many(**sizes, card=card._replace(shared_memory=101_376)) is None


@pytest.mark.parametrize("pairs", [None, 8])
def test_a_grid_above_the_launch_limit_is_launched_in_parts(pairs, monkeypatch):
    monkeypatch.setattr(triton_kernel, "MAX_PROGRAMS", 3)
    check_residual(random_residual((3, 0, 5, 2), pairs=pairs, queries=17, query_length=32))
    check_code(random_code((3, 0, 5, 2), pairs=pairs))


def test_queries_that_share_a_launch_score_as_alone():
    problem = random_residual(queries=9, query_length=32, nbits=4)
    together = scored(RESIDUAL, problem)
    for number in range(9):
        alone = replace(problem, token_queries=problem.token_queries[number : number + 1])
        torch.testing.assert_close(together[number : number + 1], scored(RESIDUAL, alone), rtol=1e-6, atol=1e-6)


def test_int64_codes_and_no_documents_or_queries_or_pairs():
    problem = random_residual()
    check_residual(replace(problem, codes=problem.codes.long()))
    assert scored(RESIDUAL, random_residual(())).shape == (2, 0)
    assert scored(RESIDUAL, random_residual(queries=0)).shape == (0, 6)
    assert scored(RESIDUAL, random_residual(pairs=0)).shape == (0,)
    assert not scored(RESIDUAL, random_residual(query_length=0)).any()
    assert scored(CODE, random_code(())).shape == (2, 0)
    assert scored(CODE, random_code(queries=0)).shape == (0, 6)
    assert not scored(CODE, random_code(query_length=0)).any()
    check_code(replace(random_code(), codes=random_code().codes.long()))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("normalized", [True, False])
def test_what_is_no_number_is_as_in_torch(normalized, number):
    problem = random_residual(normalized=normalized, dtype=FP32)
    problem = replace(problem, token_queries=problem.token_queries.abs())
    problem.centroids[4, 2] = number
    expected = blocked.RESIDUAL.forward(problem)
    found = scored(RESIDUAL, problem)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.isposinf(), expected.isposinf())
    scores = replace(random_code(), centroid_scores=random_code().centroid_scores.clone())
    scores.centroid_scores[1, 4, 2] = number
    torch.testing.assert_close(scored(CODE, scores), CODE_REFERENCE.forward(scores), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
@pytest.mark.parametrize("size", [0.0, 1e4])
def test_norms_that_vanish_or_overflow_are_as_in_torch(size, dtype):
    problem = random_residual((1, 1), dim=64, dtype=dtype)
    problem = replace(
        problem,
        centroids=torch.full_like(problem.centroids, size),
        bucket_weights=torch.zeros_like(problem.bucket_weights),
    )
    expected, found = blocked.RESIDUAL.forward(problem), scored(RESIDUAL, problem)
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("view", views.STRIDED.values(), ids=views.STRIDED)
@pytest.mark.parametrize("nbits", [2, 4])
def test_memory_of_any_layout(view, nbits):
    problem = random_residual((9, 3), nbits=nbits, pairs=5)
    check_residual(
        replace(
            problem,
            token_queries=view(problem.token_queries),
            residuals=view(problem.residuals),
            centroids=view(problem.centroids),
            codes=problem.codes.repeat_interleave(2)[::2],
            bucket_weights=problem.bucket_weights.repeat_interleave(2)[::2],
        )
    )
    scores = random_code((9, 3), kept=0.5)
    check_code(replace(scores, centroid_scores=view(scores.centroid_scores), kept=view(scores.kept)))


@pytest.mark.parametrize("pairs", [None, 9])
@pytest.mark.parametrize("kept", [None, 0.5, 0.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
def test_scores_by_codes(dtype, kept, pairs):
    check_code(random_code(dtype=dtype, kept=kept, pairs=pairs))


@pytest.mark.parametrize("query_length", [1, 5, 16, 31, 33, 64, 70, 130])
def test_scores_by_codes_of_any_number_of_query_tokens(query_length):
    check_code(random_code((40, 0, 3), query_length=query_length))


def test_equal_documents_have_equal_scores_by_codes():
    problem = random_code((50, 50, 50))
    first = problem.codes[:50]
    problem.codes[50:100], problem.codes[100:150] = first.flip(0), first[torch.randperm(50, device=DEVICE)]
    scores = scored(CODE, problem)
    assert torch.equal(scores, scores[:, :1].expand(-1, 3))


def test_two_runs_agree_to_the_bit():
    problem, scores = random_residual(queries=9, nbits=4), random_code()
    assert torch.equal(scored(RESIDUAL, problem), scored(RESIDUAL, problem))
    assert torch.equal(scored(CODE, scores), scored(CODE, scores))


def test_it_declines_what_it_does_not_compute():
    def reason(**fields: Any) -> str:
        support = RESIDUAL.supports(replace(random_residual((2,)), **fields))
        assert not support
        return support.reason

    assert RESIDUAL.supports(random_residual())
    assert "queries" not in reason(token_queries=torch.zeros(1, 1, 16, dtype=torch.float64, device=DEVICE))
    assert "centroids of torch.float64" in reason(centroids=torch.zeros(1, 16, dtype=torch.float64, device=DEVICE))
    assert "12 dimensions" in reason(centroids=torch.zeros(1, 12, dtype=FP16, device=DEVICE))
    wide = {"token_queries": torch.zeros(1, 1, 136, device=DEVICE), "centroids": torch.zeros(1, 136, device=DEVICE)}
    assert "136 dimensions: of torch.float32 and torch.float32" in reason(**wide)
    assert "264 dimensions" in reason(centroids=torch.zeros(1, 264, dtype=FP16, device=DEVICE))
    assert CODE.supports(random_code())
    assert not CODE.supports(replace(random_code(), centroid_scores=random_code().centroid_scores.double()))
