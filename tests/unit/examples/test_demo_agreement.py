"""Whether two rankings count as the same, and what counts as a difference."""

from math import isnan, nan

import pytest
import torch
from retrieval_demo.agreement import TIE, Ranked, compare_rankings, largest_difference, worst_inversion
from retrieval_demo.collection import Collection

IDS = ["a", "b", "c", "d"]
COLLECTION = Collection("toy", IDS, IDS, ["q"], ["a question"], {"q": {"a": 2, "c": 1}})
SCORES = torch.tensor([[4.0, 3.0, 2.0, 1.0]])


def agreement(off, on):
    return compare_rankings("toy", COLLECTION, Ranked.by_scores(IDS, off), Ranked.by_scores(IDS, on))


@pytest.mark.parametrize(
    ("order", "expected"),
    [([0, 1, 2, 3], 0), ([1, 0, 2, 3], 1), ([0, 1, 3, 2], 1), ([2, 0, 1, 3], 2), ([3, 2, 1, 0], 3)],
)
def test_worst_inversion_is_the_gap_between_documents_that_changed_places(order, expected):
    assert worst_inversion(torch.tensor([order]), SCORES.double()) == expected


def test_worst_inversion_is_that_of_the_worst_query():
    scores = torch.tensor([[2.0, 1.0], [7.0, 2.0]])
    assert worst_inversion(torch.tensor([[1, 0], [0, 1]]), scores) == 1
    assert worst_inversion(torch.tensor([[0, 1], [1, 0]]), scores) == 5


def test_a_swap_is_not_hidden_by_neighbours_that_are_each_nearly_tied():
    """Steps of one tie each add up: the last of four is three ties above the first."""
    scores = torch.arange(4, dtype=torch.float64)[None] * TIE
    assert worst_inversion(torch.tensor([[0, 1, 2, 3]]), scores) == pytest.approx(3 * TIE)


def test_tied_documents_may_change_places():
    tied = agreement(torch.tensor([[4.0, 3.0, 3.0 - 2e-6, 1.0]]), torch.tensor([[4.0, 3.0 - 2e-6, 3.0, 1.0]]))
    assert tied.same_ranking
    assert 0 < tied.largest_swap < TIE


def test_other_documents_may_not():
    swapped = agreement(SCORES, torch.tensor([[4.0, 2.0, 3.0, 1.0]]))
    assert not swapped.same_ranking
    assert swapped.largest_swap == 1
    assert not swapped.same_scores
    assert swapped.largest_score_difference == 1


def test_equal_order_with_other_scores_is_told_by_the_scores():
    scaled = agreement(SCORES, SCORES * 1.01)
    assert scaled.same_ranking
    assert not scaled.same_scores


def test_nan_is_never_the_same():
    spoilt = SCORES.clone()
    spoilt[0, 2] = nan
    assert not agreement(SCORES, spoilt).same_scores
    assert not agreement(spoilt, SCORES).same_ranking
    assert isnan(largest_difference([1.0, nan], [1.0, 1.0]))


def test_quality_is_that_of_each_side():
    found = agreement(SCORES, torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert found.ndcg[0] > found.ndcg[1]
    assert found.recall == (1, 1)


def test_results_of_rerank_keep_the_order_they_came_in():
    results = [[{"id": "c", "score": 3.0}, {"id": "a", "score": 3.0}, {"id": "b", "score": 1.0}]]
    ranked = Ranked.by_results([["a", "b", "c"]], results)
    assert ranked.first(0, 2) == ["c", "a"]
    assert ranked.scores.tolist() == [[3.0, 1.0, 3.0]]


def test_a_lost_candidate_is_a_difference():
    whole = Ranked.by_results([["a", "b"]], [[{"id": "a", "score": 2.0}, {"id": "b", "score": 1.0}]])
    short = Ranked.by_results([["a", "b"]], [[{"id": "a", "score": 2.0}]])
    collection = Collection("toy", IDS, IDS, ["q"], ["a question"], {"q": {"a": 1}})
    assert not compare_rankings("toy", collection, whole, short).same_scores
