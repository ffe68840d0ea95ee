"""The inverted file, against the library's own: the same tensors and the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from colbert.indexing import utils
from colbert.indexing.codecs.residual import ResidualCodec
from colbert.indexing.collection_indexer import CollectionIndexer
from colbert.infra import ColBERTConfig
from li_plugins_colbert import inverted

from li_plugins.testing.parity import call_unpatched

CHUNKS = [3, 1, 40, 17]
"""Passages of each chunk."""


def write_doclens(folder: Path, longest: int = 9) -> int:
    """Write how long the passages of each chunk are, some of them 0; return the sum."""
    total = 0
    for chunk, passages in enumerate(CHUNKS):
        doclens = torch.randint(0, longest, (passages,)).tolist()
        (folder / f"doclens.{chunk}.json").write_text(json.dumps(doclens))
        total += sum(doclens)
    return total


def last_is_long(codes: torch.Tensor, centroids: int) -> torch.Tensor:
    return codes.where(torch.rand(codes.shape) < 0.3, centroids - 1)


def first_and_last_are_empty(codes: torch.Tensor, centroids: int) -> torch.Tensor:
    return codes.clamp(1, centroids - 2)


def all_in_one(codes: torch.Tensor, centroids: int) -> torch.Tensor:
    return torch.full_like(codes, centroids // 2)


CODES: list[Callable[[torch.Tensor, int], torch.Tensor]] = [
    lambda codes, centroids: codes,
    last_is_long,
    first_and_last_are_empty,
    all_in_one,
]
NAMES = ["even", "last long", "ends empty", "one"]


def both(folder: Path, call: Callable[[], Any]) -> tuple[Any, Any, bytes, bytes]:
    """Call patched and unpatched; return both results and both files."""
    ours, file = call(), (folder / "ivf.pid.pt").read_bytes()
    (folder / "ivf.pid.pt").unlink()
    theirs = call_unpatched(call)
    return ours, theirs, file, (folder / "ivf.pid.pt").read_bytes()


def assert_identical(folder: Path, ivf: torch.Tensor, lengths: torch.Tensor) -> None:
    ours, theirs, file, their_file = both(folder, lambda: utils.optimize_ivf(ivf, lengths, str(folder)))
    for mine, their in zip(ours, theirs, strict=True):
        assert mine.dtype is their.dtype
        assert torch.equal(mine, their)
    assert file == their_file


@pytest.mark.parametrize("block", [1, 50, inverted.MOST_EMBEDDINGS])
@pytest.mark.parametrize("centroids", [1, 7, 256])
@pytest.mark.parametrize("codes", CODES, ids=NAMES)
@pytest.mark.parametrize("is_shuffled", [False, True], ids=["in order", "in any order"])
def test_optimize(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, centroids: int, codes: Any, is_shuffled: bool
) -> None:
    monkeypatch.setattr(inverted, "MOST_EMBEDDINGS", block)
    drawn = torch.randint(0, centroids, (write_doclens(tmp_path),))
    values = codes(drawn, centroids) if centroids > 2 else drawn
    order = torch.randperm(len(values)) if is_shuffled else torch.arange(len(values))
    ivf = order[values[order].argsort(stable=True)]
    assert_identical(tmp_path, ivf, torch.bincount(values, minlength=centroids))


@pytest.mark.parametrize("lengths", [[5, 0, 4], [5, 30, 400], [600, 2, 1]], ids=["fewer", "last cut", "all cut"])
def test_lengths_that_are_not_all_embeddings(tmp_path: Path, lengths: list[int]) -> None:
    total = write_doclens(tmp_path)
    assert 40 < total < 400
    assert_identical(tmp_path, torch.randperm(total), torch.tensor(lengths))


def test_passages_without_a_token(tmp_path: Path) -> None:
    write_doclens(tmp_path, longest=1)
    assert_identical(tmp_path, torch.zeros(0, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("verbose", [1, 3])
def test_it_says_the_same(tmp_path: Path, verbose: int, capsys: pytest.CaptureFixture[str]) -> None:
    total = write_doclens(tmp_path)
    (tmp_path / "ivf.pt").touch()
    ivf, lengths = torch.arange(total), torch.tensor([total // 2, total - total // 2])

    def said() -> tuple[list[str], bool]:
        capsys.readouterr()
        utils.optimize_ivf(ivf, lengths, str(tmp_path), verbose=verbose)
        out, err = capsys.readouterr()
        return [line.partition("] ")[2] for line in out.splitlines()], "2/2" in err

    lines, shows_progress = said()
    assert shows_progress
    assert len(lines) >= (5 if verbose > 1 else 0)
    assert (lines, shows_progress) == call_unpatched(said)


@pytest.mark.allow_fallback(reason="the library answers what it was not made for")
@pytest.mark.parametrize(
    ("ivf", "lengths"),
    [
        (torch.arange(4), torch.zeros(0, dtype=torch.int64)),
        (torch.arange(4).view(2, 2), torch.tensor([1, 1])),
        (torch.tensor([True, False]), torch.tensor([1])),
        (torch.arange(4), [4]),
    ],
    ids=["no centroid", "two dimensions", "mask", "list"],
)
def test_the_library_answers_the_rest(tmp_path: Path, ivf: Any, lengths: Any) -> None:
    write_doclens(tmp_path)

    def outcome() -> Any:
        try:
            return [part.tolist() for part in utils.optimize_ivf(ivf, lengths, str(tmp_path))]
        except Exception as error:  # whatever it is, it is compared
            return type(error), str(error)

    assert outcome() == call_unpatched(outcome)


def test_no_doclens(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Could not load doclens"):
        utils.optimize_ivf(torch.arange(4), torch.tensor([4]), str(tmp_path))


def indexer(folder: Path, centroids: int) -> Any:
    """Return a build of an index whose chunks are written."""
    total = write_doclens(folder)
    codes = torch.randint(0, centroids, (total,), dtype=torch.int32)
    offsets = [0]
    for chunk in range(len(CHUNKS)):
        count = sum(json.loads((folder / f"doclens.{chunk}.json").read_text()))
        residuals = torch.zeros(count, 8, dtype=torch.uint8)
        ResidualCodec.Embeddings(codes[offsets[-1] :][:count], residuals).save(str(folder / str(chunk)))
        offsets.append(offsets[-1] + count)
    made = CollectionIndexer.__new__(CollectionIndexer)
    made.config, made.verbose, made.rank = ColBERTConfig(index_path=str(folder)), 3, 0
    made.num_chunks, made.num_partitions = len(CHUNKS), centroids
    made.num_embeddings, made.embedding_offsets = total, offsets[:-1]
    return made


@pytest.mark.parametrize("centroids", [1, 16, 4096])
def test_build(tmp_path: Path, centroids: int, li_plugins_counts: Any) -> None:
    _, _, file, their_file = both(tmp_path, indexer(tmp_path, centroids)._build_ivf)
    assert file == their_file
    calls = li_plugins_counts.calls
    assert calls["colbert.indexing.collection_indexer:CollectionIndexer._build_ivf"] == 1
    assert calls["colbert.indexing.utils:optimize_ivf"] == 1


@pytest.mark.parametrize("change", [{"num_embeddings": 5000}, {"num_partitions": 9}], ids=["codes", "centroids"])
def test_a_build_that_the_library_refuses(tmp_path: Path, change: dict[str, int]) -> None:
    made = indexer(tmp_path, 16)
    vars(made).update(change)
    with pytest.raises(AssertionError, match=r"\d+"):
        made._build_ivf()
    with pytest.raises(AssertionError):
        call_unpatched(made._build_ivf)


@pytest.mark.allow_fallback(reason="the library has an error of its own")
def test_no_chunk(tmp_path: Path) -> None:
    made = indexer(tmp_path, 16)
    made.num_chunks = 0
    with pytest.raises(UnboundLocalError):
        made._build_ivf()
