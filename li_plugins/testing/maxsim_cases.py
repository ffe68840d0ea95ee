"""Random MaxSim problems of every layout and rule, and the check that any kernel has to pass on them.

For the author of a kernel::

    problem = random_problem(Layout.CROSS, MaskRule.ZERO, queries=3, documents=5, device="cuda")
    check_kernel(my_kernel, problem)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from li_plugins.ops.masks import MaskRule
from li_plugins.ops.maxsim.problem import Layout, Problem
from li_plugins.ops.maxsim.reference import KERNEL as REFERENCE
from li_plugins.ops.registry import Implementation
from li_plugins.testing.oracle import judge

LAYOUTS = tuple(Layout)
RULES = (MaskRule.NONE, MaskRule.ZERO, replace(MaskRule.EXCLUDE, empty_score=-1e4), MaskRule.FILL(-2.5))
"""One of each; float16 holds this empty score, not sentence-transformers' -1e9."""


def random_problem(
    layout: Layout,
    rule: MaskRule = MaskRule.NONE,
    *,
    queries: int = 3,
    documents: int = 4,
    query_length: int = 7,
    document_length: int = 33,
    dim: int = 8,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
    weights: torch.dtype | None = None,
    mask: torch.dtype | None = torch.bool,
    lengths: bool = True,
    floor: bool = True,
    coarse: bool = False,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Problem:
    """Return a problem; the same arguments give the same numbers on every device.

    Parameters
    ----------
    layout, rule
        See ``Layout`` and ``MaskRule``; a mask comes with every rule but NONE.
    queries, documents, query_length, document_length, dim
        Sizes. ``documents`` are candidates per query for CANDIDATES. Packed items have lengths from 0 to these, and
        PACKED_PAIRS gets ``queries * documents`` pairs, some twice and in no order.
    dtype, out_dtype
        Of the embeddings and of the scores (default: the same).
    weights, mask
        Dtypes of query weights (``None``: no weights) and document mask. A masked token is 0; floats weigh.
    lengths
        Whether dense documents have lengths, one of them 0.
    floor
        Whether some packed documents or pairs have a floor.
    coarse
        Whether embeddings are multiples of 1/4: similarities are exact in fp32 then, and many tie.
    device, seed
        Where, and which.
    """
    random = torch.Generator().manual_seed(seed)

    def embeddings(*shape: int) -> Tensor:
        if coarse:
            return torch.randint(-2, 3, shape, generator=random).to(dtype) / 4
        return torch.randn(shape, generator=random).to(dtype)

    def factor(shape: torch.Size, kind: torch.dtype) -> Tensor:
        kept = torch.rand(shape, generator=random) < 0.7
        if not kind.is_floating_point:
            return kept.to(kind)
        return (kept * (torch.randint(1, 5, shape, generator=random) / 4)).to(kind)

    def offsets(count: int, longest: int) -> Tensor:
        chosen = torch.randint(0, longest + 1, (count,), generator=random)
        if count > 1:
            chosen[0], chosen[-1] = longest, 0
        return torch.cat([torch.zeros(1, dtype=torch.int64), chosen.cumsum(0)])

    fields: dict[str, Tensor] = {}
    if layout in (Layout.CROSS, Layout.CANDIDATES):
        leading = (documents,) if layout is Layout.CROSS else (queries, documents)
        query_tokens = embeddings(queries, query_length, dim)
        document_tokens = embeddings(*leading, document_length, dim)
        if lengths:
            fields["document_lengths"] = torch.randint(0, document_length + 1, leading, generator=random)
            fields["document_lengths"].view(-1)[:1] = 0
    else:
        fields["query_offsets"] = offsets(queries, query_length)
        fields["document_offsets"] = offsets(documents, document_length)
        query_tokens = embeddings(int(fields["query_offsets"][-1]), dim)
        document_tokens = embeddings(int(fields["document_offsets"][-1]), dim)
        floors = documents
        if layout is Layout.PACKED_PAIRS:
            floors = queries * documents
            fields["pair_queries"] = torch.randint(0, max(queries, 1), (floors,), generator=random)
            fields["pair_documents"] = torch.randint(0, max(documents, 1), (floors,), generator=random)
        if floor:
            fields["floor"] = torch.rand(floors, generator=random) < 0.5
    if weights is not None:
        fields["query_weights"] = factor(query_tokens.shape[:-1], weights)
    if mask is not None and rule.name != "NONE":
        fields["document_mask"] = factor(document_tokens.shape[:-1], mask)
    return Problem(
        layout=layout,
        queries=query_tokens.to(device),
        documents=document_tokens.to(device),
        rule=rule,
        out_dtype=out_dtype or dtype,
        max_query_length=query_length,
        max_document_length=document_length,
        **{name: value.to(device) for name, value in fields.items()},
    )


def check_kernel(
    kernel: Implementation,
    problem: Problem,
    *,
    library: tuple[Tensor, Tensor, Tensor] | None = None,
    grad_scores: Tensor | None = None,
    same_winners: bool = False,
) -> None:
    """Compare a kernel with the reference in float64: scores, winners and gradients, in poisoned memory.

    A near tie may go to another token than in float64; the gradients are those of the kernel's own winners then.

    Parameters
    ----------
    kernel
        A kernel object.
    problem
        Embeddings are finite.
    library
        Scores and both gradients of another implementation, whose error is allowed.
    grad_scores
        Default: random, an eighth of them 0.
    same_winners
        Whether the winners have to be the reference's: for problems whose similarities are exact.

    Raises
    ------
    AssertionError
        With the worst element.
    """
    exact_problem = _in_float64(problem)
    exact_scores, exact_winners = REFERENCE.forward(exact_problem, True)
    assert exact_winners is not None
    with poisoned_memory():
        scores, nothing = kernel.forward(problem, False)
        scores_again, winners = kernel.forward(problem, True)
    assert nothing is None
    assert winners is not None
    assert scores.dtype is problem.out_dtype
    assert winners.dtype is problem.winners_dtype
    assert winners.shape == problem.winners_shape
    assert torch.equal(scores, scores_again), "the scores with winners are not those without"
    library_scores, *library_gradients = library or (None, None, None)
    sizes, _ = REFERENCE.forward(_absolute(exact_problem), False)
    assert_close(scores, exact_scores, sizes, library_scores, "scores")

    known = problem.by_score(winners).masked_fill(~_query_tokens(problem), -1)
    if same_winners:
        assert torch.equal(known, problem.by_score(exact_winners)), "winners are not the reference's"
    else:
        _check_near_ties(exact_problem, known, problem.by_score(exact_winners))

    if grad_scores is None:
        random = torch.Generator().manual_seed(1)
        grad_scores = torch.randn(problem.scores_shape, generator=random)
        grad_scores *= torch.rand(problem.scores_shape, generator=random) > 0.125
    grad_scores = grad_scores.to(scores)
    with poisoned_memory():
        gradients = kernel.backward(problem, grad_scores, winners, True, True)
        queries_alone, no_documents = kernel.backward(problem, grad_scores, winners, True, False)
        no_queries, documents_alone = kernel.backward(problem, grad_scores, winners, False, True)
    assert no_documents is None
    assert no_queries is None
    known = problem.as_winners(known)
    exact = REFERENCE.backward(exact_problem, grad_scores.double(), known, True, True)
    sizes_of = REFERENCE.backward(_absolute(exact_problem), grad_scores.double().abs(), known, True, True)
    for side, ours, alone, truth, size, theirs, like in zip(
        ("queries", "documents"),
        gradients,
        (queries_alone, documents_alone),
        exact,
        sizes_of,
        library_gradients,
        (problem.queries, problem.documents),
        strict=True,
    ):
        assert ours is not None
        assert alone is not None
        assert truth is not None
        assert ours.shape == like.shape
        assert ours.dtype is like.dtype
        assert torch.equal(ours, alone), f"the gradient of the {side} changes when the other is not asked for"
        assert_close(ours, truth, size, theirs, f"gradient of the {side}")


def assert_close(
    ours: Tensor, exact: Tensor, sizes: Tensor | None, library: Tensor | None = None, name: str = "result"
) -> None:
    """Assert ``|ours - exact| <= max(|library - exact|, floor)``.

    The floor is one rounding to the dtype of ``ours`` (the distance of its smallest numbers, near 0) and four of fp32's
    of ``sizes``, the sums of the terms' absolute values: a sum of many terms rounds many times, mostly to and fro.
    """
    own, single = torch.finfo(ours.dtype), torch.finfo(torch.float32)
    magnitude = exact.abs() + own.smallest_normal
    if sizes is not None:
        magnitude = magnitude + sizes.abs() * (4 * single.eps / own.eps)
    verdict = judge(ours, exact, library, magnitude=magnitude, name=name)
    assert verdict, str(verdict)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill what ``torch.empty`` returns with NaN, or the largest integer, and watch a margin on either side of it.

    An element that nobody writes shows in the result.

    Raises
    ------
    AssertionError
        After the block, if a margin was written to.
    """
    poison = _Poison()
    with poison:
        yield
    for buffer, elements in poison.allocated:
        margins = torch.cat([buffer[: poison.MARGIN], buffer[poison.MARGIN + elements :]])
        untouched = margins.isnan() if margins.is_floating_point() else margins == torch.iinfo(margins.dtype).max
        assert bool(untouched.all()), f"written outside of a tensor of {elements} elements of {buffer.dtype}"


class _Poison(TorchFunctionMode):
    ALLOCATORS = (torch.empty, torch.empty_like, torch.Tensor.new_empty)
    MARGIN = 1024

    def __init__(self) -> None:
        super().__init__()
        self.allocated: list[tuple[Tensor, int]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in self.ALLOCATORS:
            return result
        elements = result.numel()
        value = torch.nan if result.is_floating_point() else torch.iinfo(result.dtype).max
        buffer = result.new_full((elements + 2 * self.MARGIN,), value)
        self.allocated.append((buffer, elements))
        return buffer[self.MARGIN : self.MARGIN + elements].view(result.shape)


def _in_float64(problem: Problem) -> Problem:
    queries, documents = problem.queries.double(), problem.documents.double()
    return replace(problem, queries=queries, documents=documents, out_dtype=torch.float64)


def _absolute(problem: Problem) -> Problem:
    """Return the problem of absolute values: its results bound every partial sum of the problem's."""
    return replace(
        problem,
        queries=problem.queries.abs(),
        documents=problem.documents.abs(),
        query_weights=None if problem.query_weights is None else problem.query_weights.double().abs(),
        document_mask=None if problem.document_mask is None else problem.document_mask.double().abs(),
        rule=MaskRule(problem.rule.name, abs(problem.rule.fill), abs(problem.rule.empty_score)),
    )


def _query_tokens(problem: Problem) -> Tensor:
    """Return where winners by score belong to a query token."""
    if problem.query_offsets is None:
        shape = *problem.scores_shape, problem.max_query_length
        return torch.ones(shape, dtype=torch.bool, device=problem.queries.device)
    lengths = problem.query_offsets.diff()
    if problem.pair_queries is not None:
        lengths = lengths[problem.pair_queries]
    tokens = torch.arange(problem.max_query_length, device=lengths.device) < lengths[:, None]
    return tokens if problem.pair_queries is not None else tokens[:, None].expand(*problem.scores_shape, -1)


def _check_near_ties(problem: Problem, ours: Tensor, exact: Tensor) -> None:
    """Assert that winners that are not the exact ones tie with them, but for fp32's rounding."""
    differing = torch.nonzero(ours != exact, as_tuple=True)
    values, best = (_similarities(problem, differing, winners[differing]) for winners in (ours, exact))
    sizes = _similarities(_absolute(problem), differing, exact[differing].clamp(min=0))
    slack = torch.finfo(torch.float32).eps * 4 * sizes.abs()
    assert bool(((values - best).abs() <= slack).all()), f"{differing} won with {values}, {best} is there"


def _similarities(problem: Problem, places: tuple[Tensor, ...], winners: Tensor) -> Tensor:
    """Return what query tokens (indices into winners by score) scored with the winners; -1 is the fill or floor."""
    *pairs, query_tokens = places
    if problem.layout is Layout.PACKED_PAIRS:
        assert problem.pair_queries is not None
        assert problem.pair_documents is not None
        queries, documents = problem.pair_queries[pairs[0]], problem.pair_documents[pairs[0]]
    else:
        queries, documents = pairs
    tokens = winners.long().clamp(min=0)
    if problem.query_offsets is not None and problem.document_offsets is not None:
        query_at: tuple[Tensor, ...] = (problem.query_offsets[queries] + query_tokens,)
        document_at: tuple[Tensor, ...] = (problem.document_offsets[documents] + tokens,)
    else:
        query_at = (queries, query_tokens)
        document_at = (queries, documents, tokens) if problem.layout is Layout.CANDIDATES else (documents, tokens)
    similarities = (problem.queries[query_at] * problem.documents[document_at]).sum(-1)
    if problem.rule.name == "ZERO":
        if problem.query_weights is not None:
            similarities = similarities * problem.query_weights[query_at]
        if problem.document_mask is not None:
            similarities = similarities * problem.document_mask[document_at]
    nothing = problem.rule.fill if problem.rule.name == "FILL" else -torch.inf
    similarities = similarities.masked_fill(winners < 0, nothing)
    if problem.floor is not None:
        floors = problem.floor[pairs[0] if problem.layout is Layout.PACKED_PAIRS else documents]
        similarities = torch.where(floors, similarities.clamp(min=0), similarities)
    return similarities
