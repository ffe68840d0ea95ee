"""The public functions on a GPU: the Triton kernel serves them, through autograd, torch.compile and CUDA graphs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from li_plugins.ops import cosine_maxsim, dispatch, maxsim, maxsim_packed
from li_plugins.ops.maxsim import autograd
from li_plugins.ops.maxsim.triton_kernel import KERNEL
from li_plugins.testing.maxsim_cases import LAYOUTS, RULES, check_kernel, random_problem
from li_plugins.testing.waiting import waits_for_nothing

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(autouse=True)
def _fresh_plans():
    dispatch.reset()
    yield
    dispatch.reset()


def unit(*shape: int, device: str = "cuda", requires_grad: bool = False) -> torch.Tensor:
    random = torch.Generator(device).manual_seed(sum(shape))
    rows = torch.randn(shape, generator=random, device=device)
    return torch.nn.functional.normalize(rows, dim=-1).bfloat16().requires_grad_(requires_grad)


def step(queries: torch.Tensor, documents: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the scores and the gradients of a cross entropy over them."""
    scores = maxsim(queries, documents, out_dtype=torch.float32)
    target = torch.arange(scores.shape[0], device=scores.device)
    loss = torch.nn.functional.cross_entropy(scores / 0.05, target)
    return scores, *torch.autograd.grad(loss, (queries, documents))


def test_triton_serves_forward_and_backward():
    step(unit(4, 32, 128, requires_grad=True), unit(8, 180, 128, requires_grad=True))
    assert dispatch.counters() == {("maxsim", "triton"): 1, ("maxsim backward", "triton"): 1}


def test_a_gradient_on_one_side_only():
    queries, documents = unit(4, 32, 128, requires_grad=True), unit(8, 180, 128)
    both = step(queries, documents.clone().requires_grad_())
    maxsim(queries, documents, out_dtype=torch.float32).backward(torch.ones(4, 8, device="cuda"))
    assert queries.grad.shape == both[1].shape
    assert documents.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_cosines(dtype):
    random = torch.Generator("cuda").manual_seed(0)
    leaves = [torch.randn(shape, generator=random, device="cuda") for shape in ((6, 32, 128), (9, 180, 128))]
    leaves = [(3 * leaf).to(dtype).requires_grad_() for leaf in leaves]
    exact_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    scores = cosine_maxsim(*leaves, out_dtype=torch.float32)
    exact = maxsim(*(torch.nn.functional.normalize(leaf, dim=-1) for leaf in exact_leaves))
    grad = torch.randn(scores.shape, generator=random, device="cuda")
    pairs = [(scores, exact)]
    found, truth = torch.autograd.grad(scores, leaves, grad), torch.autograd.grad(exact, exact_leaves, grad.double())
    pairs += zip(found, truth, strict=True)
    for ours, right in pairs:
        assert (ours.double() - right).norm() < 2 * torch.finfo(ours.dtype).eps * right.norm()
    assert dispatch.counters()[("maxsim", "triton")] == 1


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_opcheck(layout, rule):
    problem = random_problem(layout, rule, dtype=torch.float16, weights=torch.bool, device="cuda")
    queries, documents = problem.queries.requires_grad_(), problem.documents.requires_grad_()
    operation, arguments = autograd.described(replace(problem, queries=queries, documents=documents))
    torch.library.opcheck(operation.forward_op, (*arguments, True), rtol=0, atol=0)


# of torch's own, on the way to inductor
IN_INDUCTOR = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")


@IN_INDUCTOR
def test_torch_compile_in_one_graph():
    queries, documents = unit(4, 32, 128, requires_grad=True), unit(8, 180, 128, requires_grad=True)
    scores = torch.compile(lambda q, d: maxsim(q, d, out_dtype=torch.float32), fullgraph=True)
    expected = maxsim(queries, documents, out_dtype=torch.float32)
    found = scores(queries, documents)
    assert torch.equal(found, expected)
    grad_scores = torch.cos(expected.detach())
    for ours, theirs in zip(
        torch.autograd.grad(found, (queries, documents), grad_scores),
        torch.autograd.grad(expected, (queries, documents), grad_scores),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


@IN_INDUCTOR
def test_torch_compile_of_a_packed_call():
    queries, documents = unit(64, 128), unit(400, 128)
    query_offsets = torch.tensor([0, 30, 64], device="cuda")
    document_offsets = torch.tensor([0, 180, 181, 400], device="cuda")

    def score(q: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        return maxsim_packed(q, d, query_offsets, document_offsets, max_query_length=34, max_document_length=219)

    assert torch.equal(torch.compile(score, fullgraph=True)(queries, documents), score(queries, documents))


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "pairs"])
def test_cuda_graph(packed):
    problem = random_problem(
        LAYOUTS[3 if packed else 0], RULES[1], queries=8, documents=8, dim=128, dtype=torch.bfloat16, device="cuda"
    )

    def run() -> tuple[torch.Tensor | None, ...]:
        scores, winners = KERNEL.forward(problem, True)
        return scores, *KERNEL.backward(problem, scores, winners, True, True)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    problem.queries.neg_()
    problem.documents.mul_(0.5)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(captured, run(), strict=True))


def test_nothing_waits_for_the_device():
    problem = random_problem(LAYOUTS[3], RULES[2], weights=torch.float32, dim=128, device="cuda")
    with waits_for_nothing():
        scores, winners = KERNEL.forward(problem, True)
        KERNEL.backward(problem, scores, winners, True, True)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_device_that_is_not_the_current_one():
    first = step(unit(4, 32, 128, requires_grad=True), unit(8, 180, 128, requires_grad=True))
    queries, documents = (rows.detach().to("cuda:1").requires_grad_() for rows in (unit(4, 32, 128), unit(8, 180, 128)))
    assert torch.cuda.current_device() == 0
    second = step(queries, documents)
    assert all(one.device.index == 1 for one in second)
    assert all(torch.equal(one, other.to(one.device)) for one, other in zip(second, first, strict=True))


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_without_gradients(guard):
    queries, documents = unit(4, 32, 128, requires_grad=True), unit(8, 180, 128)
    with guard():
        scores = maxsim(queries, documents)
    assert not scores.requires_grad
    assert torch.equal(scores, maxsim(queries, documents).detach())


@settings(max_examples=25)
@given(data=st.data())
def test_random_problems(data):
    layout = data.draw(st.sampled_from(LAYOUTS))
    rule = data.draw(st.sampled_from(RULES))
    problem = random_problem(
        layout,
        rule,
        queries=data.draw(st.integers(0, 9)),
        documents=data.draw(st.integers(1, 9)),
        query_length=data.draw(st.integers(1, 70)),
        document_length=data.draw(st.integers(1, 300)),
        dim=data.draw(st.sampled_from([8, 64, 128, 200])),
        dtype=data.draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32])),
        weights=data.draw(st.sampled_from([None, torch.bool, torch.float32])),
        mask=data.draw(st.sampled_from([torch.bool, torch.float32])),
        lengths=data.draw(st.booleans()),
        floor=data.draw(st.booleans()),
        seed=data.draw(st.integers(0, 99)),
        device="cuda",
    )
    check_kernel(KERNEL, problem)
