"""What colbert-ai does where it sees a GPU, patched and by itself: the cases of a real GPU and of a pretended one."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import tiny_colbert
import torch
from colbert.infra import ColBERTConfig
from colbert.modeling import colbert
from gpu_codec_cases import ULP, library, unit
from li_plugins_colbert import batches, candidates, residency
from torch import Tensor

import li_plugins
from li_plugins.testing.oracle import judge


def compared(call: Any, *tensors: Tensor, magnitude: float) -> Tensor:
    """Compare a call with the library's own and with float64."""
    found = call(*tensors)
    with library():
        theirs = call(*tensors)
        exact = call(*(tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors))
    assert (found.dtype, found.device, found.shape) == (theirs.dtype, theirs.device, theirs.shape)
    verdict = judge(found, exact, theirs, magnitude=magnitude)
    assert verdict, verdict
    return found


CONFIG = ColBERTConfig()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("queries", [1, 6], ids=["one", "aligned"])
@pytest.mark.parametrize("sign", [1, -1])
def test_padded(dtype: torch.dtype, queries: int, sign: int, li_plugins_counts: Any) -> None:
    asked, documents = unit(queries, 9, 16, dtype=dtype).abs(), unit(6, 13, 16, dtype=dtype).abs() * sign
    mask = torch.rand(6, 13, 1) < 0.7
    mask[:, 0] = True
    compared(lambda q, d: colbert.colbert_score(q, d, mask, CONFIG), asked, documents, magnitude=36.0)
    assert li_plugins_counts.calls["colbert.modeling.colbert:colbert_score"] == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_packed(dtype: torch.dtype, sign: int, li_plugins_counts: Any) -> None:
    lengths = torch.tensor([3, 1, 12, 7])
    asked, documents = unit(1, 9, 16, dtype=dtype).abs(), unit(23, 16, dtype=dtype).abs() * sign
    found = compared(lambda q, d: colbert.colbert_score_packed(q, d, lengths, CONFIG), asked, documents, magnitude=36.0)
    # unlike on the CPU, what is all negative scores less than 0
    assert bool((found.sign() == sign).all())
    assert li_plugins_counts.calls["colbert.modeling.colbert:colbert_score_packed"] == 1


def test_packed_without_tokens_or_with_more_rows() -> None:
    lengths = torch.tensor([3, 0, 2])
    asked, documents = unit(1, 4, 16, dtype=torch.float32), unit(9, 16, dtype=torch.float32)
    found = colbert.colbert_score_packed(asked, documents, lengths, CONFIG)
    with library():
        torch.testing.assert_close(found, colbert.colbert_score_packed(asked, documents, lengths, CONFIG))
    assert found[1] == -9999 * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("interaction", "tokens"), [("colbert", 9), ("flipr", 64), ("flipr", 80)])
def test_reduce(dtype: torch.dtype, interaction: str, tokens: int) -> None:
    config = ColBERTConfig(interaction=interaction, query_maxlen=64)
    scores, mask = torch.randn(6, 13, tokens).to(dtype).cuda(), (torch.rand(6, 13, 1) < 0.7).cuda()
    ours, theirs = scores.clone(), scores.clone()
    found = colbert.colbert_score_reduce(ours, mask, config)
    with library():
        expected = colbert.colbert_score_reduce(theirs, mask, config)
    assert torch.equal(found, expected)
    assert torch.equal(ours, theirs), "the library overwrites the scores of masked tokens"


def mixed() -> torch.autocast:
    """Return the precision of the library's loop, without which it multiplies float16 documents by float32 queries."""
    return torch.autocast("cuda", torch.float16, enabled=torch.cuda.is_available())


def steps(model: Any, batch: Any, weights: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return scores, loss and the gradients of a weighted sum of both, as in the library's loop."""
    model.zero_grad()
    with mixed():
        scores, loss = model(*batch)
    ((scores * weights.to(scores)).sum() + loss).backward()
    grads = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    return scores.detach(), loss.detach(), grads


def training(checkpoint: Path, root: Path, nway: int) -> tuple[Any, Any]:
    """Return a model that is trained, and a batch of three queries."""
    settings = {"nway": nway, "use_ib_negatives": True}
    model = colbert.ColBERT(str(checkpoint), tiny_colbert.config(checkpoint, root, **settings))
    ids = torch.randint(30, 60, (3, 16)), torch.randint(30, 60, (3 * nway, 40))
    lengths = torch.randint(10, 41, (3 * nway, 1))
    attention = (torch.arange(40) < lengths).long()
    batch = (ids[0], torch.ones_like(ids[0])), (ids[1] * attention, attention)
    if not torch.cuda.is_available():
        model.use_gpu = False  # without a GPU's autocast the library cannot multiply its float16 documents
    return model, batch


@pytest.mark.parametrize("nway", [1, 2, 4])
def test_a_training_step(checkpoint: Path, tmp_path: Path, nway: int, li_plugins_counts: Any) -> None:
    model, batch = training(checkpoint, tmp_path, nway)
    weights = torch.linspace(-1, 1, 3 * nway)
    found = steps(model, batch, weights)
    calls = li_plugins_counts.calls
    assert calls["colbert.modeling.colbert:ColBERT.forward"] == 1
    assert "colbert.modeling.colbert:colbert_score" not in calls, "all pairs are scored once"
    with library():
        expected = steps(model, batch, weights)
    assert (found[0].dtype, found[0].shape) == (expected[0].dtype, expected[0].shape)
    torch.testing.assert_close(found[0], expected[0], rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(found[1], expected[1], rtol=2e-3, atol=2e-3)
    # of two maxima that float16 makes equal, the library's gradient may flow to the other
    slack = 0.15 if torch.cuda.is_available() else 1e-3
    for mine, theirs in zip(found[2], expected[2], strict=True):
        assert (mine - theirs).norm() <= slack * theirs.norm() + 1e-4


@pytest.mark.allow_fallback(reason="each of these makes scores or a loss of its own")
@pytest.mark.parametrize("case", ["no negatives", "l2", "score", "loss"])
def test_what_is_not_scored_at_once(checkpoint: Path, tmp_path: Path, case: str, li_plugins_counts: Any) -> None:
    model, batch = training(checkpoint, tmp_path, 2)
    if case == "no negatives":
        model.colbert_config.configure(use_ib_negatives=False)
    elif case == "l2":
        model.colbert_config.configure(similarity="l2")
    elif case == "score":
        model.score = lambda queries, documents, mask: queries.sum((1, 2)) + documents.sum((1, 2))
    else:
        model.compute_ib_loss = lambda queries, documents, mask: queries.sum()
    with mixed():
        found = model(*batch)
    assert len(li_plugins_counts.declines["colbert.modeling.colbert:ColBERT.forward"]) == 1
    with library(), mixed():
        expected = model(*batch)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


RANK = "colbert.search.index_storage:IndexScorer.rank"
QUERIES = tiny_colbert.passages()[::7]


def ranking(searcher: Any, k: int = 10, **options: Any) -> list[tuple[list[int], list[float]]]:
    found = [searcher.search(query, k=k, **options) for query in QUERIES]
    return [(pids, scores) for pids, _, scores in found]


def assert_same(found: Any, expected: Any) -> None:
    """Compare rankings; documents change places where their scores, float16, are within two roundings."""
    for (pids, scores), (their_pids, their_scores) in zip(found, expected, strict=True):
        step = 2 * 2**-10 * max(1.0, *map(abs, scores))
        assert scores == pytest.approx(their_scores, abs=step)
        theirs = dict(zip(their_pids, their_scores, strict=True))
        for pid, score in zip(pids, scores, strict=True):
            assert theirs.get(pid, their_scores[-1]) == pytest.approx(score, abs=step)


@pytest.mark.allow_fallback(reason="passages that are given, and a filter, come between the stages of rank")
@pytest.mark.parametrize("nbits", [1, 2, 4])
def test_built_and_searched(checkpoint: Path, tmp_path: Path, nbits: int, li_plugins_counts: Any) -> None:
    texts = tiny_colbert.passages()
    tiny_colbert.build(checkpoint, tmp_path, texts, nbits=nbits)
    ours = tiny_colbert.searcher(checkpoint, tmp_path, texts, nbits=nbits)
    found = ranking(ours), ranking(ours, pids=list(range(0, 60, 2))), ranking(ours, filter_fn=lambda p: p[p < 20])
    assert [pids[0] for pids, _ in found[0]] == list(range(0, 60, 7))
    calls = li_plugins_counts.calls
    assert calls[RANK] == 3 * len(QUERIES)
    assert {target: sum(times.values()) for target, times in li_plugins_counts.declines.items()} == {
        RANK: 2 * len(QUERIES)
    }
    assert calls["colbert.search.index_storage:IndexScorer.score_pids"] == 2 * len(QUERIES), "where passages are given"
    # 0.2.21 looks candidates up for given pids too, and prunes these by them
    generated = calls["colbert.search.candidate_generation:CandidateGeneration.generate_candidates"]
    assert generated in (len(QUERIES), 2 * len(QUERIES))
    with library():
        theirs = tiny_colbert.searcher(checkpoint, tmp_path, texts, nbits=nbits)
        assert_same(found[0], ranking(theirs))
        assert_same(found[1], ranking(theirs, pids=list(range(0, 60, 2))))
        assert_same(found[2], ranking(theirs, filter_fn=lambda pids: pids[pids < 20]))


@pytest.mark.parametrize("ncells", [1, 3])
def test_queries_together(checkpoint: Path, tmp_path: Path, ncells: int, li_plugins_counts: Any) -> None:
    texts = tiny_colbert.passages()
    tiny_colbert.build(checkpoint, tmp_path, texts)
    # so few candidates that both stages leave some out
    settings = {"ncells": ncells, "ndocs": 24, "centroid_score_threshold": 0.3}
    searcher = tiny_colbert.searcher(checkpoint, tmp_path, texts, **settings)
    queries = dict(enumerate(QUERIES))
    found = searcher.search_all(queries, k=4)
    assert li_plugins_counts.calls["colbert.searcher:Searcher._search_all_Q"] == 1
    assert li_plugins_counts.calls[RANK] == 1, "of the first query"
    one_by_one = [searcher.search(query, k=4) for query in QUERIES]
    for number, (pids, places, scores) in enumerate(one_by_one):
        assert [place for _, place, _ in found.data[number]] == places
        assert_same([([p for p, _, _ in found.data[number]], [s for _, _, s in found.data[number]])], [(pids, scores)])
    with library():
        theirs = searcher.search_all(queries, k=1)
    assert {n: [row[0] for row in rows] for n, rows in theirs.data.items()} == {
        n: [row[0] for row in rows[:1]] for n, rows in found.data.items()
    }
    mine, their = (vars(rankings.provenance()) for rankings in (found, theirs))
    assert mine.keys() == their.keys()
    assert (mine["source"], mine["config"]) == (their["source"], their["config"])


def test_candidates_bound_how_many_queries_go_together(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tiny_colbert.passages()
    tiny_colbert.build(checkpoint, tmp_path, texts)
    searcher = tiny_colbert.searcher(checkpoint, tmp_path, texts, ncells=2)
    queries = dict(enumerate(QUERIES * 2))
    together, of_queries = [], candidates.of_queries
    monkeypatch.setattr(candidates, "of_queries", lambda *given: together.append(len(given[2])) or of_queries(*given))
    found = searcher.search_all(queries, k=4)
    assert together == [len(queries) - 1]
    together.clear()
    centroids, listed = searcher.ranker.codec.centroids, residency.of(searcher.ranker).cells.values
    tokens = searcher.encode(QUERIES).shape[1]
    similarities = len(centroids) * tokens * centroids.element_size()
    found_by_one = min(len(texts), tokens * 2 * len(listed) / len(centroids))
    one = similarities + len(texts) + batches.CANDIDATE_BYTES * found_by_one
    monkeypatch.setattr(batches, "MOST_BYTES", 2.5 * one)
    assert searcher.search_all(queries, k=4).data == found.data
    assert together == [*[2] * ((len(queries) - 1) // 2), *[1] * ((len(queries) - 1) % 2)]


@pytest.mark.allow_fallback(reason="a filter is called for each query, and passages that are given are its own")
def test_queries_one_after_the_other(checkpoint: Path, tmp_path: Path) -> None:
    texts = tiny_colbert.passages()
    tiny_colbert.build(checkpoint, tmp_path, texts)
    searcher = tiny_colbert.searcher(checkpoint, tmp_path, texts)
    queries = dict(enumerate(QUERIES))
    few = searcher.search_all(queries, k=3, filter_fn=lambda pids: pids[pids < 20])
    assert all(pid < 20 for rows in few.data.values() for pid, _, _ in rows)
    given = searcher.search_all(queries, k=3, qid_to_pids={number: [number, 7 * number] for number in queries})
    assert all(rows[0][0] == 7 * number for number, rows in given.data.items())


@pytest.mark.parametrize("threshold", [0.0, 0.4, 2.0])
def test_what_is_left_out_scores_no_more(checkpoint: Path, tmp_path: Path, threshold: float) -> None:
    texts = tiny_colbert.passages()
    tiny_colbert.build(checkpoint, tmp_path, texts)
    searcher = tiny_colbert.searcher(checkpoint, tmp_path, texts)
    searcher.configure(ncells=4, ndocs=32, centroid_score_threshold=threshold)
    for query in QUERIES:
        embedded = searcher.encode([query])
        pids, centroid_scores = searcher.ranker.retrieve(searcher.config, embedded)
        with library():
            their_pids, theirs = searcher.ranker.retrieve(searcher.config, embedded)
        torch.testing.assert_close(centroid_scores, theirs, rtol=0, atol=2 * ULP)
        assert pids.dtype is their_pids.dtype
        assert pids.tolist() == sorted(set(pids.tolist()))
        fourth = centroid_scores.float().topk(4, dim=0).values[-1]
        # of equal ones, any may be the fourth
        surely, perhaps = (near_by(searcher.ranker, centroid_scores, some) for some in (fourth + ULP, fourth - ULP))
        assert surely <= set(pids.tolist()) <= perhaps
        _, kept = searcher.ranker.score_pids(searcher.config, embedded, pids, centroid_scores)
        assert (len(kept), kept.dtype) == (8, pids.dtype)
        if threshold < 2:  # beyond, no centroid counts, and all candidates are equal
            # a pruned document is behind every kept one in one of the two stages
            near = centroid_scores.amax(-1) >= threshold
            sums = [by_centroids(searcher.ranker, centroid_scores, pids, some) for some in (near, near | True)]
            first = sums[0].topk(32).values[-1] if len(pids) > 32 else -torch.inf
            survivors = sums[1][sums[0] >= first]
            least = min(sums[1][pids.tolist().index(pid)] for pid in kept.tolist())
            assert least >= survivors.topk(8).values[-1] - 1e-3


def near_by(ranker: Any, centroid_scores: Tensor, least: Tensor) -> set[int]:
    """Return the passages of centroids that score at least ``least [Lq]`` for one of the tokens, slowly."""
    cells = (centroid_scores >= least).any(1).nonzero().flatten().tolist()
    runs = (ranker.ivf.tensor[ranker.ivf.offsets[cell] : ranker.ivf.offsets[cell + 1]] for cell in cells)
    return {pid for run in runs for pid in run.tolist()}


def by_centroids(ranker: Any, centroid_scores: Tensor, pids: Tensor, counted: Tensor) -> Tensor:
    """Return the sums of the maxima over the centroids that count, slowly."""
    sums = []
    for pid in pids.tolist():
        codes = ranker.embeddings.codes[ranker.offsets[pid] : ranker.offsets[pid + 1]].long().to(counted.device)
        codes = codes[counted[codes]]
        found = centroid_scores[codes].float().amax(0) if len(codes) else torch.full((1,), -9999.0)
        sums.append(found.sum().item())
    return torch.tensor(sums)


@pytest.mark.allow_fallback(reason="flipr is no sum over all query tokens: the library searches, with our codec")
def test_flipr(checkpoint: Path, tmp_path: Path) -> None:
    texts, settings = tiny_colbert.passages(), {"interaction": "flipr", "query_maxlen": 64, "doc_maxlen": 48}
    tiny_colbert.build(checkpoint, tmp_path, texts, **settings)
    found = ranking(tiny_colbert.searcher(checkpoint, tmp_path, texts, **settings), k=3)
    with library():
        assert_same(found, ranking(tiny_colbert.searcher(checkpoint, tmp_path, texts, **settings), k=3))


def test_an_index_that_changes_is_placed_anew(checkpoint: Path, tmp_path: Path) -> None:
    texts = tiny_colbert.passages()
    tiny_colbert.build(checkpoint, tmp_path, texts)
    ranker = tiny_colbert.searcher(checkpoint, tmp_path, texts).ranker
    placed = residency.of(ranker)
    assert residency.of(ranker) is placed
    ranker.embeddings.codes = ranker.embeddings.codes.clone()
    again = residency.of(ranker)
    assert again.sources[0] is ranker.embeddings.codes
    assert again.residuals is placed.residuals, "what did not change stays where it is"
    said = str(li_plugins.explain(ranker.score_pids, CONFIG, torch.randn(1, 4, 64), torch.tensor([3, 5]), None))
    assert f"of codes on {placed.device}" in said
    assert "residual_maxsim" in said


def test_what_changes_is_let_go_before_there_is_a_look_at_the_room(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tiny_colbert.passages()
    tiny_colbert.build(checkpoint, tmp_path, texts)
    ranker = tiny_colbert.searcher(checkpoint, tmp_path, texts).ranker
    old = weakref.ref(residency.of(ranker).offsets)
    ranker.embeddings.codes = ranker.embeddings.codes.clone()
    seen, free_bytes = [], residency.free_bytes
    monkeypatch.setattr(residency, "free_bytes", lambda device: seen.append(old()) or free_bytes(device))
    residency.of(ranker)
    assert seen == [None]


def test_nothing_stays_placed_when_the_originals_are_back(checkpoint: Path, tmp_path: Path) -> None:
    texts = tiny_colbert.passages()
    tiny_colbert.build(checkpoint, tmp_path, texts)
    searcher = tiny_colbert.searcher(checkpoint, tmp_path, texts)
    found = ranking(searcher, k=3)
    assert getattr(searcher.ranker, residency.KEPT) is not None
    with library():
        assert getattr(searcher.ranker, residency.KEPT) is None
    assert_same(ranking(searcher, k=3), found)


def test_passages(checkpoint: Path, tmp_path: Path) -> None:
    from colbert.indexing.collection_encoder import CollectionEncoder
    from colbert.modeling.checkpoint import Checkpoint

    texts, config = tiny_colbert.passages(), tiny_colbert.config(checkpoint, tmp_path)
    encoder = CollectionEncoder(config, Checkpoint(str(checkpoint), colbert_config=config).cuda())
    found, lengths = encoder.encode_passages(texts)
    kept, _ = encoder.encode_passages(list(texts))
    assert torch.equal(kept, found)
    with library():
        expected, their_lengths = encoder.encode_passages(texts)
    assert lengths == their_lengths
    assert (found.dtype, found.device) == (expected.dtype, expected.device)
    cosines = torch.nn.functional.cosine_similarity(found.float(), expected.float())
    assert cosines.min() > 0.999, "attention ignores padding but for the roundings of float16"


def test_masks(checkpoint: Path, tmp_path: Path) -> None:
    model = colbert.ColBERT(str(checkpoint), tiny_colbert.config(checkpoint, tmp_path))
    ids = torch.randint(0, 60, (7, 30)).cuda()
    found = model.mask(ids, model.skiplist)
    attention = torch.ones_like(ids)
    with torch.no_grad():
        embeddings, kept = model.doc(ids, attention, keep_dims="return_mask")
        listed, queries = model.doc(ids, attention, keep_dims=False), model.query(ids, attention)
        with library():
            assert found == model.mask(ids, model.skiplist)
            theirs, their_kept = model.doc(ids, attention, keep_dims="return_mask")
            their_listed, their_queries = model.doc(ids, attention, keep_dims=False), model.query(ids, attention)
    assert torch.equal(kept, their_kept)
    assert (embeddings.dtype, queries.dtype) == (theirs.dtype, their_queries.dtype)
    for mine, other in zip((embeddings, queries, *listed), (theirs, their_queries, *their_listed), strict=True):
        assert mine.device == other.device
        torch.testing.assert_close(mine, other, rtol=0, atol=ULP)
