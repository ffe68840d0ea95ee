"""What every adapter hands to the operations, and what none of them may."""

from __future__ import annotations

import timeit
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from li_plugins.api import Decline
from li_plugins.ops import _compat, arguments

Call = Callable[[Tensor], Tensor]


def in_a_level(call: Call, queries: Tensor) -> Any:
    with forward_ad.dual_level():
        return call(forward_ad.make_dual(queries, queries))


TRANSFORMS: dict[str, Callable[[Call, Tensor], Any]] = {
    "forward-mode AD": in_a_level,
    "jvp": lambda call, queries: torch.func.jvp(call, (queries,), (queries,)),
    "grad": lambda call, queries: torch.func.grad(lambda leaf: call(leaf).sum())(queries),
    "vjp": torch.func.vjp,
    "vmap": lambda call, queries: torch.vmap(call)(queries[None]),
    "functionalize": lambda call, queries: torch.func.functionalize(call)(queries),
}


# torch compiles its own rules of forward-mode AD with it
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning", "ignore:`torch.jit.script:FutureWarning")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_under_a_transform_the_library_runs(name: str) -> None:
    documents, answers = torch.randn(4, 5, 8), []

    def call(queries: Tensor) -> Tensor:
        answers.append(arguments.padded(queries, documents, document_rank=3))
        return queries

    TRANSFORMS[name](call, torch.randn(2, 3, 8))
    call(torch.randn(2, 3, 8))
    during, after = answers
    assert isinstance(during, Decline)
    assert "forward-mode AD or a transform of torch.func" in during.reason
    assert not isinstance(after, Decline), "the transform is over"


def test_a_call_hardly_pays_for_the_question() -> None:
    seconds = min(timeit.repeat(_compat.a_transform_is_active, number=1000, repeat=20)) / 1000
    assert seconds < 1e-6
