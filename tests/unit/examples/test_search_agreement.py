"""When two rankings of one index are the same, and what the search demo makes of them."""

import math
import re

import pytest
from indexed_search import agreement, report
from indexed_search.agreement import TIE, compare
from indexed_search.worker import STAGES, Done
from retrieval_demo.collection import Collection
from rich.console import Console


def test_the_same_ranking_is_the_same():
    rankings = [([3, 1, 2], [9.0, 8.0, 7.0]), ([], [])]
    assert compare(rankings, rankings).same
    assert compare(rankings, rankings).largest_swap == 0


def test_ties_may_change_places_and_fall_off_the_end():
    found = [([3, 1, 2], [9.0, 8.0, 8.0 - TIE / 2])]
    assert compare(found, [([3, 2, 1], [9.0, 8.0 - TIE / 4, 8.0 - TIE / 4])]).same
    assert compare(found, [([3, 1, 7], [9.0, 8.0, 8.0 - TIE / 2])]).same


def test_what_is_no_tie_may_not():
    found = [([3, 1, 2], [9.0, 8.0, 7.0])]
    swapped = compare(found, [([1, 3, 2], [9.0, 8.0, 7.0])])
    assert not swapped.same
    assert swapped.largest_swap == pytest.approx(1)
    missing = compare(found, [([7, 1, 2], [9.0, 8.0, 7.0])])
    assert not missing.same
    assert missing.largest_swap == pytest.approx(2)
    other = compare(found, [([3, 1, 2], [9.0, 8.0, 7.5])])
    assert not other.same
    assert other.largest_score_difference == pytest.approx(0.5)
    assert math.isinf(compare(found, [([3, 1], [9.0, 8.0])]).largest_swap)


def findings(ndcg=(0.5, 0.51), same=True, declined=None):
    done = {
        side: Done(
            seconds=dict.fromkeys((*STAGES, "everything"), seconds),
            peak_bytes=2**20,
            query_seconds=[seconds],
            declined=declined or {},
        )
        for side, seconds in ((report.OFF, 4.0), (report.ON, 2.0))
    }
    apart = agreement.Agreement(0.0, 0.0 if same else 1.0)
    quality = {built: dict.fromkeys(done, (value, 0.9)) for built, value in zip(done, ndcg, strict=True)}
    return report.Findings(10, 2, done, quality, dict.fromkeys(done, apart))


def test_a_good_run_has_no_problem_and_a_row_for_each_stage_and_side(monkeypatch):
    monkeypatch.setattr(report, "version", lambda name: "1.0")
    good = findings()
    assert not good.problems()
    rows = good.rows()
    assert len(rows) == 2 * len(good.stages())
    assert good.stages()["the index, all stages"] == (16.0, 8.0)
    assert {row["largest_difference"] for row in rows} == {"0.0e+00"}
    assert [row["peak_mib"] for row in rows if row["stage"] == "the index, all stages"] == ["1", "1"]
    assert good.to_dict()["seconds"]["search"] == {report.OFF: 4.0, report.ON: 2.0}
    assert good.to_dict()["ndcg@10"][report.ON] == {report.OFF: 0.51, report.ON: 0.51}
    console = Console(width=200, record=True)
    console.print(report.found(good))
    assert re.search(rf"nDCG@10, searched by {re.escape(report.ON)} +0.5000 +0.5100", console.export_text())


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"same": False}, "is searched differently"),
        ({"ndcg": (0.5, 0.4)}, "differs by 0.100"),
        ({"declined": {"colbert:score": "no reason"}}, "colbert:score fell back to colbert-ai: no reason"),
    ],
)
def test_what_is_wrong_is_said(keywords, said):
    problems = findings(**keywords).problems()
    assert any(said in problem for problem in problems)


def test_quality_is_that_of_the_judged_documents():
    collection = Collection("two", ["a", "b", "c"], ["x", "y", "z"], ["q"], ["?"], {"q": {"b": 1}})
    assert agreement.quality(collection, [([1, 0], [2.0, 1.0])]) == (1.0, 1.0)
    assert agreement.quality(collection, [([2, 0], [2.0, 1.0])]) == (0.0, 0.0)
