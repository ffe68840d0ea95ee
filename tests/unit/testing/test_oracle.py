"""The oracle accepts what is as exact as the library or one rounding step, and names what is not."""

from __future__ import annotations

import torch

from li_plugins.testing.oracle import judge

EXACT = torch.tensor([[1.0, -2.0], [0.5, 8.0]], dtype=torch.float64)


def test_an_equal_result_is_right() -> None:
    verdict = judge(EXACT.float(), EXACT)
    assert verdict
    assert verdict.failures == 0
    assert "0 of 4 elements are off" in str(verdict)


def test_the_floor_is_one_rounding_step_of_the_largest_value() -> None:
    step = 8 * torch.finfo(torch.float32).eps
    assert judge((EXACT + 0.9 * step).float(), EXACT)
    assert not judge((EXACT + torch.tensor([[3 * step, 0], [0, 0]])).float(), EXACT)
    assert judge((EXACT + 0.01).half(), EXACT, magnitude=20.0)
    assert judge(EXACT.float() + 0.004, EXACT, rounding=torch.float16)


def test_the_librarys_error_is_a_budget_element_by_element() -> None:
    library = EXACT.float() + torch.tensor([[0.1, 0.0], [0.0, 0.0]])
    assert judge(EXACT.float() + torch.tensor([[-0.09, 0.0], [0.0, 0.0]]), EXACT, library)
    assert not judge(EXACT.float() + torch.tensor([[0.0, 0.09], [0.0, 0.0]]), EXACT, library)


def test_a_verdict_names_the_worst_element() -> None:
    ours = EXACT.float() + torch.tensor([[0.0, 0.25], [0.0, -0.125]])
    verdict = judge(ours, EXACT, EXACT.float(), name="scores")
    assert not verdict
    assert (verdict.index, verdict.failures, verdict.error, verdict.library_error) == ((0, 1), 2, 0.25, 0.0)
    text = str(verdict)
    assert text.startswith("scores: 2 of 4 elements are off; worst at [0, 1]: -1.75, float64 -2, error 0.25 of ")
    assert "the library's 0" in text


def test_nan_and_infinities_are_right_where_float64_has_them() -> None:
    exact = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0], dtype=torch.float64)
    assert judge(exact.float(), exact)
    for place, value in ((0, 1.0), (1, 5.0), (1, -torch.inf), (2, torch.nan), (3, torch.nan), (3, torch.inf)):
        ours = exact.float()
        ours[place] = value
        verdict = judge(ours, exact)
        assert not verdict
        assert verdict.index == (place,)
        assert not judge(ours, exact, exact.float())


def test_a_library_that_overflows_allows_everything_there() -> None:
    exact = torch.tensor([7e4, 1.0], dtype=torch.float64)
    library = exact.half()
    assert library[0].isinf()
    assert judge(torch.tensor([6.5e4, 1.0]).half(), exact, library)


def test_shapes_are_compared_and_nothing_is_right() -> None:
    verdict = judge(torch.zeros(2, 3), torch.zeros(3, 2).double(), name="grad")
    assert not verdict
    assert str(verdict) == "grad: shape [2, 3], expected [3, 2]"
    assert judge(torch.zeros(0, 3), torch.zeros(0, 3).double())


def test_half_precision_is_compared_in_float64() -> None:
    assert judge(EXACT.bfloat16(), EXACT)
    assert not judge((EXACT * 1.02).bfloat16(), EXACT, EXACT.bfloat16(), magnitude=EXACT.abs())
