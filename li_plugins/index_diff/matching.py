"""Which centroid of one index is which of another's: greedy by cosine, each at most once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from li_plugins.ops import assign

ROUNDING = 1e-5
"""A centroid keeps its own number if no other one is nearer by more than this: equal centroids are not exchanged."""


@dataclass(frozen=True)
class Matching:
    """Pairs of centroids.

    Parameters
    ----------
    b_of_a
        ``[K_a]`` int64: the centroid of B that each of A is, -1 for those that are none.
    cosine
        ``[K_a]`` float32: between the two; 0 for those that are none.
    a_of_b
        ``[K_b]`` int64: the same, read backwards.
    """

    b_of_a: Tensor
    a_of_b: Tensor
    cosine: Tensor

    @property
    def moved(self) -> int:
        """How many have another number in B."""
        return int(((self.b_of_a != torch.arange(len(self.b_of_a))) & (self.b_of_a >= 0)).sum())

    @property
    def complete(self) -> bool:
        """Whether each has its counterpart."""
        return len(self.b_of_a) == len(self.a_of_b) and bool((self.b_of_a >= 0).all())


def match(a: Tensor, b: Tensor) -> Matching:
    """Pair the rows of ``a [K_a, d]`` and ``b [K_b, d]``, the most alike first.

    Pairs that are each other's nearest are taken, round by round among those that are left; that is the greedy matching
    over all pairs, without their matrix.
    """
    a, b = normalize(a.float(), dim=1), normalize(b.float(), dim=1)
    b_of_a = torch.full((len(a),), -1)
    _keep_numbers(a, b, b_of_a)
    while True:
        left_a, left_b = (b_of_a < 0).nonzero()[:, 0], _missing(b_of_a, len(b))
        if not len(left_a) or not len(left_b):
            break
        there, similarity = assign(a[left_a], b[left_b])
        back, _ = assign(b[left_b], a[left_a])
        mutual = back.long()[there.long()] == torch.arange(len(left_a))
        if not bool(mutual.any()):  # two products of one pair may round apart: take the best pair
            mutual[similarity.argmax()] = True
        b_of_a[left_a[mutual]] = left_b[there.long()[mutual]]
    a_of_b = torch.full((len(b),), -1)
    paired = b_of_a >= 0
    a_of_b[b_of_a[paired]] = paired.nonzero()[:, 0]
    cosine = torch.zeros(len(a))
    cosine[paired] = (a[paired] * b[b_of_a[paired]]).sum(1)
    return Matching(b_of_a, a_of_b, cosine)


def _keep_numbers(a: Tensor, b: Tensor, b_of_a: Tensor) -> None:
    """Pair the rows of one number that are, but for rounding, each other's nearest."""
    both = min(len(a), len(b))
    own = (a[:both] * b[:both]).sum(1) + ROUNDING
    keeps = (own >= assign(a[:both], b)[1]) & (own >= assign(b[:both], a)[1])
    b_of_a[:both][keeps] = torch.arange(both)[keeps]


def _missing(numbers: Tensor, count: int) -> Tensor:
    """Return which of ``range(count)`` are not among the numbers."""
    free = torch.ones(count, dtype=torch.bool)
    free[numbers[numbers >= 0]] = False
    return free.nonzero()[:, 0]
