"""MaxSim of embeddings, masks and weights that are not finite: NaN goes where torch lets it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from li_plugins.ops import MaskRule, maxsim
from li_plugins.ops.maxsim import kept


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def library(queries: Tensor, documents: Tensor) -> Tensor:
    """What PyLate and colpali-engine compute."""
    return torch.einsum("ash,bth->abst", queries, documents).max(-1).values.sum(-1)


@pytest.mark.usefixtures("kernel")
def test_nan_propagates_as_in_torch() -> None:
    queries, documents = some(3, 4, 6), some(4, 5, 6, seed=1)
    queries[1, 2, 0] = documents[2, 3, 1] = torch.nan
    torch.testing.assert_close(maxsim(queries, documents), library(queries, documents), equal_nan=True)
    leaves = queries.requires_grad_(), documents.requires_grad_()
    torch.testing.assert_close(maxsim(*leaves), library(*leaves), equal_nan=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.usefixtures("kernel")
def test_masked_values_that_are_not_finite(value: float, requires_grad: bool) -> None:
    queries, documents = some(3, 4, 6), some(4, 5, 6, seed=1)
    documents[1, 2, 3] = value
    queries.requires_grad_(requires_grad)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[:, 2] = False
    # a factor of 0 keeps them in, as in the library: 0 * inf and 0 * nan are nan
    grid = torch.einsum("ash,bth->abst", queries, documents) * mask[None, :, None, :]
    scores = maxsim(queries, documents, document_mask=mask, mask_rule=MaskRule.ZERO)
    torch.testing.assert_close(scores, grid.max(-1).values.sum(-1), equal_nan=True)
    # a fill or an exclusion does not look at them
    for rule in (MaskRule.EXCLUDE, MaskRule.FILL(-9999.0)):
        assert maxsim(queries, documents, document_mask=mask, mask_rule=rule).isfinite().all()
    # nor does a length
    lengths = torch.tensor([5, 2, 5, 5])
    assert maxsim(queries, documents, document_lengths=lengths).isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.usefixtures("kernel")
def test_a_query_that_is_not_finite_meets_masked_tokens(value: float) -> None:
    queries, documents = some(3, 4, 6), some(4, 5, 6, seed=1)
    queries[1, 2, 3] = value
    mask = torch.zeros(4, 5)
    mask[1:] = 1
    grid = torch.einsum("ash,bth->abst", queries, documents) * mask[None, :, None, :]
    scores = maxsim(queries, documents, document_mask=mask, mask_rule=MaskRule.ZERO)
    torch.testing.assert_close(scores, grid.max(-1).values.sum(-1), equal_nan=True)
    assert scores[1, 0].isnan()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.usefixtures("kernel")
def test_a_weight_that_is_not_finite_meets_masked_tokens(value: float) -> None:
    queries, documents = some(3, 4, 6), some(4, 5, 6, seed=1)
    weights, mask = torch.ones(3, 4), torch.zeros(4, 5)
    weights[1, 2] = value
    mask[1:] = 1
    grid = torch.einsum("ash,bth->abst", queries * weights[..., None], documents) * mask[None, :, None, :]
    scores = maxsim(queries, documents, query_weights=weights, document_mask=mask, mask_rule=MaskRule.ZERO)
    assert torch.equal(scores[1, 0].isnan(), grid.max(-1).values.sum(-1)[1, 0].isnan())
    assert scores[1, 0].isnan()
    torch.testing.assert_close(scores[[0, 2]], grid.max(-1).values.sum(-1)[[0, 2]])


@pytest.mark.usefixtures("kernel")
def test_zero_rows_and_a_query_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "SCANNED", 1)
    queries, documents = some(2, 3, 6), some(4, 5, 6, seed=1)
    documents[:, 3:] = 0
    queries[1, 2, 3] = torch.inf
    torch.testing.assert_close(maxsim(queries, documents), library(queries, documents), equal_nan=True)
