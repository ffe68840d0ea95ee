"""The torch ops ``li_plugins::maxsim`` and ``li_plugins::maxsim_packed``: define, impl, fake, autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from li_plugins.ops import dispatch
from li_plugins.ops.masks import MaskRule
from li_plugins.ops.maxsim import contract
from li_plugins.ops.maxsim.problem import Layout, Problem

_DENSE = "Tensor? query_weights, Tensor? document_mask, Tensor? document_lengths"
_PACKED = (
    "Tensor query_offsets, Tensor document_offsets, Tensor? pair_queries, Tensor? pair_documents, "
    "Tensor? query_weights, Tensor? document_mask, Tensor? floor, SymInt max_query_length, SymInt max_document_length"
)
_RULE = "str rule, float fill, float empty_score, ScalarType out_dtype"


def _dense_problem(
    queries: Tensor,
    documents: Tensor,
    query_weights: Tensor | None,
    document_mask: Tensor | None,
    document_lengths: Tensor | None,
    rule: str,
    fill: float,
    empty_score: float,
    out_dtype: torch.dtype,
) -> Problem:
    return Problem(
        layout=Layout.CROSS if documents.dim() == 3 else Layout.CANDIDATES,
        queries=queries,
        documents=documents,
        rule=MaskRule(rule, fill, empty_score),
        out_dtype=out_dtype,
        max_query_length=queries.shape[1],
        max_document_length=documents.shape[-2],
        query_weights=query_weights,
        document_mask=document_mask,
        document_lengths=document_lengths,
    )


def _packed_problem(
    queries: Tensor,
    documents: Tensor,
    query_offsets: Tensor,
    document_offsets: Tensor,
    pair_queries: Tensor | None,
    pair_documents: Tensor | None,
    query_weights: Tensor | None,
    document_mask: Tensor | None,
    floor: Tensor | None,
    max_query_length: int,
    max_document_length: int,
    rule: str,
    fill: float,
    empty_score: float,
    out_dtype: torch.dtype,
) -> Problem:
    return Problem(
        layout=Layout.PACKED_CROSS if pair_queries is None else Layout.PACKED_PAIRS,
        queries=queries,
        documents=documents,
        rule=MaskRule(rule, fill, empty_score),
        out_dtype=out_dtype,
        max_query_length=max_query_length,
        max_document_length=max_document_length,
        query_weights=query_weights,
        document_mask=document_mask,
        floor=floor,
        query_offsets=query_offsets,
        document_offsets=document_offsets,
        pair_queries=pair_queries,
        pair_documents=pair_documents,
    )


def _fresh(result: Tensor) -> Tensor:
    """Return a result of a kernel as a tensor of its own: what autograd takes for a view cannot be written to later."""
    return torch.ops.aten._unsafe_view(result, result.shape) if result._is_view() else result


def _register(name: str, arguments: str, problem_of: Any) -> tuple[Any, Any]:
    """Register ``name`` and ``name_backward``; both take the problem as plain arguments.

    ``name`` ends with ``want_winners`` and returns the scores and the winners (empty unless wanted).
    ``name_backward`` starts with the gradient and the winners and returns two gradients (empty unless needed).
    """
    forward_name, backward_name = f"li_plugins::{name}", f"li_plugins::{name}_backward"
    schema = f"Tensor queries, Tensor documents, {arguments}, {_RULE}"
    torch.library.define(
        forward_name, f"({schema}, bool want_winners) -> (Tensor, Tensor)", tags=torch.Tag.pt2_compliant_tag
    )
    torch.library.define(
        backward_name,
        f"(Tensor grad_scores, Tensor winners, {schema}, bool need_queries, bool need_documents) -> (Tensor, Tensor)",
        tags=torch.Tag.pt2_compliant_tag,
    )
    namespace = torch.ops.li_plugins
    forward_op, backward_op = getattr(namespace, name).default, getattr(namespace, f"{name}_backward").default

    def forward_impl(*arguments: Any) -> tuple[Tensor, Tensor]:
        *described, want_winners = arguments
        problem = problem_of(*described)
        contract.check_values(problem)
        scores, winners = dispatch.run(
            "maxsim",
            problem,
            "winners" if want_winners else "scores",
            lambda kernel: kernel.forward(problem, want_winners),
        )
        return _fresh(scores), scores.new_empty(0, dtype=torch.int32) if winners is None else _fresh(winners)

    def forward_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
        *described, want_winners = arguments
        problem = problem_of(*described)
        scores = problem.queries.new_empty(problem.scores_shape, dtype=problem.out_dtype)
        return scores, scores.new_empty(problem.winners_shape if want_winners else 0, dtype=torch.int32)

    def backward_impl(grad_scores: Tensor, winners: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        *described, need_queries, need_documents = arguments
        problem = problem_of(*described)
        grad_queries, grad_documents = dispatch.run(
            "maxsim",
            problem,
            "backward",
            lambda kernel: kernel.backward(problem, grad_scores, winners, need_queries, need_documents),
        )
        return (
            grad_scores.new_empty(0) if grad_queries is None else _fresh(grad_queries),
            grad_scores.new_empty(0) if grad_documents is None else _fresh(grad_documents),
        )

    def backward_fake(grad_scores: Tensor, winners: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        queries, documents, *_, need_queries, need_documents = arguments
        return (
            queries.new_empty(queries.shape) if need_queries else grad_scores.new_empty(0),
            documents.new_empty(documents.shape) if need_documents else grad_scores.new_empty(0),
        )

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *described, want_winners = inputs
        if not want_winners:
            raise RuntimeError(f"{forward_name} was called without want_winners; it has no gradient then")
        tensors = [value if isinstance(value, Tensor) else None for value in described]
        ctx.save_for_backward(output[1], *tensors)
        ctx.plain = [None if isinstance(value, Tensor) else value for value in described]
        ctx.set_materialize_grads(False)

    def gradient(ctx: Any, grad_scores: Tensor | None, _grad_winners: None) -> tuple[Tensor | None, ...]:
        winners, *tensors = ctx.saved_tensors
        nothing = (None,) * (len(tensors) + 1)
        need_queries, need_documents = ctx.needs_input_grad[:2]
        if grad_scores is None or not (need_queries or need_documents):
            return nothing
        described = [plain if tensor is None else tensor for tensor, plain in zip(tensors, ctx.plain, strict=True)]
        grad_queries, grad_documents = backward_op(grad_scores, winners, *described, need_queries, need_documents)
        return (grad_queries if need_queries else None, grad_documents if need_documents else None, *nothing[2:])

    def save_nothing(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.arity = len(inputs)

    def second_gradient(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(
            "MaxSim has no second derivative here: its gradient was differentiated (create_graph=True); "
            "disable li-plugins around this computation"
        )

    torch.library.impl(forward_name, "default")(forward_impl)
    torch.library.impl(backward_name, "default")(backward_impl)
    torch.library.register_fake(forward_name)(forward_fake)
    torch.library.register_fake(backward_name)(backward_fake)
    torch.library.register_autograd(forward_name, gradient, setup_context=save)
    torch.library.register_autograd(backward_name, second_gradient, setup_context=save_nothing)
    return forward_op, backward_op


maxsim_op, maxsim_backward_op = _register("maxsim", _DENSE, _dense_problem)
maxsim_packed_op, maxsim_packed_backward_op = _register("maxsim_packed", _PACKED, _packed_problem)


def wants_winners(problem: Problem) -> bool:
    """Tell whether a gradient of the scores may be asked for."""
    return torch.is_grad_enabled() and (problem.queries.requires_grad or problem.documents.requires_grad)


def op_call(problem: Problem, want_winners: bool) -> tuple[Any, tuple[Any, ...]]:
    """Return the op that serves a validated problem, and the problem as its plain arguments."""
    rule = problem.rule
    meaning = (rule.name, rule.fill, rule.empty_score, problem.out_dtype, want_winners)
    factors = (problem.query_weights, problem.document_mask)
    if problem.query_offsets is None:
        return maxsim_op, (problem.queries, problem.documents, *factors, problem.document_lengths, *meaning)
    offsets = (problem.query_offsets, problem.document_offsets)
    pairs = (problem.pair_queries, problem.pair_documents)
    lengths = (problem.max_query_length, problem.max_document_length)
    return maxsim_packed_op, (
        problem.queries,
        problem.documents,
        *offsets,
        *pairs,
        *factors,
        problem.floor,
        *lengths,
        *meaning,
    )


def scores(problem: Problem) -> Tensor:
    """Return the scores of a validated problem, differentiable in its queries and documents."""
    op, arguments = op_call(problem, wants_winners(problem))
    return op(*arguments)[0]
