"""What makes a run of the demo a failure, and what its JSON holds."""

import dataclasses
import json
from collections import Counter
from math import nan

import pytest
from retrieval_demo import findings as module
from retrieval_demo.agreement import RankingAgreement
from retrieval_demo.comparison import OFF, ON, Comparison, Runs
from retrieval_demo.findings import Findings

AGREED = RankingAgreement("exact retrieval", (0.5, 0.5), (0.9, 0.9), 2e-6, 4e-6)


def comparison(**changes):
    sides = {OFF: Runs([4.0, 8.0, 6.0], [4 * 2**30], []), ON: Runs([2.0, 1.0, 3.0], [2**30], [])}
    return dataclasses.replace(Comparison("exact retrieval", sides, Counter(score=3)), **changes)


def findings(**changes):
    whole = Findings({}, "a machine", "rss", [comparison()], [AGREED], {OFF: [2.0], ON: [2.0]}, 1e-6)
    return dataclasses.replace(whole, **changes)


def test_a_run_that_agrees_has_no_problem():
    assert findings().problems() == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rankings": [dataclasses.replace(AGREED, largest_swap=2e-5)]}, "rankings differ; documents 2e-05 apart"),
        ({"rankings": [dataclasses.replace(AGREED, largest_swap=nan)]}, "rankings differ"),
        ({"rankings": [dataclasses.replace(AGREED, largest_score_difference=2e-3)]}, "scores differ by 0.002"),
        ({"rankings": [dataclasses.replace(AGREED, largest_score_difference=nan)]}, "scores differ by nan"),
        ({"largest_loss_difference": 0.01}, "losses differ by 0.01"),
        ({"largest_loss_difference": nan}, "losses differ by nan"),
        ({"comparisons": [comparison(served=Counter())]}, "no call was answered by li-plugins"),
        ({"comparisons": [comparison(declined=Counter(rerank=2))]}, "rerank gave 2 calls back to PyLate"),
    ],
)
def test_every_disagreement_is_a_problem(changes, expected):
    (problem,) = findings(**changes).problems()
    assert expected in problem


def test_medians_and_ratios():
    found = comparison()
    assert found.sides[OFF].median_seconds == 6
    assert found.speedup == 3
    assert found.memory_ratio == 4


def test_a_peak_too_small_to_measure_is_no_infinite_gain():
    sides = {OFF: Runs([1.0], [64 * 2**20]), ON: Runs([1.0], [0])}
    assert comparison(sides=sides).memory_ratio == 64


def test_plain_data_survives_json(monkeypatch):
    monkeypatch.setattr(module, "version", lambda name: f"{name} 1.0")
    data = json.loads(json.dumps(findings().to_dict({"rows": []})))
    assert data["stages"][0]["sides"][ON]["median_seconds"] == 2
    assert data["rankings"][0]["same_ranking"] is True
    assert data["problems"] == []
    assert data["versions"]["torch"] == "torch 1.0"
