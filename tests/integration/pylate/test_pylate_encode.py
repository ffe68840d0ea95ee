"""``ColBERT.skiplist_mask``, and the encoding that uses it: bit for bit what PyLate returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pylate.losses.contrastive import extract_skiplist_mask
from pylate.models import ColBERT

from li_plugins.testing.parity import call_unpatched, outcome

DTYPES = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.float32, torch.float64]
SKIPLISTS = {
    "punctuation": list(range(5, 37)),
    "one": [7],
    "nothing": [],
    "tuple": (5, 9, 13),
    "beyond narrow dtypes": [7, 300, 44, 256, 2**33],
    "negative": [-1, -5, 0],
    "repeated": [7, 7, 7],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("skiplist", SKIPLISTS)
def test_the_mask_is_pylates(skiplist: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ids = torch.randint(-5, 300, (7, 30)).to(dtype)
    for input_ids in (ids, ids[3, 4], ids[:0], ids.T, ids[:, ::3], ids[None]):
        ours = ColBERT.skiplist_mask(input_ids, SKIPLISTS[skiplist])
        library = call_unpatched(ColBERT.skiplist_mask, input_ids, SKIPLISTS[skiplist])
        assert (ours.dtype, ours.device, ours.shape) == (library.dtype, library.device, library.shape)
        assert torch.equal(ours, library)


@pytest.mark.allow_fallback(reason="torch.isin has no answer where the library has one")
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize(
    ("ids", "skiplist"),
    [
        (torch.tensor([True, False]), [1]),
        (torch.tensor([1.0, 7.0]).half(), [7]),
        (torch.tensor([1 + 1j]), [1]),
        ([1, 2], [1]),
        (torch.tensor([1, 2]), torch.tensor([2])),
        (torch.tensor([1, 2]), [1.5]),
        (torch.tensor([[1, 2]]), [[1, 2]]),
        (torch.tensor([1, 2]), None),
    ],
    ids=["bool", "half", "complex", "list", "tensor of skipped", "float skipped", "nested skipped", "none skipped"],
)
def test_the_library_answers_the_rest(ids: Any, skiplist: Any) -> None:
    ours = outcome(lambda: ColBERT.skiplist_mask(ids, skiplist))
    library = call_unpatched(outcome, lambda: ColBERT.skiplist_mask(ids, skiplist))
    assert torch.equal(ours, library) if isinstance(library, torch.Tensor) else ours == library


def test_an_id_that_int64_cannot_hold_is_the_same_error() -> None:
    ours = outcome(lambda: ColBERT.skiplist_mask(torch.tensor([1]), [2**70]))
    assert ours == call_unpatched(outcome, lambda: ColBERT.skiplist_mask(torch.tensor([1]), [2**70]))
    assert isinstance(ours, tuple)


def test_the_losses_masks_are_pylates() -> None:
    features = [
        {"input_ids": torch.randint(0, 50, (3, 9)), "attention_mask": (torch.rand(3, 9) < 0.8).long()} for _ in range(3)
    ]
    skiplist = list(range(5, 37))
    ours = extract_skiplist_mask(features, skiplist)
    for mine, theirs in zip(ours, call_unpatched(extract_skiplist_mask, features, skiplist), strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


def test_documents_are_encoded_alike(make_model: Callable[..., Any], li_plugins_counts: Any) -> None:
    model = make_model()
    texts = ["fruits are healthy.", "wing, flow; (heat)!", "?!", "", "the boundary layer of a supersonic jet."]
    ours = model.encode(texts, is_query=False, show_progress_bar=False)
    library = call_unpatched(model.encode, texts, is_query=False, show_progress_bar=False)
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(ours, library, strict=True))
    assert li_plugins_counts.calls == {"pylate.models.colbert:ColBERT.skiplist_mask": 1}
