"""Forward-mode AD and the transforms of ``torch.func``: a kernel has no rule for them, so PyLate's own code runs."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from li_plugins.testing.parity import call_unpatched

pytestmark = pytest.mark.allow_fallback(reason="MaxSim has a reverse-mode gradient alone")

Scores = Callable[[Tensor], Tensor]


def dual(scores: Scores, queries: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(scores(forward_ad.make_dual(queries, torch.ones_like(queries)))).tangent


def pulled_back(value: Tensor, pull: Callable[[Tensor], tuple[Tensor, ...]]) -> Tensor:
    return pull(torch.ones_like(value))[0]


TRANSFORMS: dict[str, Callable[[Scores, Tensor], Any]] = {
    "a level of forward-mode AD": dual,
    "jvp": lambda scores, queries: torch.func.jvp(scores, (queries,), (torch.ones_like(queries),)),
    "jacfwd": lambda scores, queries: torch.func.jacfwd(scores)(queries),
    "jacrev": lambda scores, queries: torch.func.jacrev(scores)(queries),
    "grad": lambda scores, queries: torch.func.grad(lambda leaf: scores(leaf).sum())(queries),
    "vjp": lambda scores, queries: pulled_back(*torch.func.vjp(scores, queries)),
    "vmap": lambda scores, queries: torch.vmap(scores)(torch.stack([queries, -queries])),
    "hessian": lambda scores, queries: torch.func.hessian(lambda leaf: scores(leaf).square().sum())(queries),
}


def calls(scores: ModuleType) -> list[Scores]:
    """Each score function of queries ``[2, 3, 8]``."""
    documents = torch.randn(2, 4, 5, 8)
    return [
        lambda queries: scores.colbert_scores(queries, documents[0], None, torch.ones(4, 5)),
        lambda queries: scores.colbert_kd_scores(queries, documents),
        lambda queries: scores.colbert_scores_pairwise(queries, documents[:, 0]),
    ]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_gives_what_pylates_code_gives(scores: ModuleType, name: str, li_plugins_counts: Any) -> None:
    torch.manual_seed(0)
    queries, transform = torch.randn(2, 3, 8), TRANSFORMS[name]
    for call in calls(scores):
        ours, library = transform(call, queries), call_unpatched(transform, call, queries)
        torch.testing.assert_close(ours, library, rtol=0, atol=1e-6)
    assert len(li_plugins_counts.declines) == 3


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_in_a_graph(scores: ModuleType, name: str) -> None:
    torch.manual_seed(0)
    queries, transform, call = torch.randn(2, 3, 8), TRANSFORMS[name], calls(scores)[0]
    traced = torch.compile(lambda leaf: transform(call, leaf), fullgraph=True, backend="eager")
    torch.testing.assert_close(traced(queries), call_unpatched(transform, call, queries), rtol=0, atol=1e-6)


def test_what_was_compiled_before_is_compiled_anew(scores: ModuleType) -> None:
    queries, call = torch.randn(2, 3, 8), calls(scores)[0]
    traced = torch.compile(call, fullgraph=True, backend="eager")
    traced(queries)
    try:
        tangent = dual(traced, queries)
    except torch._dynamo.exc.Unsupported as refusal:  # newer releases of torch compile no dual tensors at all
        if "dual tensor" not in str(refusal):
            raise
        pytest.skip("this torch compiles no dual tensors")
    torch.testing.assert_close(tangent, call_unpatched(dual, call, queries), rtol=0, atol=1e-6)
