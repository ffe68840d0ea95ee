"""``torch.compile`` traces through a patched function, whether compiled before, during or after the patch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from st_batches import CHUNKS, PUBLIC, Kind, pair, prefix
from test_st_lists import ragged

import li_plugins
from li_plugins.ops import dispatch

pytestmark = pytest.mark.switches

KINDS = [kind for kind in CHUNKS + PUBLIC if kind.name != "colbert_scores_pairwise"]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def forward_runs() -> int:
    """How often a kernel of ours computed scores; a traced call is not counted by the host."""
    return sum(count for (label, _), count in dispatch.counters().items() if label == "maxsim")


def compiled(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    def around(queries: torch.Tensor, documents: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return 2 * function(queries, documents, None, mask) + 1

    return torch.compile(around, fullgraph=True, backend=backend)


def result(function: Callable[..., Any], kind: Kind) -> list[torch.Tensor]:
    torch.manual_seed(0)
    queries, documents = (side.requires_grad_() for side in pair(kind))
    mask = prefix(tuple(documents.shape[:-1]))
    mask[0] = False  # a document without tokens
    scores = function(queries, documents, mask)
    (scores * (scores > -1e8)).sum().backward()
    assert queries.grad is not None
    assert documents.grad is not None
    return [scores.detach(), queries.grad, documents.grad]


def agree(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_compiled_before_patched_and_after_the_undo(kind: Kind) -> None:
    # The library's in-place fill is nothing that autograd's tracing takes: without the patch, Dynamo alone.
    traced = compiled(kind.function, "eager")
    expected = result(traced, kind)
    unpatched = forward_runs()

    li_plugins.enable("sentence-transformers")
    agree(result(traced, kind), expected)
    assert forward_runs() == unpatched + 1, "compiled before the patch: the original ran"
    agree(result(compiled(kind.function, "aot_eager"), kind), expected)
    assert forward_runs() == unpatched + 2, "compiled while patched: the original ran"

    li_plugins.disable_all()
    agree(result(traced, kind), expected)
    assert forward_runs() == unpatched + 2, "after the undo: ours ran"


@pytest.mark.parametrize("name", ["maxsim", "maxsim_pairwise"])
def test_ragged_lists_are_traced(name: str) -> None:
    from sentence_transformers.util import similarity

    function = getattr(similarity, name)
    batch = [ragged(3, 1, 7), ragged(5, 2, 9)]
    expected = function(*batch)
    li_plugins.enable("sentence-transformers")
    before = forward_runs()
    traced = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(*batch), expected)
    assert forward_runs() == before + 1


@pytest.mark.allow_fallback(reason="declines inside the graph")
def test_a_decline_is_traced() -> None:
    from sentence_transformers.util import similarity

    li_plugins.enable("sentence-transformers")
    traced = torch.compile(similarity.maxsim, fullgraph=True, backend="eager")
    queries = torch.arange(24).reshape(2, 3, 4)
    assert torch.equal(traced(queries, queries), li_plugins.original(similarity.maxsim)(queries, queries))
