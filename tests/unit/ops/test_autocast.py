"""Operations under autocast: what is multiplied in which precision is said by the embeddings alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from li_plugins import ops


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


ROWS, CENTROIDS, OFFSETS = some(50, 8), some(9, 8, seed=1), torch.tensor([0, 20, 50])
CODES, RESIDUALS = torch.arange(50, dtype=torch.int32) % 9, torch.arange(100, dtype=torch.uint8).view(50, 2)
STORED = (CODES, RESIDUALS, CENTROIDS, torch.linspace(-1, 1, 4))

SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "maxsim": ops.maxsim,
    "maxsim of many": lambda queries, documents: ops.maxsim(queries.repeat(40, 4, 1), documents.repeat(40, 4, 1)),
    "smooth": lambda queries, documents: ops.smooth_maxsim(queries, documents, tau=0.02),
    "cosine": ops.cosine_maxsim,
    "xtr": lambda queries, documents: ops.xtr_maxsim(queries, documents, k=9),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "assign": lambda: ops.assign(ROWS, CENTROIDS),
    "kmeans": lambda: ops.kmeans(ROWS, 4, iterations=3, seed=1),
    "compress": lambda: ops.compress(ROWS, CENTROIDS, torch.tensor([-0.5, 0, 0.5]), nbits=2),
    "residual": lambda: ops.residual_maxsim(some(2, 3, 8), *STORED, OFFSETS, nbits=2),
}


@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", SCORES)
@pytest.mark.usefixtures("kernel")
def test_scores_and_gradients(op: str, lowered: torch.dtype) -> None:
    leaves = [some(3, 4, 8).requires_grad_(), some(5, 6, 8, seed=1).requires_grad_()]

    def step() -> list[Tensor]:
        scores = SCORES[op](*leaves)
        return [scores, *torch.autograd.grad(scores.sum(), leaves)]

    expected = step()
    with torch.autocast("cpu", dtype=lowered):
        found = step()
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("op", OTHERS)
def test_what_has_no_gradient(op: str) -> None:
    expected = OTHERS[op]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = OTHERS[op]()
    pairs = zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]
    assert all(torch.equal(*pair) for pair in pairs)


def test_autocast_is_left_alone() -> None:
    queries, documents = some(2, 3, 4), some(2, 5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = ops.maxsim(queries, documents)
    assert scores.dtype is torch.float32
    torch.testing.assert_close(scores, ops.maxsim(queries, documents), rtol=0, atol=0)
