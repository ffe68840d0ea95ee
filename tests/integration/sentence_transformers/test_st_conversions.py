"""Lists, nested lists and arrays: scored as what the library makes of them, which is not the same in each function."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from sentence_transformers.util.tensor import _convert_to_tensor
from st_batches import BOTH_GRADS, MASKS, PUBLIC, Kind, embeddings
from torch import Tensor

from li_plugins.testing.parity import assert_parity, call_unpatched, outcome

FORMS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda batch: batch,
    "tensors": list,
    "nested lists": Tensor.tolist,
    "array": Tensor.numpy,
    "arrays": lambda batch: [text.numpy() for text in batch],
}
LISTS = [form for form in FORMS if form not in ("tensor", "array")]
BOTH_FORMS = [(form, form) for form in FORMS] + [("tensors", "array"), ("tensor", "arrays"), ("nested lists", "tensor")]
KINDS = {kind.name: kind for kind in PUBLIC}
STACKED = [
    KINDS["colbert_scores"],
    Kind("mean_colbert_scores", KINDS["colbert_scores"].leading),
    KINDS["colbert_kd_scores"],
    Kind("mean_colbert_kd_scores", KINDS["colbert_kd_scores"].leading),
    Kind("xtr_scores", KINDS["colbert_scores"].leading),
    Kind("xtr_kd_scores", KINDS["colbert_kd_scores"].leading),
    Kind("xtr_scores_pairwise", KINDS["maxsim_pairwise"].leading),
]
"""A list is one tensor to them: its zero rows are padding."""
RAGGED = [
    KINDS["maxsim"],
    Kind("mean_maxsim", KINDS["maxsim"].leading),
    KINDS["maxsim_pairwise"],
    Kind("mean_maxsim_pairwise", KINDS["maxsim_pairwise"].leading),
    KINDS["colbert_scores_pairwise"],
    Kind("mean_colbert_scores_pairwise", KINDS["colbert_scores_pairwise"].leading),
]
"""A list is texts of a length each to them: its zero rows are tokens."""
STACKS_TENSORS = isinstance(outcome(lambda: _convert_to_tensor([torch.ones(2), torch.ones(2)])), Tensor)
"""Whether this release makes one tensor of a list of them, or raises."""


def batch(kind: Kind) -> list[Tensor]:
    """Queries and documents with zero rows, and a document of nothing else."""
    leading = kind.leading(3, 4)
    sides = [embeddings(3, 5, 16), embeddings(*leading, 7, 16)]
    sides[0][1, 3:], sides[1][..., 5:, :] = 0, 0
    sides[1][(0,) * len(leading)] = 0
    return sides


def means(kind: Kind) -> list[dict[str, bool]]:
    return [{}] if "xtr" in kind.name else [{}, {"length_normalize": True}, {"length_normalize": False}]


def compare(kind: Kind, forms: tuple[str, str], *names: str) -> None:
    """Compare with the library, which may raise; what it converts to the same tensors scores to the same bits."""
    sides = batch(kind)
    given = [FORMS[form](side) for form, side in zip(forms, sides, strict=True)]
    shapes = tuple(sides[0].shape[:-1]), tuple(sides[1].shape[:-1])
    calls = [(MASKS[name](*shapes), options) for name in names for options in means(kind)]

    def outcomes(embeddings: list[Any]) -> list[Any]:
        return [outcome(partial(kind.function, *embeddings, *masks, **options)) for masks, options in calls]

    found, library = outcomes(given), call_unpatched(outcomes, given)
    if "tensors" in forms and kind in STACKED and not STACKS_TENSORS:
        assert found == library
        return
    for ours, theirs in zip(found, library, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    if kind in STACKED:
        assert all(map(torch.equal, found, outcomes(sides)))


@pytest.mark.parametrize("forms", BOTH_FORMS, ids="-".join)
@pytest.mark.parametrize("kind", STACKED, ids=repr)
def test_a_list_that_the_library_stacks_is_one_tensor(kind: Kind, forms: tuple[str, str]) -> None:
    compare(kind, forms, "none", "queries", "prefix", "both", "weights", "int64")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", RAGGED, ids=repr)
def test_the_zero_rows_of_ragged_lists_are_tokens(kind: Kind, form: str) -> None:
    compare(kind, (form, form), "none")


@pytest.mark.parametrize("form", ["tensor", "array"])
@pytest.mark.parametrize("kind", RAGGED, ids=repr)
def test_masks_of_what_is_padded_already(kind: Kind, form: str) -> None:
    compare(kind, (form, form), "queries", "prefix", "both", "weights", "int64")


@pytest.mark.allow_fallback(reason="a mask for a list may unmask the padding that the library adds")
@pytest.mark.parametrize("form", LISTS)
@pytest.mark.parametrize("kind", RAGGED, ids=repr)
def test_masks_of_ragged_lists(kind: Kind, form: str) -> None:
    compare(kind, (form, form), "queries", "prefix", "both")


@pytest.mark.skipif(not STACKS_TENSORS, reason="this release makes no tensor of a list of them")
@pytest.mark.parametrize("mask", ["none", "both"])
@pytest.mark.parametrize("kind", STACKED, ids=repr)
def test_gradients_reach_the_tensors_of_a_list(kind: Kind, mask: str) -> None:
    sides = batch(kind)
    masks = MASKS[mask](tuple(sides[0].shape[:-1]), tuple(sides[1].shape[:-1]))
    for options in means(kind):
        found = assert_parity(kind.function, [list(side) for side in sides], *masks, wanted=BOTH_GRADS, **options)
        assert len(found.grads) == len(sides[0]) + len(sides[1])


@pytest.mark.parametrize("form", LISTS)
@pytest.mark.parametrize("kind", STACKED, ids=repr)
def test_of_two_sides_that_cannot_be_stacked_the_library_names_one(kind: Kind, form: str) -> None:
    sides = batch(kind)
    shorter = sides[0][:, 1:], sides[1][..., 2:, :]
    given = [[*FORMS[form](side), *FORMS[form](others)] for side, others in zip(sides, shorter, strict=True)]
    ours = outcome(lambda: kind.function(*given))
    assert ours == call_unpatched(outcome, lambda: kind.function(*given))
    assert not isinstance(ours, Tensor)
