"""One torch op with its gradient for each operation: define, impl, fake, autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from li_plugins.ops import dispatch


def wants_gradient(problem: Any) -> bool:
    """Tell whether a gradient of the scores may be asked for."""
    return torch.is_grad_enabled() and (problem.queries.requires_grad or problem.documents.requires_grad)


def _fresh(result: Tensor) -> Tensor:
    """Return a result of a kernel as a tensor of its own: what autograd takes for a view cannot be written to later."""
    return torch.ops.aten._unsafe_view(result, result.shape) if result._is_view() else result


def register(
    name: str, op: str, arguments: str, problem_of: Callable[..., Any], check: Callable[[Any], None]
) -> tuple[Any, Any]:
    """Register ``name`` and ``name_backward``; both take the problem as plain arguments.

    ``name`` ends with ``want_winners`` and returns the scores and what the backward needs (empty unless wanted).
    ``name_backward`` starts with the gradient and that, and returns two gradients (empty unless needed).

    Parameters
    ----------
    name
        Name of the torch op in the namespace ``li_plugins``.
    op
        Name under which the registry lists its kernels.
    arguments
        The schema of what follows ``Tensor queries, Tensor documents``.
    problem_of
        Makes the problem of the plain arguments: it has ``queries``, ``out_dtype``, ``scores_shape``,
        ``winners_shape``, ``winners_dtype`` and what ``dispatch.Request`` reads.
    check
        Raises ``BadInput`` for values that have no meaning; called before a kernel runs.
    """
    forward_name, backward_name = f"li_plugins::{name}", f"li_plugins::{name}_backward"
    schema = f"Tensor queries, Tensor documents, {arguments}"
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
        check(problem)
        scores, winners = dispatch.run(
            op,
            problem,
            "winners" if want_winners else "scores",
            lambda kernel: kernel.forward(problem, want_winners),
        )
        return _fresh(scores), scores.new_empty(0, dtype=problem.winners_dtype) if winners is None else _fresh(winners)

    def forward_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
        *described, want_winners = arguments
        problem = problem_of(*described)
        scores = problem.queries.new_empty(problem.scores_shape, dtype=problem.out_dtype)
        return scores, scores.new_empty(problem.winners_shape if want_winners else 0, dtype=problem.winners_dtype)

    def backward_impl(grad_scores: Tensor, winners: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        *described, need_queries, need_documents = arguments
        problem = problem_of(*described)
        grad_queries, grad_documents = dispatch.run(
            op,
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
            f"{forward_name} has no second derivative: its gradient was differentiated (create_graph=True); "
            "disable li-plugins around this computation"
        )

    torch.library.impl(forward_name, "default")(forward_impl)
    torch.library.impl(backward_name, "default")(backward_impl)
    torch.library.register_fake(forward_name)(forward_fake)
    torch.library.register_fake(backward_name)(backward_fake)
    torch.library.register_autograd(forward_name, gradient, setup_context=save)
    torch.library.register_autograd(backward_name, second_gradient, setup_context=save_nothing)
    return forward_op, backward_op
