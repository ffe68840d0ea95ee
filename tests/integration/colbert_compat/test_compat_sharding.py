"""The examples of each rank."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_colbert
from colbert.data.examples import Examples
from colbert.training.lazy_batcher import LazyBatcher
from conftest import Unmended


def examples(count: int) -> Examples:
    return Examples(data=[[number, number + 1] for number in range(count)])


@pytest.mark.parametrize(("count", "ranks"), [(12, 3), (13, 3), (14, 3), (2, 3), (8, 8), (1000, 7)])
def test_each_rank_has_as_many_of_its_own(count: int, ranks: int, unmended: Unmended) -> None:
    found = examples(count)
    with unmended():
        theirs = [found.tolist(rank, ranks) for rank in range(ranks)]
    assert all(share == theirs[0] for share in theirs), "mended: this adapter need not"
    shares = [found.tolist(rank, ranks) for rank in range(ranks)]
    assert {len(share) for share in shares} == {count // ranks}
    seen = sorted(example for share in shares for example in share)
    assert seen == found.data[: count // ranks * ranks]
    assert all(share == found.data[rank : count // ranks * ranks : ranks] for rank, share in enumerate(shares))


def test_one_rank_has_all(unmended: Unmended) -> None:
    found = examples(5)
    with unmended():
        expected = [found.tolist(), found.tolist(0, 1), found.tolist(None, 0)]
    assert [found.tolist(), found.tolist(0, 1), found.tolist(None, 0)] == expected == [found.data] * 3
    assert found.tolist() is not found.data


@pytest.mark.allow_fallback(reason="a rank that does not exist is the library's to refuse")
def test_a_rank_that_does_not_exist_is_refused_as_ever() -> None:
    with pytest.raises(AssertionError):
        examples(5).tolist(3, 3)


def test_two_ranks_train_on_all_triples(checkpoint: Path) -> None:
    config = tiny_colbert.config(checkpoint, checkpoint, bsize=2, nway=2)
    triples = [[number, number, number + 1] for number in range(8)]
    texts = dict(enumerate(tiny_colbert.passages(9)))
    readers = [LazyBatcher(config, triples, texts, list(texts.values()), rank, 2) for rank in range(2)]
    assert [[query for query, *_ in reader.triples] for reader in readers] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert [len(list(reader)) for reader in readers] == [2, 2]
