"""What MaxSim's Triton kernels have to do, small enough for Triton's interpreter.

test_maxsim_triton.py runs them interpreted, tests/integration/gpu compiled.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib import import_module

import pytest
import torch
import views

from li_plugins.ops.masks import MaskRule
from li_plugins.ops.maxsim.problem import Layout
from li_plugins.ops.maxsim.reference import KERNEL as REFERENCE
from li_plugins.ops.maxsim.tuning_sizes import Card, Sizes
from li_plugins.testing.maxsim_cases import LAYOUTS, RULES, check_kernel, poisoned_memory
from li_plugins.testing.maxsim_cases import random_problem as random_problem_on

arguments, gradients, programs, triton_kernel, tuning = (
    import_module(f"li_plugins.ops.maxsim.{name}")
    for name in ("triton_arguments", "triton_gradients", "triton_programs", "triton_kernel", "tuning")
)
KERNEL = triton_kernel.KERNEL
DEVICE = "cpu" if arguments.INTERPRETED else "cuda"
random_problem = partial(random_problem_on, device=DEVICE)

pytestmark = [
    # numpy speaks up where tests put NaN and infinities on purpose
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
    # until triton>=3.7 (triton#9171): its interpreter turns arrays of one element into loop bounds
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
]


def blocks_of(problem):
    return tuning.forward(arguments.sizes_of(problem), True, arguments.card_of(problem.queries.device)).blocks


HALVES = (torch.float16, torch.bfloat16)


def by_name(value: object) -> str:
    return str(getattr(value, "name", value)).removeprefix("torch.")


# Each rule with other dtypes of weights and mask than its neighbour, so that every dtype meets every layout.
FACTORS = {
    "NONE": (torch.bool, None),
    "ZERO": (torch.float32, torch.float32),
    "EXCLUDE": (None, torch.bool),
    "FILL": (torch.float16, torch.int64),
}


@pytest.mark.parametrize("rule", RULES, ids=by_name)
@pytest.mark.parametrize("layout", LAYOUTS, ids=by_name)
def test_layouts_and_rules(layout, rule):
    weights, mask = FACTORS[rule.name]
    documents = 2 if layout is Layout.CANDIDATES else 3
    problem = random_problem(layout, rule, queries=2, documents=documents, weights=weights, mask=mask, coarse=True)
    check_kernel(KERNEL, problem, same_winners=True)


@pytest.mark.parametrize(
    ("query_length", "document_length", "dim"),
    [(1, 1, 1), (7, 63, 8), (33, 130, 48), (1, 130, 96), (7, 1, 130), (33, 63, 320)],
)
@pytest.mark.parametrize("layout", [Layout.CROSS, Layout.PACKED_PAIRS], ids=by_name)
def test_odd_shapes(layout, query_length, document_length, dim):
    problem = random_problem(
        layout,
        RULES[1],
        queries=1,
        documents=1,
        query_length=query_length,
        document_length=document_length,
        dim=dim,
        weights=torch.float32,
    )
    check_kernel(KERNEL, problem)


@pytest.mark.parametrize("out_dtype", [None, torch.float32], ids=by_name)
@pytest.mark.parametrize("dtype", HALVES, ids=by_name)
def test_half_precision_is_accumulated_in_fp32_and_rounded_once(dtype, out_dtype):
    problem = random_problem(
        Layout.CROSS,
        RULES[1],
        queries=2,
        documents=2,
        dim=24,
        dtype=dtype,
        out_dtype=out_dtype,
        weights=dtype,
        mask=dtype,
    )
    check_kernel(KERNEL, problem)


def test_scores_in_float64():
    check_kernel(KERNEL, random_problem(Layout.CROSS, queries=1, documents=2, out_dtype=torch.float64))


@pytest.mark.parametrize("layout", [Layout.CANDIDATES, Layout.PACKED_CROSS, Layout.PACKED_PAIRS], ids=by_name)
def test_a_query_longer_than_a_tile_is_spread_over_several(layout):
    problem = random_problem(
        layout,
        replace(RULES[2], empty_score=-7.5),
        queries=1,
        documents=2,
        query_length=300,
        document_length=20,
        weights=torch.bool,
    )
    assert blocks_of(problem).TOKENS < 300
    check_kernel(KERNEL, problem)


@pytest.mark.parametrize(("queries", "query_length"), [(7, 33), (3, 150), (2, 260)])
def test_rows_of_a_batch_fill_tiles_wherever_its_queries_end(queries, query_length):
    problem = random_problem(
        Layout.CROSS, RULES[1], queries=queries, documents=2, query_length=query_length, document_length=20,
        weights=torch.float32, coarse=True,
    )  # fmt: skip
    blocks = blocks_of(problem)
    assert blocks.FLAT
    owners = [row // query_length for row in range(queries * query_length)]
    tiles = [set(owners[first : first + blocks.ROWS]) for first in range(0, len(owners), blocks.ROWS)]
    assert max(map(len, tiles)) <= blocks.SLOTS
    check_kernel(KERNEL, problem, same_winners=True)


@pytest.mark.parametrize("layout", [Layout.CROSS, Layout.CANDIDATES, Layout.PACKED_CROSS], ids=by_name)
def test_a_program_scores_several_documents_one_after_the_other(layout, monkeypatch):
    problem = random_problem(layout, RULES[3], queries=2, documents=5, query_length=2, document_length=9)
    choose = tuning.forward
    monkeypatch.setattr(tuning, "forward", lambda *arguments: choose(*arguments)._replace(documents=3))
    check_kernel(KERNEL, problem)


def test_programs_fill_the_rounds_that_a_card_runs():
    card = Card(90, 132, 232_448)
    sizes = Sizes("CROSS", False, 2, 128, 256, 32, 512, 180)
    chosen = tuning.forward(sizes, True, card)
    programs = tuning.tiles(chosen.blocks, 256, 32) * -(-512 // chosen.documents)
    assert chosen.documents > 1
    assert programs / (2 * 132) % 1 > 0.7


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=by_name)
@pytest.mark.parametrize("layout", [Layout.CROSS, Layout.PACKED_CROSS], ids=by_name)
def test_winners_of_many_query_tokens_are_sorted(layout, dtype, monkeypatch):
    problem = random_problem(
        layout, RULES[1], queries=9, documents=3, query_length=33, document_length=70, dtype=dtype,
        out_dtype=torch.float32, weights=torch.float32,
    )  # fmt: skip
    assert tuning.sorting(arguments.sizes_of(problem))
    # one document at a time
    monkeypatch.setattr(gradients, "LEAST_ORDER", 1)
    check_kernel(KERNEL, problem)


@pytest.mark.parametrize("query_length", [5, 70])
@pytest.mark.parametrize("rule", RULES, ids=by_name)
def test_candidates_whose_tokens_are_chosen_more_than_once(rule, query_length):
    problem = random_problem(
        Layout.CANDIDATES, rule, queries=2, documents=2, query_length=query_length, document_length=2 * query_length,
        weights=torch.float32, mask=torch.float32, coarse=True, dim=3,
    )  # fmt: skip
    check_kernel(KERNEL, problem, same_winners=True)


def test_gradients_in_the_dtype_of_the_embeddings_are_exact_factors():
    problem = random_problem(
        Layout.CROSS, queries=16, documents=2, query_length=32, document_length=20, dtype=torch.float16
    )
    check_kernel(KERNEL, problem)


@pytest.mark.parametrize("query_length", [4, 300], ids=["product", "sorted"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=by_name)
def test_a_gradient_reads_no_embedding_of_its_own_side(layout, query_length):
    factors = {"weights": torch.float32, "mask": torch.float32}
    problem = random_problem(layout, MaskRule.ZERO, query_length=query_length, **factors)
    scores, winners = KERNEL.forward(problem, True)
    grad = torch.rand_like(scores)
    expected = KERNEL.backward(problem, grad, winners, True, True)
    for side, name in enumerate(("queries", "documents")):
        nan = getattr(problem, name).new_tensor(torch.nan).expand(getattr(problem, name).shape)
        found = KERNEL.backward(replace(problem, **{name: nan}), grad, winners, side == 0, side == 1)
        assert found[1 - side] is None
        assert torch.equal(found[side], expected[side])


@pytest.fixture
def halved(monkeypatch):
    """fp32 in halves, however small the problem and whatever the device."""
    monkeypatch.setattr(arguments, "_is_halved", lambda sizes, device: sizes.element_size == 4)


@pytest.mark.parametrize("dim", [3, 48, 96, 128])
@pytest.mark.parametrize("layout", [Layout.CROSS, Layout.PACKED_CROSS], ids=by_name)
@pytest.mark.parametrize("rule", RULES, ids=by_name)
def test_fp32_in_halves(rule, layout, dim, halved):
    weights, mask = FACTORS[rule.name]
    problem = random_problem(layout, rule, queries=3, documents=3, dim=dim, weights=weights, mask=mask)
    check_kernel(KERNEL, problem)


@pytest.mark.usefixtures("halved")
def test_halves_of_rows_of_any_size():
    problem = random_problem(Layout.CROSS, queries=4, documents=4, dim=64)
    powers = torch.tensor([1e-18, 1e-6, 1.0, 1e12], device=DEVICE)[:, None, None]
    large = replace(problem, queries=problem.queries * powers, documents=problem.documents * powers.flip(0))
    check_kernel(KERNEL, large)
    subnormal = replace(problem, queries=problem.queries * 1e-41, documents=problem.documents * 1e20)
    exact = replace(subnormal, queries=subnormal.queries.double(), documents=subnormal.documents.double())
    torch.testing.assert_close(KERNEL.forward(subnormal, False)[0], REFERENCE.forward(exact, False)[0].float())


@pytest.mark.usefixtures("halved")
def test_halves_of_what_is_not_finite():
    problem = random_problem(Layout.CROSS, queries=3, documents=4, query_length=8, document_length=9, dim=16)
    queries, documents = problem.queries.clone(), problem.documents.clone()
    queries[0, 2, 3] = torch.inf
    documents[1, 4, 5] = torch.nan
    documents[2, 1, 0] = -torch.inf
    problem = replace(problem, queries=queries, documents=documents, document_lengths=None)
    scores, winners = KERNEL.forward(problem, True)
    expected, expected_winners = REFERENCE.forward(problem, True)
    assert not expected.isfinite().all()
    torch.testing.assert_close(scores, expected, equal_nan=True)
    assert torch.equal(winners, expected_winners)


@pytest.mark.parametrize("rule", RULES[1:], ids=by_name)
def test_what_is_masked_at_the_end_is_not_looked_at(rule):
    problem = random_problem(rule=rule, layout=Layout.CROSS, queries=2, documents=4, document_length=70, coarse=True)
    mask = torch.ones_like(problem.document_mask)
    mask[0, 30:] = 0
    mask[1, 64:] = 0
    mask[2, 1:] = 0
    mask[3, 5] = 0
    problem = replace(problem, document_mask=mask)
    check_kernel(KERNEL, problem, same_winners=True)
    check_kernel(KERNEL, replace(problem, documents=-problem.documents.abs(), queries=problem.queries.abs()))


def test_several_queries_share_a_tile_and_the_last_tile_is_not_full():
    problem = random_problem(Layout.PACKED_CROSS, RULES[3], queries=5, documents=1, weights=torch.uint8, coarse=True)
    assert blocks_of(problem).SLOTS == 8
    check_kernel(KERNEL, problem, same_winners=True)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.float16, torch.bfloat16, torch.float64], ids=by_name)
@pytest.mark.parametrize("rule", RULES[1:3], ids=by_name)
def test_weights_and_masks_of_any_dtype(rule, dtype):
    problem = random_problem(
        Layout.CROSS, rule, queries=1, documents=1, lengths=False, weights=dtype, mask=dtype, coarse=True
    )
    check_kernel(KERNEL, problem, same_winners=True)


def test_a_float64_mask_below_the_smallest_float32_still_keeps():
    problem = random_problem(Layout.CROSS, RULES[2], queries=1, documents=2, mask=torch.float64)
    mask = problem.document_mask * 1e-60
    scores, _ = KERNEL.forward(replace(problem, document_mask=mask), False)
    assert torch.equal(scores, KERNEL.forward(problem, False)[0])


@pytest.mark.parametrize("rule", RULES, ids=by_name)
def test_a_document_whose_tokens_are_all_masked(rule):
    problem = random_problem(Layout.CROSS, rule, queries=1, documents=2, lengths=False, coarse=True)
    mask = None if rule.name == "NONE" else torch.zeros_like(problem.document_mask)
    check_kernel(KERNEL, replace(problem, document_mask=mask, documents=-problem.documents.abs()), same_winners=True)


def test_a_document_of_length_zero_scores_the_rule_s_empty_score():
    rule = replace(MaskRule.EXCLUDE, empty_score=-7.5)
    problem = random_problem(Layout.PACKED_CROSS, rule, queries=2, documents=3)
    scores, winners = KERNEL.forward(problem, True)
    assert (scores[:, 2] == -7.5).all()
    assert (problem.by_score(winners)[0, 2] == -1).all()


@pytest.mark.parametrize("layout", [Layout.PACKED_CROSS, Layout.PACKED_PAIRS], ids=by_name)
def test_the_floor_wins_over_negative_similarities_where_there_is_one(layout):
    problem = random_problem(layout, queries=2, documents=3)
    floor = torch.arange(len(problem.floor), device=DEVICE) % 2 == 0
    problem = replace(problem, queries=problem.queries.abs(), documents=-problem.documents.abs(), floor=floor)
    scores, _ = KERNEL.forward(problem, False)
    assert (scores == 0).any()
    assert (scores < 0).any()
    check_kernel(KERNEL, problem)


@pytest.mark.parametrize("first", [0, 1, 70])
def test_ties_go_to_the_first_maximum_within_and_across_tiles(first):
    problem = random_problem(Layout.CROSS, queries=1, documents=1, query_length=1, document_length=130, lengths=False)
    problem.queries[:] = 0.25
    problem.documents[:] = 0.5
    problem.documents[:, :first] = -0.5
    assert KERNEL.forward(problem, True)[1].item() == first


@pytest.mark.parametrize("place", [0, 40, 100])
def test_nan_propagates_from_the_first_token_that_has_one(place):
    problem = random_problem(Layout.CROSS, queries=1, documents=2, document_length=101, lengths=False)
    problem.documents[0, place:, 3] = torch.nan
    (scores, winners), (alone, _) = KERNEL.forward(problem, True), KERNEL.forward(problem, False)
    assert scores[0, 0].isnan()
    assert alone[0, 0].isnan()
    assert (winners[0, 0] == place).all()
    assert scores[0, 1].isfinite()


def test_nan_behind_the_length_or_an_excluding_mask_does_not_exist():
    problem = random_problem(Layout.CROSS, RULES[2], queries=1, documents=2, lengths=False)
    lengths = torch.tensor([20, 33], device=DEVICE)
    problem.document_mask[:] = True
    problem.document_mask[1, 5] = False
    problem = replace(problem, document_lengths=lengths)
    clean = KERNEL.forward(problem, True)
    problem.documents[0, 20:] = torch.nan
    problem.documents[1, 5] = torch.nan
    dirty = KERNEL.forward(problem, True)
    assert torch.equal(clean[0], dirty[0])
    assert torch.equal(clean[1], dirty[1])


def test_infinities_are_numbers():
    problem = random_problem(Layout.CROSS, queries=1, documents=3, query_length=2, lengths=False)
    queries = problem.queries.abs()
    problem.documents[:] = problem.documents.abs()
    problem.documents[0, 4] = torch.inf
    problem.documents[1, 4] = -torch.inf
    problem.documents[2] = -torch.inf
    problem = replace(problem, queries=queries)
    scores, winners = KERNEL.forward(problem, True)
    expected, first = REFERENCE.forward(problem, True)
    assert torch.equal(scores.isinf(), expected.isinf())
    assert scores[0, 0] == torch.inf
    assert scores[0, 2] == -torch.inf
    assert torch.equal(winners, first)


def test_a_gradient_that_is_not_finite_reaches_its_winners_only():
    problem = random_problem(Layout.CROSS, queries=2, documents=2, lengths=False)
    _, winners = KERNEL.forward(problem, True)
    grad_scores = torch.tensor([[torch.nan, 1.0], [1.0, 1.0]], device=DEVICE)
    grad_queries, grad_documents = KERNEL.backward(problem, grad_scores, winners, True, True)
    assert grad_queries[0].isnan().all()
    assert grad_queries[1].isfinite().all()
    is_winner = torch.zeros(33, dtype=torch.bool, device=DEVICE)
    is_winner[winners[0, 0].long()] = True
    assert torch.equal(grad_documents[0].isnan().all(-1), is_winner)
    assert grad_documents[1].isfinite().all()


@pytest.mark.parametrize(
    ("layout", "sizes"),
    [
        (Layout.CROSS, {"queries": 0}),
        (Layout.CROSS, {"documents": 0}),
        (Layout.CROSS, {"query_length": 0}),
        (Layout.CROSS, {"document_length": 0}),
        (Layout.CROSS, {"dim": 0}),
        (Layout.CANDIDATES, {"documents": 0}),
        (Layout.PACKED_CROSS, {"queries": 0}),
        (Layout.PACKED_CROSS, {"documents": 0}),
        (Layout.PACKED_PAIRS, {"query_length": 0}),
        (Layout.PACKED_PAIRS, {"document_length": 0}),
    ],
    ids=by_name,
)
def test_nothing_to_score(layout, sizes):
    problem = random_problem(layout, RULES[2], **{"queries": 1, "documents": 2, **sizes})
    check_kernel(KERNEL, problem, same_winners=True)


def test_no_pairs():
    problem = random_problem(Layout.PACKED_PAIRS, queries=2, documents=2, floor=False)
    nobody = torch.empty(0, dtype=torch.int64, device=DEVICE)
    check_kernel(KERNEL, replace(problem, pair_queries=nobody, pair_documents=nobody))


@pytest.mark.parametrize("view", views.STRIDED.values(), ids=views.STRIDED)
def test_memory_of_any_layout(view):
    problem = random_problem(Layout.CROSS, RULES[1], queries=2, documents=2, weights=torch.float32)
    strided = {
        name: view(getattr(problem, name)) for name in ("queries", "documents", "query_weights", "document_mask")
    }
    if view(problem.queries).stride() == problem.queries.stride():
        assert view(problem.queries).storage_offset()
    check_kernel(KERNEL, replace(problem, **strided))


def test_expanded_documents_and_gradients():
    problem = random_problem(Layout.CANDIDATES, queries=2, documents=2, lengths=False)
    problem = replace(problem, documents=problem.documents[:1].expand(2, -1, -1, -1))
    check_kernel(KERNEL, problem, grad_scores=torch.tensor(2.0, device=DEVICE).expand(2, 2))


def test_packed_tokens_that_belong_to_no_document_get_no_gradient():
    problem = random_problem(Layout.PACKED_CROSS, queries=1, documents=2, floor=False)
    longer = torch.cat([problem.documents, problem.documents.new_ones(3, 8)])
    problem = replace(problem, documents=longer)
    scores, winners = KERNEL.forward(problem, True)
    with poisoned_memory():
        _, gradient = KERNEL.backward(problem, torch.ones_like(scores), winners, False, True)
    assert (gradient[-3:] == 0).all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=by_name)
def test_a_grid_above_the_launch_limit_is_launched_in_parts(layout, monkeypatch):
    problem = random_problem(layout, queries=3, documents=5)
    monkeypatch.setattr(programs, "MAX_PROGRAMS", 3)
    check_kernel(KERNEL, problem)


def test_two_runs_agree_to_the_bit():
    problem = random_problem(Layout.PACKED_PAIRS, RULES[1], queries=2, documents=2, weights=torch.float32)
    runs = []
    for _ in range(2):
        scores, winners = KERNEL.forward(problem, True)
        runs.append((scores, *KERNEL.backward(problem, torch.sin(scores), winners, True, True)))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_it_declines_what_it_cannot_compute():
    problem = random_problem(Layout.CROSS, dtype=torch.float64)
    support = KERNEL.supports(problem)
    assert not support
    assert "float64" in support.reason
    assert KERNEL.supports(random_problem(Layout.CROSS))
