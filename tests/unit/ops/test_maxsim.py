"""The public functions as torch citizens: dtypes, strides, gradients, modes, compilation, threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import drawn
import obvious
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from li_plugins.ops import MaskRule, dispatch, maxsim, maxsim_packed, smooth_maxsim, supports_maxsim
from li_plugins.ops.maxsim import autograd, contract, cpu, reference
from li_plugins.testing.oracle import judge

HALVES = [torch.float16, torch.bfloat16]
FLOATS = [*HALVES, torch.float32, torch.float64]


def some(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def library(queries: Tensor, documents: Tensor) -> Tensor:
    """What PyLate and colpali-engine compute: einsum, max, sum, each rounded to the dtype of the inputs."""
    return torch.einsum("ash,bth->abst", queries, documents).max(-1).values.sum(-1)


def gradients(scores: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(scores, leaves, torch.linspace(-1, 1, scores.numel()).view_as(scores).to(scores))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.usefixtures("kernel")
def test_the_error_is_the_librarys_or_one_rounding_step(dtype: torch.dtype) -> None:
    queries = torch.nn.functional.normalize(some(5, 17, 48), dim=-1).to(dtype).requires_grad_()
    documents = torch.nn.functional.normalize(some(6, 61, 48, seed=1), dim=-1).to(dtype).requires_grad_()
    exact_leaves = [leaf.detach().double().requires_grad_() for leaf in (queries, documents)]
    scores, theirs, exact = maxsim(queries, documents), library(queries, documents), library(*exact_leaves)
    assert scores.dtype is dtype
    verdict = judge(scores, exact, theirs, name="scores")
    assert verdict, str(verdict)
    truths = gradients(exact, *exact_leaves)
    found, theirs = gradients(scores, queries, documents), gradients(theirs, queries, documents)
    for name, ours, truth, other in zip(("queries", "documents"), found, truths, theirs, strict=True):
        assert ours.dtype is dtype
        verdict = judge(ours, truth, other, name=f"gradient of the {name}")
        assert verdict, str(verdict)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.usefixtures("kernel")
def test_half_precision_accumulates_in_float32(dtype: torch.dtype) -> None:
    queries, documents = torch.ones(1, 1, 4096, dtype=dtype), torch.ones(1, 1, 4096, dtype=dtype)
    queries[..., 1:], documents[..., 0] = 1 / 64, 16
    exact = (queries.double() * documents.double()).sum()
    assert maxsim(queries, documents, out_dtype=torch.float32).double().item() == exact.item()
    many = maxsim(torch.ones(1, 3001, 1, dtype=dtype), torch.ones(1, 1, 1, dtype=dtype), out_dtype=torch.float32)
    assert many.item() == 3001


@pytest.mark.parametrize("out_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.usefixtures("kernel")
def test_out_dtype_rounds_once(dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    queries, documents = some(2, 3, 8, dtype=dtype).requires_grad_(), some(4, 5, 8, dtype=dtype, seed=1)
    scores = maxsim(queries, documents, out_dtype=out_dtype)
    assert scores.dtype is out_dtype
    torch.testing.assert_close(scores, maxsim(queries.float(), documents.float()).to(out_dtype), rtol=0, atol=0)
    (grad,) = gradients(scores, queries)
    assert grad.dtype is dtype


STRIDES = {
    "transposed": lambda tensor: tensor.transpose(1, 2).contiguous().transpose(1, 2),
    "every second": lambda tensor: tensor.repeat_interleave(2, dim=1)[:, ::2],
    "sliced": lambda tensor: torch.cat([tensor, tensor], dim=-1)[..., : tensor.shape[-1]],
    "offset": lambda tensor: torch.cat([tensor[:1], tensor])[1:],
}


@pytest.mark.parametrize("name", STRIDES)
@pytest.mark.usefixtures("kernel")
def test_strides_do_not_matter(name: str) -> None:
    queries, documents = some(3, 4, 6), some(5, 7, 6, seed=1)
    strided = [STRIDES[name](tensor).requires_grad_() for tensor in (queries, documents)]
    plain = [tensor.clone().requires_grad_() for tensor in (queries, documents)]
    mask = torch.rand(7, 5).lt(0.7).T
    results = []
    for leaves, document_mask in ((strided, mask), (plain, mask.contiguous())):
        scores = maxsim(*leaves, document_mask=document_mask, mask_rule=MaskRule.ZERO)
        results.append((scores, *gradients(scores, *leaves)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.usefixtures("kernel")
def test_expanded_inputs_get_summed_gradients() -> None:
    query, document = some(1, 4, 6).requires_grad_(), some(1, 7, 6, seed=1).requires_grad_()
    scores = maxsim(query.expand(3, 4, 6), document.expand(5, 7, 6))
    grads = gradients(scores, query, document)
    expected = gradients(library(query.expand(3, 4, 6), document.expand(5, 7, 6)), query, document)
    torch.testing.assert_close(grads, expected)


class Seen:
    """What the kernels were asked for."""

    def __init__(self) -> None:
        self.wanted_winners: list[bool] = []
        self.needed_gradients: list[tuple[bool, bool]] = []


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    seen = Seen()
    for kind in (cpu.Blocked, reference.Reference):
        forward, backward = kind.forward, kind.backward

        def spy_forward(self: Any, problem: Any, want: bool, call: Any = forward) -> Any:
            seen.wanted_winners.append(want)
            return call(self, problem, want)

        def spy_backward(self: Any, *arguments: Any, call: Any = backward) -> Any:
            seen.needed_gradients.append(arguments[-2:])
            return call(self, *arguments)

        monkeypatch.setattr(kind, "forward", spy_forward)
        monkeypatch.setattr(kind, "backward", spy_backward)
    return seen


def call(tensors: list[Tensor], keywords: dict[str, Any]) -> Tensor:
    return (maxsim if len(tensors) == 2 else maxsim_packed)(*tensors, **keywords)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("layout", drawn.LAYOUTS)
@pytest.mark.usefixtures("kernel")
def test_gradients_only_where_needed(layout: str, side: int, seen: Seen) -> None:
    tensors, keywords = drawn.arguments(layout, MaskRule.ZERO, 3, [3, 4])
    tensors[side].requires_grad_()
    call(tensors, keywords).sum().backward()
    assert seen.needed_gradients == [(side == 0, side == 1)]
    assert tensors[side].grad is not None
    assert tensors[1 - side].grad is None


def test_winners_only_where_a_gradient_is_wanted(seen: Seen) -> None:
    queries, documents = some(2, 3, 4), some(2, 5, 4)
    maxsim(queries, documents)
    queries.requires_grad_()
    with torch.no_grad():
        maxsim(queries, documents)
    with torch.inference_mode():
        maxsim(queries, documents)
    maxsim(queries.detach(), documents)
    assert seen.wanted_winners == [False] * 4
    maxsim(queries, documents)
    assert seen.wanted_winners[-1]


@pytest.mark.usefixtures("kernel")
def test_inference_tensors_are_inputs_like_others() -> None:
    with torch.inference_mode():
        queries, documents = some(2, 3, 4), some(2, 5, 4)
        inside = maxsim(queries, documents)
    assert inside.is_inference()
    torch.testing.assert_close(inside, maxsim(queries.clone(), documents.clone()), rtol=0, atol=0)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 5), (4, 1), (3, 5)])
@pytest.mark.usefixtures("kernel")
def test_results_can_be_written_to(sizes: tuple[int, int]) -> None:
    queries, documents = some(sizes[0], 1, 1).requires_grad_(), some(sizes[1], 1, 1)
    before = queries.detach().clone(), documents.clone()
    scores = maxsim(queries, documents)
    assert scores.is_contiguous()
    assert not scores._is_view()
    scores.mul_(2)  # raises for a view that a custom function returned
    scores.sum().backward()
    torch.testing.assert_close(queries.grad, documents.sum(0, keepdim=True).expand_as(queries) * 2)
    assert torch.equal(queries, before[0])
    assert torch.equal(documents, before[1])


@pytest.mark.parametrize("layout", drawn.LAYOUTS)
@pytest.mark.parametrize("rule", obvious.RULES, ids=str)
@pytest.mark.usefixtures("kernel")
def test_gradcheck(layout: str, rule: MaskRule) -> None:
    tensors, keywords = drawn.arguments(layout, rule, 5, [2, 3], width=3)
    leaves = tuple(tensor.requires_grad_() for tensor in tensors[:2])
    assert torch.autograd.gradcheck(lambda *both: call([*both, *tensors[2:]], keywords), leaves)


def test_a_second_derivative_is_an_error() -> None:
    queries, documents = some(2, 3, 4).requires_grad_(), some(2, 5, 4).requires_grad_()
    (grad,) = torch.autograd.grad(maxsim(queries, documents).sum(), queries, create_graph=True)
    with pytest.raises(NotImplementedError, match="has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("side", [0, 1], ids=["queries", "documents"])
@pytest.mark.parametrize("layout", drawn.LAYOUTS)
@pytest.mark.usefixtures("kernel")
def test_the_one_side_with_a_gradient_may_change_before_the_backward(layout: str, side: int, compiled: bool) -> None:
    """As an optimizer changes it between two backwards; its gradient is gathered from the other side."""
    tensors, keywords = drawn.arguments(layout, MaskRule.ZERO, 6, [2, 3], width=3)

    def scored(*embeddings: Tensor) -> Tensor:
        return call([*embeddings, *tensors[2:]], keywords)

    leaf = tensors[side].requires_grad_()
    (expected,) = torch.autograd.grad(scored(*tensors[:2]).sum(), leaf)
    torch._dynamo.reset()
    # lengths that are read stop a trace
    scores = torch.compile(scored, backend="aot_eager")(*tensors[:2]) if compiled else scored(*tensors[:2])
    with torch.no_grad():
        leaf.fill_(torch.nan)
    assert torch.equal(torch.autograd.grad(scores.sum(), leaf)[0], expected)


FORWARD_MODE = {
    "jvp": lambda call, queries: torch.func.jvp(call, (queries,), (queries,)),
    "jacfwd": lambda call, queries: torch.func.jacfwd(call)(queries),
    "hessian": lambda call, queries: torch.func.hessian(lambda rows: call(rows).sum())(queries),
    "dual numbers": lambda call, queries: call(forward_ad.make_dual(queries, queries)),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script.")  # torch's own forward mode
@pytest.mark.parametrize("way", FORWARD_MODE)
@pytest.mark.parametrize("operation", [maxsim, partial(smooth_maxsim, tau=0.1)], ids=["maxsim", "smooth"])
def test_a_forward_derivative_is_an_error(operation: Callable[..., Tensor], way: str) -> None:
    queries, documents = some(2, 3, 4), some(2, 5, 4)
    level = forward_ad.dual_level() if way == "dual numbers" else nullcontext()
    with level, pytest.raises(NotImplementedError, match="has no forward derivative"):
        FORWARD_MODE[way](lambda rows: operation(rows, documents), queries)
    assert operation(queries, documents).shape == (2, 2)


@pytest.mark.parametrize("way", ["grad", "jacrev", "grad of vmap"])
def test_a_gradient_within_torch_func_is_an_error(way: str) -> None:
    queries, documents = some(2, 3, 4), some(2, 5, 4)

    def total(rows: Tensor) -> Tensor:
        return maxsim(rows, documents).sum()

    within = {
        "grad": torch.func.grad(total),
        "jacrev": torch.func.jacrev(total),
        "grad of vmap": torch.func.grad(lambda rows: torch.func.vmap(total)(rows[:, None]).sum()),
    }
    with pytest.raises(NotImplementedError, match=r"no gradient within torch\.func"):
        within[way](queries)


@pytest.mark.filterwarnings("ignore:.*batching rule")  # torch calls the op once for each
def test_a_batch_of_vmap_is_served() -> None:
    queries, documents = some(4, 2, 3, 4), some(2, 5, 4)
    found = torch.func.vmap(lambda rows: maxsim(rows, documents))(queries)
    torch.testing.assert_close(found, torch.stack([maxsim(rows, documents) for rows in queries]), rtol=0, atol=0)


def test_backward_runs_again_over_a_retained_graph() -> None:
    queries, documents = some(2, 3, 4).requires_grad_(), some(2, 5, 4)
    scores = maxsim(queries, documents)
    first = torch.autograd.grad(scores.sum(), queries, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(scores.sum(), queries), first, rtol=0, atol=0)


def op_and_arguments(layout: str, rule: MaskRule, want_winners: bool = True) -> tuple[Any, Any, tuple[Any, ...]]:
    """Return the op, its backward, and arguments for both; embeddings need a gradient when winners are wanted."""
    tensors, keywords = drawn.arguments(layout, rule, 4, [2, 3])
    tensors[:2] = [tensor.requires_grad_(want_winners) for tensor in tensors[:2]]
    problem = (contract.dense if len(tensors) == 2 else contract.packed)(*tensors, **keywords)
    operation, arguments = autograd.described(problem)
    return operation.forward_op, operation.backward_op, (*arguments, want_winners)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch 2.15's own opcheck looks at it
@pytest.mark.parametrize("layout", drawn.LAYOUTS)
@pytest.mark.parametrize("rule", obvious.RULES, ids=str)
def test_opcheck(layout: str, rule: MaskRule) -> None:
    op, _, arguments = op_and_arguments(layout, rule)
    torch.library.opcheck(op, arguments)


@pytest.mark.parametrize("layout", drawn.LAYOUTS)
def test_opcheck_without_a_gradient_and_of_the_backward(layout: str) -> None:
    op, backward, arguments = op_and_arguments(layout, MaskRule.ZERO, want_winners=False)
    torch.library.opcheck(op, arguments)
    scores, winners = op(*arguments[:-1], True)
    for needs in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(backward, (torch.randn_like(scores), winners, *arguments[:-1], *needs))


def test_the_op_refuses_a_gradient_without_winners() -> None:
    problem = contract.dense(some(2, 3, 4).requires_grad_(), some(2, 5, 4))
    operation, arguments = autograd.described(problem)
    with pytest.raises(RuntimeError, match="want_winners"):
        operation.forward_op(*arguments, False)


@pytest.mark.parametrize(
    ("layout", "dynamic"), [*((layout, False) for layout in drawn.LAYOUTS), ("cross", True), ("packed_pairs", True)]
)
def test_compiles_into_one_graph(layout: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    keywords: dict[str, Any] = {}

    def step(queries: Tensor, documents: Tensor, *rest: Tensor) -> Tensor:
        return call([queries * 2, documents, *rest], keywords) + 1

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for seed in (3, 4):
        tensors, keywords = drawn.arguments(layout, MaskRule.ZERO, seed, [3, 4])
        keywords |= {} if len(tensors) == 2 else {"max_query_length": 4, "max_document_length": 4}
        results = []
        for function in (compiled, step):
            leaves = [tensor.clone().requires_grad_() for tensor in tensors[:2]]
            scores = function(*leaves, *tensors[2:])
            results.append((scores, *gradients(scores, *leaves)))
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    torch._dynamo.reset()


def test_supports_is_traceable() -> None:
    torch._dynamo.reset()

    def step(queries: Tensor, documents: Tensor) -> Tensor:
        return maxsim(queries, documents) if supports_maxsim(queries, documents) else queries.sum()

    queries, documents = some(2, 3, 4), some(5, 6, 4)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(queries, documents), maxsim(queries, documents), rtol=0, atol=0)
    torch._dynamo.reset()


def test_threads_get_what_one_gets() -> None:
    queries, documents = some(6, 8, 16), some(20, 30, 16, seed=1)

    def step() -> tuple[Tensor, ...]:
        leaves = [tensor.clone().requires_grad_() for tensor in (queries, documents)]
        scores = maxsim(*leaves)
        return scores.detach(), *gradients(scores, *leaves)

    expected = step()
    dispatch.reset()
    results: list[tuple[Tensor, ...]] = []
    threads = [threading.Thread(target=lambda: results.extend(step() for _ in range(10))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40
    for result in results:
        assert all(torch.equal(*both) for both in zip(result, expected, strict=True))


@pytest.mark.usefixtures("kernel")
def test_twice_the_same_to_the_bit() -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(7, 9, 16, requires_grad=True), torch.randn(11, 13, 16, requires_grad=True)]
    runs = []
    for _ in range(2):
        scores = maxsim(*leaves)
        runs.append((scores, *gradients(scores, *leaves)))
    assert all(torch.equal(*both) for both in zip(*runs, strict=True))


def test_the_package_behind_the_function_is_importable() -> None:
    import importlib

    import li_plugins.ops
    import li_plugins.ops.maxsim.problem

    assert callable(li_plugins.ops.maxsim)
    assert li_plugins.ops.maxsim is maxsim
    module = importlib.import_module("li_plugins.ops.maxsim.problem")
    from li_plugins.ops.maxsim.problem import Problem

    assert module.Problem is Problem
