"""The documents near queries, in plain torch, against loops in Python."""

from __future__ import annotations

import pytest
import refusal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from li_plugins.ops import dispatch, explain_near_documents, near_documents
from li_plugins.ops.near.blocked import NEAR
from li_plugins.ops.near.problem import NearProblem
from li_plugins.ops.near.reference import NEAR as REFERENCE


def some(queries: int, centroids: int, length: int, documents: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores, the documents of the centroids and where these begin."""
    random = torch.Generator().manual_seed(seed)
    scores = torch.randn(queries, centroids, length, generator=random)
    lengths = torch.randint(0, 6, (centroids,), generator=random)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return scores, torch.randint(documents, (int(offsets[-1]),), generator=random).int(), offsets


@settings(deadline=None)
@given(st.integers(0, 3), st.integers(1, 20), st.integers(0, 5), st.integers(1, 30), st.data())
def test_documents(queries: int, centroids: int, length: int, documents: int, data: st.DataObject) -> None:
    scores, listed, offsets = some(queries, centroids, length, documents, data.draw(st.integers(0, 99)))
    ncells = data.draw(st.integers(1, centroids))
    found = near_documents(scores, listed, offsets, ncells=ncells, document_count=documents)
    expected = torch.zeros(queries, documents, dtype=torch.bool)
    for query in range(queries):
        for token in range(length):
            of_token = scores[query, :, token].tolist()
            for centroid in sorted(range(centroids), key=of_token.__getitem__, reverse=True)[:ncells]:
                for document in listed[offsets[centroid] : offsets[centroid + 1]].tolist():
                    expected[query, document] = True
    assert torch.equal(found, expected)
    assert torch.equal(REFERENCE.forward(NearProblem(scores, listed, offsets, ncells, documents)), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtypes_and_strides(dtype: torch.dtype) -> None:
    scores, listed, offsets = some(2, 12, 4, 30)
    # different in every dtype, since any of equal ones may be taken
    scores = (scores.argsort(1).argsort(1).to(dtype) / 16).mT.contiguous().mT
    problem = NearProblem(scores, listed.long(), offsets, 3, 30)
    assert torch.equal(NEAR.forward(problem), REFERENCE.forward(problem))


def test_torch_accepts_the_op() -> None:
    scores, listed, offsets = some(2, 12, 4, 30)
    torch.library.opcheck(torch.ops.li_plugins.near_documents.default, (scores, listed, offsets, 3, 30))


def test_the_plan_and_the_count() -> None:
    dispatch.reset()
    scores, listed, offsets = some(2, 12, 4, 30)
    assert explain_near_documents(scores, listed, offsets, ncells=3, document_count=30).kernel.name == "blocked"
    near_documents(scores, listed, offsets, ncells=3, document_count=30)
    assert dispatch.counters() == {("near_documents", "blocked"): 1}


@pytest.mark.parametrize(
    ("changed", "asked"),
    [
        ({"centroid_scores": torch.zeros(12, 4)}, "3 dimensions"),
        ({"documents": torch.zeros(5)}, "dtype int32, int64"),
        ({"centroid_offsets": torch.zeros(12, dtype=torch.int64)}, "13 entries"),
        ({"ncells": 0}, "1 to 12"),
        ({"ncells": 13}, "1 to 12"),
        ({"ncells": 1.0}, "1 to 12"),
        ({"document_count": -1}, "0 or more"),
        ({"document_count": True}, "0 or more"),
        ({"document_count": 3}, "documents lie in [0, 3)"),
        ({"centroid_offsets": torch.full((13,), 1000).cumsum(0)}, "end at most at the number of documents"),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused(changed: dict[str, object], asked: str) -> None:
    scores, listed, offsets = some(2, 12, 4, 30)
    arguments = {"centroid_scores": scores, "documents": listed, "centroid_offsets": offsets}
    refusal.check(lambda: near_documents(**{**arguments, "ncells": 12, "document_count": 30, **changed}), asked)
