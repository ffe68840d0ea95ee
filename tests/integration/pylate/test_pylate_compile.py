"""``torch.compile`` traces through a patched function, whether compiled before, during or after the patch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

import li_plugins
from li_plugins.ops import dispatch

pytestmark = pytest.mark.switches


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def forward_runs() -> int:
    """How often a kernel of ours computed scores; a traced call is not counted by the host."""
    return sum(count for (label, _), count in dispatch.counters().items() if label == "maxsim")


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    def around(queries: torch.Tensor, documents: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return 2 * function(queries, documents, None, mask) + 1

    # Dynamo and autograd's tracing, without a C++ compiler.
    return torch.compile(around, fullgraph=True, backend="aot_eager")


def arguments(name: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    documents = {"colbert_scores": (5,), "colbert_kd_scores": (3, 5), "ColBERTScores": (2, 5)}[name]
    return [
        torch.randn(3, 4, 16, requires_grad=True),
        torch.randn(*documents, 7, 16, requires_grad=True),
        torch.rand(*documents, 7) < 0.7,
    ]


def result(function: Callable[..., Any], name: str) -> list[torch.Tensor]:
    queries, documents, mask = arguments(name)
    scores = function(queries, documents, mask)
    scores.sum().backward()
    return [scores.detach(), queries.grad, documents.grad]


def agree(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["colbert_scores", "colbert_kd_scores", "ColBERTScores"])
def test_compiled_before_patched_and_after_the_undo(scores: ModuleType, name: str) -> None:
    if not hasattr(scores, name):
        pytest.skip(f"PyLate has {name} since 1.5")
    function = getattr(scores, name)
    function = function() if isinstance(function, type) else function
    traced = compiled(function)
    unpatched = forward_runs()
    expected = result(traced, name)
    assert forward_runs() == unpatched, "nothing was patched yet, and a kernel of ours ran"

    li_plugins.enable("pylate")
    agree(result(traced, name), expected)
    assert forward_runs() == unpatched + 1, "compiled before the patch: the original ran"
    agree(result(compiled(function), name), expected)
    assert forward_runs() == unpatched + 2, "compiled while patched: the original ran"

    li_plugins.disable_all()
    agree(result(traced, name), expected)
    assert forward_runs() == unpatched + 2, "after the undo: ours ran"


def test_ragged_pairs_in_a_graph(scores: ModuleType) -> None:
    sizes = [(3, 5), (1, 7), (4, 2)]
    queries, documents = ([torch.randn(pair[side], 16, requires_grad=True) for pair in sizes] for side in (0, 1))
    leaves = [*queries, *documents]
    found = scores.colbert_scores_pairwise(queries, documents)
    expected = [found.detach(), *torch.autograd.grad(found.sum(), leaves)]
    traced = torch.compile(scores.colbert_scores_pairwise, fullgraph=True, backend="aot_eager")
    li_plugins.enable("pylate")
    before = forward_runs()
    found = traced(queries, documents)
    agree([found.detach(), *torch.autograd.grad(found.sum(), leaves)], expected)
    assert forward_runs() == before + 1


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float32], ids=str)
def test_the_skiplists_mask_in_a_graph(dtype: torch.dtype) -> None:
    from pylate.models import ColBERT

    ids, skiplist = torch.randint(0, 90, (3, 40)).to(dtype), [7, 19, 300]
    expected = ColBERT.skiplist_mask(ids, skiplist)
    called: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        called.extend(getattr(node.target, "__name__", "") for node in graph.graph.nodes)
        return graph.forward

    li_plugins.enable("pylate")
    found = torch.compile(ColBERT.skiplist_mask, fullgraph=True, backend=backend)(ids, skiplist)
    assert torch.equal(found, expected)
    assert called.count("isin") == 1, f"the original ran: {called}"


@pytest.mark.allow_fallback(reason="declines inside the graph")
def test_a_decline_is_traced(scores: ModuleType) -> None:
    traced = torch.compile(scores.colbert_scores, fullgraph=True, backend="aot_eager")
    li_plugins.enable("pylate")
    queries = torch.arange(24).reshape(2, 3, 4)
    assert torch.equal(traced(queries, queries), li_plugins.original(scores.colbert_scores)(queries, queries))
