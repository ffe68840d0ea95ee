"""An index that is mapped into memory against the same one that is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_colbert
import torch
from conftest import Unmended


@pytest.fixture(scope="module")
def index(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import li_plugins

    li_plugins.enable("colbert", "colbert-compat", strict=True)
    return tiny_colbert.build(checkpoint, tmp_path_factory.mktemp("index"), tiny_colbert.passages())


def load(index: Path, mapped: bool, chunks: tuple[int, ...] = (0,)) -> Any:
    from colbert.indexing.codecs.residual_embeddings import ResidualEmbeddings

    count = len(torch.load(index / "0.codes.pt"))
    return ResidualEmbeddings.load_chunks(str(index), chunks, count, mapped)


def test_codes_and_residuals_are_those_of_the_file(index: Path, unmended: Unmended) -> None:
    codes, residuals = torch.load(index / "0.codes.pt"), torch.load(index / "0.residuals.pt")
    with unmended():
        shifted = load(index, mapped=True)
    assert not torch.equal(shifted.codes, codes)
    assert not torch.equal(shifted.residuals, residuals)
    found = load(index, mapped=True)
    assert found.codes.dtype is codes.dtype
    assert found.residuals.dtype is residuals.dtype
    assert torch.equal(found.codes, codes)
    assert torch.equal(found.residuals, residuals)


def test_what_is_mapped_is_not_read(index: Path) -> None:
    mapped = str(index / "0.residuals.pt")
    assert mapped not in Path("/proc/self/maps").read_text()
    found = load(index, mapped=True)
    assert mapped in Path("/proc/self/maps").read_text()
    del found


def test_what_is_not_mapped_stays_the_librarys_own(index: Path, unmended: Unmended) -> None:
    found = load(index, mapped=False)
    with unmended():
        expected = load(index, mapped=False)
    count = len(torch.load(index / "0.codes.pt"))
    assert len(found) == len(expected) == count + 512
    assert torch.equal(found.codes[:count], expected.codes[:count])


@pytest.mark.allow_fallback(reason="several chunks are the library's to refuse")
def test_several_chunks_are_refused_as_ever(index: Path) -> None:
    with pytest.raises(ValueError, match="must only have 1 chunk"):
        load(index, mapped=True, chunks=(0, 1))


def test_a_mapped_index_is_searched(checkpoint: Path, index: Path) -> None:
    texts, root = tiny_colbert.passages(), index.parents[2]
    rankings = []
    for mapped in (False, True):
        searcher = tiny_colbert.searcher(checkpoint, root, texts, load_index_with_mmap=mapped)
        rankings.append([searcher.search(text, k=10) for text in texts[::7]])
    assert rankings[1] == rankings[0]
    assert [pids[0] for pids, _, _ in rankings[1]] == list(range(0, 60, 7))
