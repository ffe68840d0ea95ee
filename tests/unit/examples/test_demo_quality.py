"""nDCG and recall against values worked out by hand."""

from math import log2

import pytest
from retrieval_demo.quality import ndcg, recall

JUDGMENTS = {"a": 3, "b": 2, "c": 1}


def test_ndcg_of_the_ideal_order_is_one():
    assert ndcg(["a", "b", "c", "x"], JUDGMENTS, 10) == 1


def test_ndcg_of_a_ranking_with_gaps():
    # b at 1, a at 3, c at 5: 2/log2(2) + 3/log2(4) + 1/log2(6), over 3/log2(2) + 2/log2(3) + 1/log2(4)
    gained = 2 + 3 / 2 + 1 / log2(6)
    ideal = 3 + 2 / log2(3) + 1 / 2
    assert ndcg(["b", "x", "a", "y", "c"], JUDGMENTS, 10) == pytest.approx(gained / ideal, rel=1e-12)
    assert ndcg(["b", "x", "a", "y", "c"], JUDGMENTS, 10) == pytest.approx(0.8162, abs=1e-4)


def test_ndcg_is_cut_at_its_depth_and_so_is_the_ideal():
    # depth 2: the ideal is a, b; the ranking has only b, at 2
    assert ndcg(["x", "b", "a"], JUDGMENTS, 2) == pytest.approx((2 / log2(3)) / (3 + 2 / log2(3)), rel=1e-12)


def test_ndcg_of_a_miss_is_zero():
    assert ndcg(["x", "y"], JUDGMENTS, 10) == 0


def test_the_gain_is_the_grade_not_its_power():
    # with gains 2**grade - 1 this would be 1/7
    assert ndcg(["c"], {"a": 3, "c": 1}, 1) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("depth", "expected"), [(1, 0), (2, 1 / 3), (4, 2 / 3), (100, 1)])
def test_recall(depth, expected):
    assert recall(["x", "a", "y", "c", "b"], JUDGMENTS, depth) == pytest.approx(expected)
