"""The branches for a GPU on a machine without one."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NoReturn

import pytest
import tiny_colbert
import torch
from gpu_cases import *  # noqa: F403 - its tests are collected here
from gpu_cases import ranking
from gpu_codec_cases import *  # noqa: F403 - likewise
from li_plugins_colbert import candidates, graphs, residency, stages
from li_plugins_colbert import ranking as ranking_module
from li_plugins_colbert.residency import Ragged, Stored
from pretended_gpu import pretended_gpu
from torch import Tensor

from li_plugins.ops import recipes

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is seen: test_colbert_cuda.py has these cases")


@pytest.fixture(autouse=True)
def _gpu() -> Iterator[None]:
    with pretended_gpu():
        yield


@pytest.mark.parametrize("on_host", [("codes",), ("residuals",), ("codes", "residuals"), ()])
def test_rows_of_what_stays_on_the_host(on_host: tuple[str, ...]) -> None:
    lengths = torch.randint(0, 9, (20,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    parts = {"codes": torch.arange(200, dtype=torch.int32), "residuals": torch.randint(0, 256, (200, 4)).byte()}
    # to torch this is another device than the one that the parts are on
    device = torch.device("cpu", 0)
    there = {name: part if name in on_host else part.to(device) for name, part in parts.items()}
    where = device if on_host else torch.device("cpu")
    stored = Stored((), where, *there.values(), offsets, Ragged(offsets, offsets), "")
    asked = torch.tensor([7, 3, 19, 7])
    codes, residuals, begins, documents = stored.tokens(asked, residuals=True)
    for place, pid in zip(documents.tolist(), asked.tolist(), strict=True):
        mine, theirs = slice(*begins[place : place + 2]), slice(*offsets[pid : pid + 2])
        assert torch.equal(codes[mine], parts["codes"][theirs])
        assert torch.equal(residuals[mine], parts["residuals"][theirs])


def test_what_comes_from_the_host_comes_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = torch.randint(0, 9, (50,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    total = int(offsets[-1])
    codes = torch.randint(0, 20, (total,), dtype=torch.int32)
    residuals = torch.randint(0, 256, (total, 4), dtype=torch.uint8)
    centroids, queries = torch.randn(20, 16), torch.randn(3, 5, 16)
    codec = SimpleNamespace(centroids=centroids, bucket_weights=torch.randn(4), nbits=2)
    pairs = torch.arange(3).repeat_interleave(40), torch.randint(0, 50, (120,))
    pairs[1][::7] = int(lengths.argmax())
    gathered: list[int] = []
    rows = Stored.rows

    def recorded(self: Stored, part: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        gathered.append(len(asked))
        return rows(self, part, asked)

    monkeypatch.setattr(Stored, "rows", recorded)
    monkeypatch.setattr(residency, "TOKENS_TOGETHER", 6)
    found = []
    # to torch the second is another device than the one that the parts are on
    for where in (torch.device("cpu"), torch.device("cpu", 0)):
        stored = Stored((), where, codes, residuals, offsets, Ragged(offsets, offsets), "")
        scores = (centroids @ queries.mT).to(where)
        left = stages.left(stored, scores, pairs, 11, scores.amax(-1) >= 0.3)
        found.append((*left, stages.scored(stored, codec, queries, pairs, torch.float32)))
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(here, there)
    assert max(gathered) == int(lengths.amax()) > 6
    assert sum(gathered) == 3 * int(lengths[pairs[1]].sum())
    assert len(gathered) > 100


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("ncells", [1, 4])
def test_candidates_from_lists_on_the_host(queries: int, ncells: int) -> None:
    lengths = torch.randint(0, 9, (20,))
    cells = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    listed = torch.randint(0, 50, (int(cells[-1]),), dtype=torch.int32)
    asked, centroids = torch.randn(queries, 5, 16), torch.randn(20, 16)
    found = []
    # to torch the second is another device than the one that everything is on
    for where in (torch.device("cpu"), torch.device("cpu", 0)):
        stored = Stored((), where, listed, listed, torch.arange(51), Ragged(listed, cells), "")
        found.append(candidates.of_queries(stored, centroids, asked, ncells))
    for mine, other in zip(*found, strict=True):
        assert torch.equal(mine, other)
    expected = []
    for query, scores in enumerate(found[0].centroid_scores):
        near = scores.topk(ncells, dim=0).indices.flatten().tolist()
        pids = {pid for cell in near for pid in listed[cells[cell] : cells[cell + 1]].tolist()}
        expected += [(query, pid) for pid in sorted(pids)]
    assert list(zip(found[0].queries.tolist(), found[0].passages.tolist(), strict=True)) == expected


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("owners", [[0] * 9, [0, 0, 0, 2, 2, 2, 2, 2, 3], [1, 1]], ids=str)
def test_best(owners: list[int], in_order: bool) -> None:
    queries = torch.tensor(owners)
    scores = torch.randperm(len(owners)).float() - 9999
    for count in (1, 2, 4, 20):
        chosen = stages.best(queries, scores, count, max(owners) + 1, in_order=in_order).tolist()
        runs = [[place for place in chosen if owners[place] == query] for query in range(max(owners) + 1)]
        assert [place for run in runs for place in run] == chosen, "sorted by query"
        for query, run in enumerate(runs):
            order = sorted((p for p in range(len(owners)) if owners[p] == query), key=lambda p: -scores[p])[:count]
            assert (run if in_order else sorted(run)) == (order if in_order else sorted(order))


class Again:
    """A CUDA graph without CUDA: computes from what lies at its place, whatever a call is given."""

    made: ClassVar[list[Again]] = []

    def __init__(self, function: Callable[[Tensor], Tensor], queries: Tensor) -> None:
        self.queries, self.function, self.calls = queries.clone(), function, 0
        self.result = function(self.queries).clone()
        self.made.append(self)

    def __call__(self, queries: Tensor) -> Tensor:
        self.calls += 1
        self.queries.copy_(queries)
        return self.result.copy_(self.function(self.queries))


@pytest.fixture
def remembers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Return what lets a searcher remember searches, by graphs that need no GPU."""
    monkeypatch.setenv(graphs.VARIABLE, "1")
    monkeypatch.setattr("torch.cuda.current_device", lambda: None)  # that of torch.device("cpu")
    monkeypatch.setattr(graphs, "Graph", Again)
    monkeypatch.setattr(graphs, "CAPTURABLE", {"blocked"})
    monkeypatch.setattr(graphs, "_failures", [])
    monkeypatch.setattr(Again, "made", [])

    def begin(searcher: Any) -> None:
        stored = residency.of(searcher.ranker)
        setattr(searcher.ranker, residency.KEPT, stored._replace(searches=graphs.Searches()))

    return begin


@pytest.mark.parametrize("asked", [None, "auto"])
def test_graphs_are_for_who_is_alone(asked: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Monitor(threading.Thread):
        __module__ = "tqdm._monitor"

    monkeypatch.setattr(graphs, "_failures", [])
    monkeypatch.delenv(graphs.VARIABLE, raising=False)
    if asked:
        monkeypatch.setenv(graphs.VARIABLE, asked)
    others: list[threading.Thread] = []
    monkeypatch.setattr("threading.enumerate", lambda: [threading.current_thread(), *others])
    monkeypatch.setattr("threading.active_count", lambda: 1 + len(others))
    assert graphs.are_used()
    others.append(Monitor())
    assert graphs.are_used()
    others.append(threading.Thread())
    assert not graphs.are_used()
    monkeypatch.setenv(graphs.VARIABLE, "1")
    assert graphs.are_used()
    others.clear()
    for word in ("0", "off", "no"):
        monkeypatch.setenv(graphs.VARIABLE, word)
        assert not graphs.are_used()


FEW = {"ncells": 3, "ndocs": 24, "centroid_score_threshold": 0.3}
"""Settings with so few candidates that both stages leave some out."""


def test_searches_by_graphs(checkpoint: Path, tmp_path: Path, remembers: Callable[[Any], None]) -> None:
    texts = tiny_colbert.passages()
    tiny_colbert.build(checkpoint, tmp_path, texts)
    expected = ranking(tiny_colbert.searcher(checkpoint, tmp_path, texts, **FEW))
    searcher = tiny_colbert.searcher(checkpoint, tmp_path, texts, **FEW)
    remembers(searcher)
    for times in range(3):
        assert ranking(searcher) == expected
        searches = (times + 1) * len(expected)
        # the first finds out how many candidates there are
        assert [graph.calls for graph in Again.made] == [searches - graphs.CAPTURED]
    # other settings are another kind
    searcher.configure(ndocs=20)
    others = ranking(searcher)
    assert len(Again.made) == 2
    assert others != expected
    searcher.configure(ndocs=24)
    assert ranking(searcher) == expected
    assert len(Again.made) == 2


def test_fewer_candidates_than_are_left(checkpoint: Path, tmp_path: Path, remembers: Callable[[Any], None]) -> None:
    texts = tiny_colbert.passages()
    tiny_colbert.build(checkpoint, tmp_path, texts)
    expected = ranking(tiny_colbert.searcher(checkpoint, tmp_path, texts))
    searcher = tiny_colbert.searcher(checkpoint, tmp_path, texts)
    remembers(searcher)
    for _ in range(2):
        assert ranking(searcher) == expected
    assert [graph.calls > 0 for graph in Again.made] == [True]


def test_more_candidates_than_there_is_room_for(
    checkpoint: Path, tmp_path: Path, remembers: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tiny_colbert.passages()
    tiny_colbert.build(checkpoint, tmp_path, texts)
    expected = ranking(tiny_colbert.searcher(checkpoint, tmp_path, texts, **FEW))
    searcher = tiny_colbert.searcher(checkpoint, tmp_path, texts, **FEW)
    remembers(searcher)
    counts: list[int] = []

    def make_room(kind: graphs.Kind, count: int) -> None:
        counts.append(count)
        kind.room, kind._runs, kind._graph = count, 0, None

    monkeypatch.setattr(graphs.Kind, "make_room", make_room)
    for _ in range(3):
        assert ranking(searcher) == expected
    assert len(counts) > 1
    assert counts == sorted(set(counts)), "each had more than any before"
    assert Again.made[-1].calls > len(expected), "where nobody has more, the graph stays"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("room", [1, 30, 100])
def test_candidates_in_a_room(room: int, share: float) -> None:
    is_near = torch.rand(1, 60, generator=torch.Generator().manual_seed(room)) < share
    passages, is_there, count = candidates.in_room(is_near, room)
    expected = is_near[0].nonzero()[:, 0]
    assert count.tolist() == [len(expected)]
    assert passages.shape == is_there.shape == (room,)
    assert passages[is_there].tolist() == expected[:room].tolist()
    assert not is_there[len(expected) :].any()
    assert passages[~is_there].unique().tolist() in ([], [59])


def test_no_candidates_in_a_room() -> None:
    """Who is not there has no place in a ranking, even where another score is no greater than its own."""
    infinite = float("inf")
    assert ranking_module._read([0.0, 0.0, 59.0, 59.0, -infinite, -infinite], 0) == ([], [])
    assert ranking_module._read([0.0, 1.0, 59.0, 7.0, -infinite, -infinite], 1) == ([7], [-infinite])
    assert ranking_module._read([1.0, 1.0, 3.0, 7.0, 2.5, 1.5], 9) == ([3, 7], [2.5, 1.5])
    assert ranking_module._read([], 9) == ([], [])


@pytest.mark.parametrize(("count", "room"), [(0, 64), (1, 64), (52, 128), (1000, 1280), (27_500, 34_816)])
def test_room_for_a_quarter_more(count: int, room: int) -> None:
    kind = graphs.Kind()
    kind.make_room(count)
    assert kind.room == room


def test_after_a_failure_nothing_is_captured(
    checkpoint: Path,
    tmp_path: Path,
    remembers: Callable[[Any], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    texts = tiny_colbert.passages()
    tiny_colbert.build(checkpoint, tmp_path, texts)
    expected = ranking(tiny_colbert.searcher(checkpoint, tmp_path, texts, **FEW))
    searcher = tiny_colbert.searcher(checkpoint, tmp_path, texts, **FEW)
    remembers(searcher)
    tried = []

    def graph(*given: Any) -> NoReturn:
        tried.append(given)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "Graph", graph)
    for _ in range(3):
        assert ranking(searcher) == expected
    assert len(tried) == 1
    assert not graphs.are_used()
    assert "operation not permitted" in caplog.text


@pytest.mark.parametrize("why", ["the user's word", "another thread", "another device", "another kernel"])
def test_no_graphs(
    checkpoint: Path, tmp_path: Path, remembers: Callable[[Any], None], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tiny_colbert.passages()
    tiny_colbert.build(checkpoint, tmp_path, texts)
    searcher = tiny_colbert.searcher(checkpoint, tmp_path, texts, **FEW)
    remembers(searcher)
    if why == "the user's word":
        monkeypatch.setenv(graphs.VARIABLE, "0")
    elif why == "another thread":
        monkeypatch.delenv(graphs.VARIABLE)
        monkeypatch.setattr("threading.enumerate", lambda: [threading.current_thread(), threading.Thread()])
        monkeypatch.setattr("threading.active_count", lambda: 2)
    elif why == "another device":
        monkeypatch.setattr("torch.cuda.current_device", lambda: 1)
    else:
        monkeypatch.setattr(graphs, "CAPTURABLE", {"triton"})
    found = ranking(searcher)
    for _ in range(2):
        assert ranking(searcher) == found
    assert not Again.made


def test_few_kinds_are_remembered(checkpoint: Path, tmp_path: Path, remembers: Callable[[Any], None]) -> None:
    texts = tiny_colbert.passages()
    tiny_colbert.build(checkpoint, tmp_path, texts)
    searcher = tiny_colbert.searcher(checkpoint, tmp_path, texts, **FEW)
    remembers(searcher)

    def found(ndocs: int) -> Any:
        searcher.configure(ndocs=ndocs)
        return ranking(searcher)

    first, second, *others = range(8, 9 + graphs.MOST)
    expected = {ndocs: found(ndocs) for ndocs in (first, second, *others[:-1])}
    assert len(Again.made) == graphs.MOST
    assert found(first) == expected[first]
    found(others[-1])  # in the place of the second, which was longest not searched for
    assert len(Again.made) == graphs.MOST + 1
    assert found(first) == expected[first]
    assert len(Again.made) == graphs.MOST + 1
    assert found(second) == expected[second]
    assert len(Again.made) == graphs.MOST + 2
    recipes.forget()  # other kernels may be chosen now
    assert found(second) == expected[second]
    assert len(Again.made) == graphs.MOST + 3
    assert len(residency.of(searcher.ranker).searches._kinds) == 1


def test_graphs_stay_behind() -> None:
    searches = graphs.Searches()
    searches.kind("something")
    for copied in (copy.deepcopy(searches), pickle.loads(pickle.dumps(searches))):
        assert not copied._kinds
