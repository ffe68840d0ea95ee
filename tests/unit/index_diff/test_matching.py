"""Centroids paired across indexes, and numbers compared by their dtype."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from li_plugins.index_diff.drift import drift
from li_plugins.index_diff.matching import match


def rows(count, width=16, seed=0):
    return normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def greedy(a, b):
    """Return the greedy matching by its definition: over all pairs, the most alike first."""
    similarity = a.double() @ b.double().T
    found = [-1] * len(a)
    for _ in range(min(len(a), len(b))):
        place = int(similarity.argmax())
        row, column = divmod(place, len(b))
        found[row] = column
        similarity[row] = similarity[:, column] = -9
    return found


@pytest.mark.parametrize(("mine", "theirs"), [(40, 40), (40, 25), (25, 40), (1, 1), (1, 7)])
def test_unrelated_centroids_are_paired_greedily(mine, theirs):
    a, b = rows(mine), rows(theirs, seed=1)
    found = match(a, b)
    assert found.b_of_a.tolist() == greedy(a, b)
    for one, other in enumerate(found.b_of_a.tolist()):
        assert other < 0 or found.a_of_b[other] == one
    assert int((found.a_of_b >= 0).sum()) == min(mine, theirs)


def test_a_permutation_is_found_through_noise():
    a, order = rows(300), torch.randperm(300, generator=torch.Generator().manual_seed(1))
    found = match(a.half(), (a[order] + 1e-3 * rows(300, seed=2)).half())
    assert found.complete
    assert torch.equal(found.b_of_a, order.argsort())
    assert found.cosine.min() > 0.999


def test_equal_centroids_keep_their_numbers():
    a = rows(5).repeat(4, 1)
    found = match(a, a.clone())
    assert found.moved == 0
    zeros = match(torch.zeros(3, 4), torch.zeros(3, 4))
    assert (zeros.complete, zeros.moved) == (True, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_neighbours_are_a_unit_apart(dtype):
    one = torch.tensor([1.0, -1.0, 0.0, 3.0], dtype=dtype)
    ulp = torch.finfo(dtype).eps
    found = drift(one, one + torch.tensor([ulp, 0, 0, 0], dtype=dtype))
    assert (found.max_ulp, found.different, found.state) == (1, 1, "close")
    assert drift(one, one.clone()).state == "identical"
    assert drift(torch.tensor([0.0]).to(dtype), torch.tensor([-0.0]).to(dtype)).different == 0
    # across zero: the smallest numbers of both signs are two apart
    tiny = torch.tensor([torch.finfo(dtype).smallest_normal], dtype=dtype)
    assert drift(tiny, -tiny).max_ulp == 2 * drift(tiny, torch.zeros_like(tiny)).max_ulp


def test_what_is_not_finite():
    nan, inf, one = torch.tensor([torch.nan]), torch.tensor([torch.inf]), torch.tensor([1.0])
    assert drift(nan, nan).state == drift(inf, inf).state == "identical"
    for a, b in ((nan, one), (inf, one), (inf, -inf), (nan, inf)):
        assert drift(a, b).beyond == 1
        assert drift(a, b).to_dict()["max_abs"] is None


def test_the_coarser_dtype_counts():
    values = torch.randn(100, generator=torch.Generator().manual_seed(0))
    found = drift(values, values.half())
    assert (found.different, found.state, found.dtypes) == (0, "close", ("float32", "float16"))
    assert drift(values, values.half().float()).state == "differs"


def test_integers_have_no_tolerance():
    found = drift(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 4]))
    assert (found.beyond, found.max_ulp, found.state) == (1, None, "differs")
