"""Passages added to an index and removed from it, in memory and on disk, against all embeddings compared one by one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny_colbert
import torch

import li_plugins

TEXTS = tiny_colbert.passages(100)
INDEXED, ADDED = TEXTS[:60], TEXTS[60:70]
QUERIES = [*INDEXED[::14], *ADDED[::3]]


class Kept(NamedTuple):
    """What the files of an index hold, all chunks together."""

    lengths: list[int]
    codes: torch.Tensor
    residuals: torch.Tensor


@pytest.fixture
def root(checkpoint: Path, tmp_path: Path) -> Path:
    """The root of an index of 60 passages."""
    tiny_colbert.build(checkpoint, tmp_path, INDEXED)
    return tmp_path


def folder(root: Path) -> Path:
    return root / "tests/indexes/index"


def opened(checkpoint: Path, root: Path) -> Any:
    """Return a searcher that leaves no candidate out."""
    count = len(torch.load(folder(root) / "centroids.pt"))
    everything = {"ncells": count, "centroid_score_threshold": -1.0, "ndocs": 4096}
    return tiny_colbert.searcher(checkpoint, root, TEXTS * 2, **everything)


def updater(checkpoint: Path, root: Path) -> Any:
    from colbert.index_updater import IndexUpdater

    return IndexUpdater(tiny_colbert.config(checkpoint, root), opened(checkpoint, root), str(checkpoint))


def by_itself(name: str) -> Any:
    """Return the library's own method of an updater."""
    from colbert.index_updater import IndexUpdater

    return li_plugins.original(getattr(IndexUpdater, name))


def kept(root: Path) -> Kept:
    """Return what is on disk, after a look at what the index says of it."""
    path = folder(root)
    metadata = json.loads((path / "metadata.json").read_text())
    lengths: list[int] = []
    codes, residuals = [], []
    for chunk in range(metadata["num_chunks"]):
        own = json.loads((path / f"doclens.{chunk}.json").read_text())
        described = json.loads((path / f"{chunk}.metadata.json").read_text())
        codes.append(torch.load(path / f"{chunk}.codes.pt"))
        residuals.append(torch.load(path / f"{chunk}.residuals.pt"))
        assert described["passage_offset"] == len(lengths)
        assert (described["num_passages"], described["num_embeddings"]) == (len(own), sum(own))
        assert len(codes[-1]) == len(residuals[-1]) == sum(own)
        lengths += own
    assert metadata["num_embeddings"] == sum(lengths)
    found = Kept(lengths, torch.cat(codes), torch.cat(residuals))
    pids, of_centroid = torch.load(path / "ivf.pid.pt")
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    for centroid, span in enumerate(torch.split(pids[: int(of_centroid.sum())], of_centroid.tolist())):
        assert span.tolist() == owner[found.codes == centroid].unique().tolist()
    return found


def held(searcher: Any) -> Kept:
    """Return what a searcher holds, without the padding."""
    ranker = searcher.ranker
    total = int(ranker.doclens.sum())
    return Kept(ranker.doclens.tolist(), ranker.embeddings.codes[:total], ranker.embeddings.residuals[:total])


def assert_ranks(searcher: Any, stored: Kept, removed: Sequence[int] = ()) -> None:
    """Compare rankings with the scores of all passages but those removed."""
    from colbert.indexing.codecs.residual_embeddings import ResidualEmbeddings

    documents = searcher.ranker.codec.decompress(ResidualEmbeddings(stored.codes, stored.residuals)).double()
    for text in QUERIES:
        similarities = documents @ searcher.encode([text])[0].double().T
        spans = torch.split(similarities, stored.lengths)
        # the library's maxima begin at 0
        scores = torch.tensor([float(span.amax(0).clamp(min=0).sum()) if len(span) else -1.0 for span in spans])
        scores[list(removed)] = -1.0
        pids, _, found = searcher.search(text, k=10)
        assert found == pytest.approx(scores.topk(10).values.tolist(), abs=1e-4)
        assert found == pytest.approx(scores[pids].tolist(), abs=1e-4)


def encoded(found: Any, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes and residuals of passages as an index of its own would have them."""
    embeddings, _ = found.encoder.encode_passages(texts)
    compressed = found.searcher.ranker.codec.compress(embeddings)
    return compressed.codes, compressed.residuals


def test_passages_are_added(checkpoint: Path, root: Path) -> None:
    found = updater(checkpoint, root)
    by_itself("_load_disk_ivf")(found)
    with pytest.raises(AssertionError):
        found.add(ADDED)
    found = updater(checkpoint, root)
    assert found.add(ADDED) == list(range(60, 70))
    assert_ranks(found.searcher, held(found.searcher))


def test_the_first_passage_is_removed(checkpoint: Path, root: Path) -> None:
    found = updater(checkpoint, root)
    by_itself("_load_disk_ivf")(found)
    with pytest.raises(IndexError):
        found.remove([0])
    found = updater(checkpoint, root)
    assert 0 in found.searcher.search(INDEXED[0], k=60)[0]
    found.remove([0])
    assert 0 not in found.searcher.search(INDEXED[0], k=60)[0]
    assert_ranks(found.searcher, held(found.searcher), removed=[0])


def test_embeddings_are_counted(checkpoint: Path, root: Path) -> None:
    before = kept(root)
    found = updater(checkpoint, root)
    found.remove([5])
    by_itself("persist_to_disk")(found)
    metadata = json.loads((folder(root) / "metadata.json").read_text())
    assert metadata["num_embeddings"] == 2 * sum(before.lengths) - before.lengths[5]
    tiny_colbert.build(checkpoint, root, INDEXED)
    found = updater(checkpoint, root)
    found.remove([5])
    found.persist_to_disk()
    after = kept(root)
    assert after.lengths == [*before.lengths[:5], 0, *before.lengths[6:]]
    start = sum(before.lengths[:5])
    end = start + before.lengths[5]
    assert torch.equal(after.codes, torch.cat([before.codes[:start], before.codes[end:]]))
    assert_ranks(opened(checkpoint, root), after)


def test_what_is_kept_is_found_again_and_can_be_added_to(checkpoint: Path, root: Path) -> None:
    before = kept(root)
    for start in (60, 65, 70):
        found = updater(checkpoint, root)
        found.add(TEXTS[start : start + 3])
        found.persist_to_disk()
        found.persist_to_disk()  # there is nothing left to write
        found.add(TEXTS[start + 3 : start + 5])
        found.persist_to_disk()
    after = kept(root)
    assert after.lengths[:60] == before.lengths
    assert len(after.lengths) == 75
    codes, residuals = encoded(found, TEXTS[60:75])
    assert torch.equal(after.codes, torch.cat([before.codes, codes]))
    assert torch.equal(after.residuals, torch.cat([before.residuals, residuals]))
    searcher = opened(checkpoint, root)
    assert len(searcher.ranker.embeddings.codes) == len(after.codes) + 512
    assert_ranks(searcher, after)


def test_what_the_library_counts_twice_is_then_added_in_the_wrong_place(checkpoint: Path, root: Path) -> None:
    found = updater(checkpoint, root)
    by_itself("persist_to_disk")(found)
    found = updater(checkpoint, root)
    found.add(ADDED)
    total = int(found.searcher.ranker.doclens.sum())
    codes, _ = encoded(found, ADDED)
    assert not torch.equal(found.searcher.ranker.embeddings.codes[total - len(codes) : total], codes)


def test_a_passage_may_be_removed_before_it_is_on_disk(checkpoint: Path, root: Path) -> None:
    found = updater(checkpoint, root)
    found.add(ADDED)
    found.remove([3, 61])
    with pytest.raises(ValueError, match="Passage ID out of range"):
        by_itself("persist_to_disk")(found)
    tiny_colbert.build(checkpoint, root, INDEXED)
    found.persist_to_disk()
    after = kept(root)
    assert [pid for pid, length in enumerate(after.lengths) if not length] == [3, 61]
    assert_ranks(opened(checkpoint, root), after)
    assert_ranks(found.searcher, held(found.searcher), removed=[3, 61])


def test_chunks_are_filled_and_begun(checkpoint: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from colbert import index_updater

    monkeypatch.setattr(index_updater, "DEFAULT_CHUNKSIZE", 62)
    found = updater(checkpoint, root)
    found.add(TEXTS[60:65])
    found.persist_to_disk()
    assert chunks(root) == [62, 3]
    # from the second on, as many as the chunks before the last have on average
    monkeypatch.undo()
    before = {path: path.read_bytes() for path in folder(root).iterdir()}
    found.add(TEXTS)
    with pytest.raises(TypeError, match="slice"):
        by_itself("persist_to_disk")(found)
    for path, content in before.items():
        path.write_bytes(content)
    found.persist_to_disk()
    assert chunks(root) == [62, 62, 41]
    after = kept(root)
    assert after.lengths == held(found.searcher).lengths
    assert torch.equal(after.codes, held(found.searcher).codes)
    assert_ranks(opened(checkpoint, root), after)


def chunks(root: Path) -> list[int]:
    """Return how many passages each chunk has."""
    count = json.loads((folder(root) / "metadata.json").read_text())["num_chunks"]
    return [len(json.loads((folder(root) / f"doclens.{chunk}.json").read_text())) for chunk in range(count)]
