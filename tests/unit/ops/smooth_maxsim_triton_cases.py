"""What smooth MaxSim's Triton kernels have to do, small enough for Triton's interpreter.

test_maxsim_triton.py runs them interpreted, tests/integration/gpu compiled.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import pytest
import torch
import views
from torch import Tensor

from li_plugins.ops.masks import MaskRule
from li_plugins.ops.maxsim.problem import Layout
from li_plugins.ops.maxsim.tuning_sizes import Card
from li_plugins.ops.smooth_maxsim.problem import SmoothProblem
from li_plugins.ops.smooth_maxsim.reference import KERNEL as REFERENCE
from li_plugins.testing.maxsim_cases import assert_close, poisoned_memory

arguments, programs, maxsim_tuning = (
    import_module(f"li_plugins.ops.maxsim.{name}") for name in ("triton_arguments", "triton_programs", "tuning")
)
triton_kernel, tuning = (import_module(f"li_plugins.ops.smooth_maxsim.{name}") for name in ("triton_kernel", "tuning"))
KERNEL = triton_kernel.KERNEL
DEVICE = "cpu" if arguments.INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CROSS, CANDIDATES = Layout.CROSS, Layout.CANDIDATES
LAYOUTS = (CROSS, CANDIDATES)

pytestmark = [
    # numpy speaks up where tests put NaN and infinities on purpose, and where rows beyond a batch overflow
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:divide by zero encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
    # until triton>=3.7 (triton#9171): its interpreter turns arrays of one element into loop bounds
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
]


def by_name(value: object) -> str:
    return str(getattr(value, "name", value)).removeprefix("torch.")


def random_problem(
    layout: Layout = CROSS,
    *,
    queries: int = 3,
    documents: int = 4,
    query_length: int = 7,
    document_length: int = 33,
    dim: int = 8,
    tau: float = 0.1,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> SmoothProblem:
    """Return a problem of unit embeddings; ``documents`` are candidates per query for CANDIDATES."""
    random = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(shape, generator=random), dim=-1).to(dtype).to(DEVICE)

    leading = (documents,) if layout is CROSS else (queries, documents)
    return SmoothProblem(
        layout=layout,
        queries=unit(queries, query_length, dim),
        documents=unit(*leading, document_length, dim),
        rule=MaskRule.NONE,
        out_dtype=out_dtype or dtype,
        max_query_length=query_length,
        max_document_length=document_length,
        tau=tau,
    )


def in_float64(problem: SmoothProblem) -> SmoothProblem:
    return replace(
        problem,
        queries=problem.queries.double(),
        documents=problem.documents.double(),
        out_dtype=torch.float64,
    )


def random_gradient(problem: SmoothProblem) -> Tensor:
    random = torch.Generator().manual_seed(1)
    grad_scores = torch.randn(problem.scores_shape, generator=random)
    grad_scores *= torch.rand(problem.scores_shape, generator=random) > 0.125
    return grad_scores.to(problem.out_dtype).to(DEVICE)


def check(
    problem: SmoothProblem,
    grad_scores: Tensor | None = None,
    library: tuple[Tensor, Tensor, Tensor] | None = None,
) -> None:
    """Compare with the reference in float64, in poisoned memory: scores, sums, and each gradient by itself.

    ``exp(s / tau)`` turns a rounding of ``s`` into ``1 / tau`` as many of a share.
    """
    exact = in_float64(problem)
    absolute = replace(exact, queries=exact.queries.abs(), documents=exact.documents.abs())
    exact_scores, exact_sums = REFERENCE.forward(exact, True)
    sizes, sizes_of_sums = REFERENCE.forward(absolute, True)
    with poisoned_memory():
        scores, nothing = KERNEL.forward(problem, False)
        again, sums = KERNEL.forward(problem, True)
    assert nothing is None
    assert torch.equal(scores, again), "the scores with sums are not those without"
    assert (scores.dtype, sums.dtype, sums.shape) == (problem.out_dtype, torch.float32, problem.winners_shape)
    library_scores, *library_gradients = library or (None, None, None)
    assert_close(scores, exact_scores, sizes, library_scores, "scores")
    assert_close(sums, exact_sums, sizes_of_sums, name="sums")

    grad_scores = random_gradient(problem) if grad_scores is None else grad_scores
    with poisoned_memory():
        gradients = KERNEL.backward(problem, grad_scores, sums, True, True)
        queries_alone, no_documents = KERNEL.backward(problem, grad_scores, sums, True, False)
        no_queries, documents_alone = KERNEL.backward(problem, grad_scores, sums, False, True)
    assert no_queries is None
    assert no_documents is None
    truths = REFERENCE.backward(exact, grad_scores.double(), exact_sums, True, True)
    for side, ours, alone, truth, size, theirs, like in zip(
        ("queries", "documents"),
        gradients,
        (queries_alone, documents_alone),
        truths,
        sizes_of_gradients(exact, grad_scores, exact_sums),
        library_gradients,
        (problem.queries, problem.documents),
        strict=True,
    ):
        assert (ours.dtype, ours.shape) == (like.dtype, like.shape)
        assert torch.equal(ours, alone), f"the gradient of the {side} changes when the other is not asked for"
        assert_close(ours, truth, size, theirs, f"gradient of the {side}")


def check_what_is_finite(problem: SmoothProblem) -> None:
    """Compare with the reference: all scores, and which numbers of the gradients are finite."""
    scores, sums = KERNEL.forward(problem, True)
    expected, expected_sums = REFERENCE.forward(problem, True)
    torch.testing.assert_close(scores, expected, equal_nan=True)
    grad_scores = torch.ones_like(scores)
    found = KERNEL.backward(problem, grad_scores, sums, True, True)
    for ours, theirs in zip(found, REFERENCE.backward(problem, grad_scores, expected_sums, True, True), strict=True):
        assert torch.equal(ours.isfinite(), theirs.isfinite())


def sizes_of_gradients(exact: SmoothProblem, grad_scores: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of the gradients' absolute terms, times what a share's exponent makes of a rounding."""
    candidates = "ksd" if exact.layout is CROSS else "bksd"
    similarities = torch.einsum(f"bnd,{candidates}->bkns", exact.queries, exact.documents)
    shares = (similarities / exact.tau - exact.by_score(sums)[..., None]).exp()
    sizes = torch.einsum(f"bnd,{candidates}->bkns", exact.queries.abs(), exact.documents.abs()) / exact.tau
    terms = shares * grad_scores.double().abs()[..., None, None] * (1 + sizes + exact.by_score(sums).abs()[..., None])
    return (
        torch.einsum(f"bkns,{candidates}->bnd", terms, exact.documents.abs()),
        torch.einsum(f"bkns,bnd->{candidates}", terms, exact.queries.abs()),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
@pytest.mark.parametrize("layout", LAYOUTS, ids=by_name)
def test_layouts_and_dtypes(layout, dtype):
    check(random_problem(layout, queries=2, documents=3, dtype=dtype, document_length=70))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=by_name)
@pytest.mark.parametrize(
    ("query_length", "document_length", "dim"),
    [(1, 1, 1), (7, 63, 8), (33, 130, 48), (1, 130, 96), (7, 1, 130), (33, 63, 320)],
)
def test_odd_shapes(query_length, document_length, dim, dtype):
    if dim == 320 and dtype is torch.float32:
        dim = 40
    check(
        random_problem(
            queries=2, documents=1, query_length=query_length, document_length=document_length, dim=dim, dtype=dtype
        )
    )


@pytest.fixture
def halved(monkeypatch):
    """fp32 in halves, however small the problem and whatever the device."""
    monkeypatch.setattr(arguments, "_is_halved", lambda sizes, device: sizes.element_size == 4)


@pytest.mark.parametrize("dim", [3, 48, 96, 128])
@pytest.mark.parametrize("layout", LAYOUTS, ids=by_name)
@pytest.mark.usefixtures("halved")
def test_fp32_in_halves(layout, dim):
    check(random_problem(layout, queries=3, documents=2, document_length=70, dim=dim))


@pytest.mark.usefixtures("halved")
def test_halves_of_rows_of_any_size():
    problem = random_problem(queries=4, documents=4, dim=64)
    powers = torch.tensor([1e-9, 1e-3, 1.0, 1e6], device=DEVICE)[:, None, None]
    problem = replace(problem, queries=problem.queries * powers, documents=problem.documents * 1e-6)
    check(problem)
    check(problem, random_gradient(problem) * torch.tensor([1e-6, 1e3, 1e-9, 1e12], device=DEVICE))


@pytest.mark.usefixtures("halved")
def test_halves_of_a_document_that_is_far_smaller_than_another():
    problem = random_problem(queries=2, documents=2)
    problem.documents[0] *= 1e-6
    check(problem)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=by_name)
@pytest.mark.parametrize("size", [1e-36, 1e-38, 1e-40, 1e-43])
@pytest.mark.usefixtures("halved")
def test_gradients_that_are_hardly_numbers(dtype, size):
    problem = random_problem(queries=2, documents=2, dtype=dtype, out_dtype=torch.float32)
    _, sums = KERNEL.forward(problem, True)
    grad_scores = torch.tensor([[0.0, size], [-0.5, 0.0]], device=DEVICE)
    found = KERNEL.backward(problem, grad_scores, sums, True, True)
    for ours, theirs in zip(found, REFERENCE.backward(problem, grad_scores, sums, True, True), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("halved")
def test_halves_of_similarities_far_above_the_temperature():
    problem = random_problem(queries=2, documents=2, dim=64, tau=0.02)
    problem = replace(problem, queries=problem.queries * 1000, documents=problem.documents * 1000)
    _, sums = KERNEL.forward(problem, True)
    for gradient in KERNEL.backward(problem, torch.ones(2, 2, device=DEVICE), sums, True, True):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("number", [torch.inf, torch.nan])
@pytest.mark.usefixtures("halved")
def test_halves_of_what_is_no_number(number):
    problem = random_problem(queries=2, documents=3)
    problem.documents[1, 2, 3] = number
    check_what_is_finite(problem)


@pytest.mark.parametrize("tau", [0.02, 1, 5])
def test_temperatures(tau):
    check(random_problem(tau=tau))


def test_scores_in_another_dtype_are_rounded_once():
    check(random_problem(dtype=torch.bfloat16, out_dtype=torch.float32))
    check(random_problem(out_dtype=torch.float64, queries=1))


@pytest.mark.parametrize("layout", LAYOUTS, ids=by_name)
def test_a_query_longer_than_a_tile_is_spread_over_several(layout):
    check(random_problem(layout, queries=2, documents=1, query_length=300, document_length=20))


def test_a_program_scores_several_documents_one_after_the_other(monkeypatch):
    choose = maxsim_tuning.built_in_forward
    monkeypatch.setattr(triton_kernel, "built_in_forward", lambda *given: choose(*given)._replace(documents=3))
    check(random_problem(documents=5))


@pytest.mark.parametrize("layout", LAYOUTS, ids=by_name)
def test_a_grid_above_the_launch_limit_is_launched_in_parts(layout, monkeypatch):
    monkeypatch.setattr(programs, "MAX_PROGRAMS", 3)
    check(random_problem(layout, documents=5))


@pytest.mark.parametrize("most", [1, 2, 1000])
def test_programs_that_share_a_tile(most, monkeypatch):
    monkeypatch.setattr(tuning, "parts", lambda _programs, visits, _card: _shared(visits, min(most, visits)))
    check(random_problem(queries=30, query_length=9, documents=3, document_length=20))


def test_programs_that_share_a_tile_of_candidates(monkeypatch):
    monkeypatch.setattr(tuning, "parts", lambda _programs, visits, _card: _shared(visits, visits))
    check(random_problem(CANDIDATES, queries=2, query_length=140, documents=3, document_length=20))


def _shared(visits: int, wanted: int) -> tuple[int, int]:
    each = -(-visits // wanted)
    return -(-visits // each), each


def test_tiles_are_shared_until_they_fill_a_card():
    card = Card(90, 132, 232_448)
    assert tuning.parts(32, 64, card) == (8, 8)
    assert tuning.parts(1000, 64, card) == (1, 64)
    assert tuning.parts(1, 3, card) == (3, 1)


def test_similarities_far_below_zero():
    """A token beyond the end would be the largest of all."""
    problem = random_problem(document_length=70, query_length=9, tau=1)
    queries, documents = 4 + 4 * problem.queries.abs(), -4 - problem.documents.abs()
    assert (queries[0] @ documents[0].T).max() < -100
    check(replace(problem, queries=queries, documents=documents))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=by_name)
@pytest.mark.parametrize("size", [1e-7, 1e6])
def test_gradients_beyond_the_range_of_the_dtype(dtype, size):
    problem = random_problem(dtype=dtype, out_dtype=torch.float32)
    problem = replace(problem, queries=problem.queries / 64, documents=problem.documents / 64)
    check(problem, random_gradient(problem) * size)


def test_pairs_without_a_gradient_are_skipped():
    problem = random_problem(queries=20, documents=3, query_length=15)
    grad_scores = torch.zeros(20, 3, device=DEVICE)
    check(problem, grad_scores)
    grad_scores[19, 1] = 2
    _, sums = KERNEL.forward(problem, True)
    problem.documents[0] = torch.nan
    problem.queries[3] = torch.nan
    grad_queries, grad_documents = KERNEL.backward(problem, grad_scores, sums, True, True)
    assert grad_queries.isfinite().all()
    assert grad_documents.isfinite().all()


@pytest.mark.parametrize("place", [0, 40, 100])
def test_nan_stays_where_it_is(place):
    problem = random_problem(queries=2, documents=3, document_length=101)
    problem.documents[1, place, 3] = torch.nan
    scores, _ = KERNEL.forward(problem, False)
    assert scores.isnan().tolist() == [[False, True, False]] * 2


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("layout", LAYOUTS, ids=by_name)
def test_what_is_no_number_is_as_in_the_reference(layout, number):
    problem = random_problem(layout, queries=2, documents=3, query_length=2)
    problem = replace(problem, queries=problem.queries.abs(), documents=problem.documents.abs())
    rows = problem.documents if layout is CROSS else problem.documents[1]
    rows[0, 4] = number
    rows[1] = number
    check_what_is_finite(problem)


@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
@pytest.mark.parametrize("number", [torch.inf, torch.nan])
def test_a_gradient_that_is_no_number_stays_with_its_pair(dtype, number):
    problem = random_problem(queries=2, documents=3, dtype=dtype)
    scores, sums = KERNEL.forward(problem, True)
    grad_scores = torch.ones_like(scores)
    grad_scores[1, 2] = number
    grad_queries, grad_documents = KERNEL.backward(problem, grad_scores, sums, True, True)
    assert not grad_queries[1].isfinite().any()
    assert not grad_documents[2].isfinite().any()
    assert grad_queries[0].isfinite().all()
    assert grad_documents[:2].isfinite().all()


@pytest.mark.parametrize(
    ("layout", "sizes"),
    [
        (CROSS, {"queries": 0}),
        (CROSS, {"documents": 0}),
        (CROSS, {"query_length": 0}),
        (CROSS, {"dim": 0}),
        (CANDIDATES, {"queries": 0}),
        (CANDIDATES, {"documents": 0}),
        (CANDIDATES, {"query_length": 0}),
    ],
    ids=by_name,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=by_name)
def test_nothing_to_score(layout, sizes, dtype):
    check(random_problem(layout, dtype=dtype, **{"queries": 1, "documents": 2, **sizes}))


@pytest.mark.parametrize("view", views.STRIDED.values(), ids=views.STRIDED)
@pytest.mark.parametrize("layout", LAYOUTS, ids=by_name)
def test_memory_of_any_layout(layout, view):
    problem = random_problem(layout, queries=2, documents=2)
    check(replace(problem, queries=view(problem.queries), documents=view(problem.documents)))


def test_expanded_documents_and_gradients():
    problem = random_problem(CANDIDATES, queries=2, documents=2)
    documents = problem.documents[:1].expand(2, -1, -1, -1)
    check(replace(problem, documents=documents), torch.tensor(2.0, device=DEVICE).expand(2, 2))


def test_two_runs_agree_to_the_bit():
    problem = random_problem(dtype=torch.bfloat16)
    runs = []
    for _ in range(2):
        scores, sums = KERNEL.forward(problem, True)
        runs.append((scores, sums, *KERNEL.backward(problem, torch.sin(scores), sums, True, True)))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_it_declines_what_it_cannot_compute():
    support = KERNEL.supports(random_problem(dtype=torch.float64))
    assert not support
    assert "float64" in support.reason
    assert KERNEL.supports(random_problem())
