"""One torch op with its gradient for each operation, and the short way to its kernel that eager mode takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from li_plugins.ops import _compat, dispatch, recipes


@dataclass(frozen=True, eq=False)  # without slots: dynamo makes weak references to it
class Operation:
    """One operation as compilers see it, and as it is run."""

    name: str
    kernels: str
    """Name under which the registry lists its kernels."""
    problem_of: Callable[..., Any]
    check: Callable[[Any], None]
    unread: Callable[[tuple[Any, ...]], tuple[int, ...]]
    """Which of the plain arguments no backward reads; they are not kept for it."""
    forward_op: Any
    backward_op: Any

    keeps_winners: Callable[[Any], bool]
    """Whether the winners of a problem are kept for its backward."""
    gradients_again: Callable[[Operation, Any, Tensor, bool, bool], tuple[Tensor | None, Tensor | None]] | None
    """The gradients of a problem whose winners were not kept."""
    gathers: bool
    """Whether the gradient of one side is gathered from the other alone, where winners were kept."""
    tensors: int
    """How many of the plain arguments are tensors, or could be: the first ones."""

    def forward(self, problem: Any, want_winners: bool) -> tuple[Tensor, Tensor | None]:
        """Return the scores, and what the backward needs if it is wanted and kept."""
        self.check(problem)
        return self.run_forward(problem, want_winners and self.keeps_winners(problem))

    def forward_by_recipe(
        self, problem: Any, described: tuple[Any, ...], want_winners: bool, kind: recipes.Kind | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return what ``forward`` does for a valid problem, which may be None, described by the plain arguments."""
        return recipes.run(
            kind,
            described[: self.tensors],
            lambda: self.forward(self.problem_of(*described) if problem is None else problem, want_winners),
        )

    def run_forward(self, problem: Any, want_winners: bool) -> tuple[Tensor, Tensor | None]:
        """Run the kernel that is planned for the problem."""
        phase: dispatch.Phase = "winners" if want_winners else "scores"
        scores, winners = dispatch.run(
            self.kernels, problem, phase, lambda kernel: kernel.forward(problem, want_winners)
        )
        return _fresh(scores), None if winners is None else _fresh(winners)

    def backward(
        self, grad_scores: Tensor, winners: Tensor, described: tuple[Any, ...], need_queries: bool, need_documents: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients that are needed of the problem, described by the plain arguments."""
        problem = self.problem_of(*described)
        if self.gradients_again is not None and not self.keeps_winners(problem):
            return self.gradients_again(self, problem, grad_scores, need_queries, need_documents)
        return self.run_backward(problem, grad_scores, winners, need_queries, need_documents)

    def backward_by_recipe(
        self,
        grad_scores: Tensor,
        winners: Tensor,
        described: tuple[Any, ...],
        need_queries: bool,
        need_documents: bool,
        kind: recipes.Kind | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return what ``backward`` does after a forward of ``kind``."""
        tensors = grad_scores, winners, *described[: self.tensors]
        if kind is not None:  # hooks may have saved tensors of another layout than the forward was given
            kind = recipes.kind(tensors, need_queries, need_documents, kinds=kind.kinds)
        return recipes.run(
            kind, tensors, lambda: self.backward(grad_scores, winners, described, need_queries, need_documents)
        )

    def run_backward(
        self, problem: Any, grad_scores: Tensor, winners: Tensor, need_queries: bool, need_documents: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Run the backward of the kernel that is planned for the problem."""
        grad_queries, grad_documents = dispatch.run(
            self.kernels,
            problem,
            "backward",
            lambda kernel: kernel.backward(problem, grad_scores, winners, need_queries, need_documents),
        )
        return (
            None if grad_queries is None else _fresh(grad_queries),
            None if grad_documents is None else _fresh(grad_documents),
        )


def wants_gradient(problem: Any) -> bool:
    """Tell whether a gradient of the scores may be asked for."""
    return torch.is_grad_enabled() and (problem.queries.requires_grad or problem.documents.requires_grad)


def scores(operation: Operation, problem: Any, described: tuple[Any, ...], kind: recipes.Kind | None = None) -> Tensor:
    """Return the scores of a validated problem, differentiable in its queries and documents.

    A registered op costs as much time on the way to its kernel as a short kernel takes, and as much again with a
    gradient. So only who looks at ops gets one: compilers, tracers, transforms, modes, the profiler.

    Parameters
    ----------
    operation
        What ``register`` returned.
    problem
        The validated problem.
    described
        The problem as the op's plain arguments, without ``want_winners``.
    kind
        The kind of the call, if that is known already.

    Raises
    ------
    NotImplementedError
        In forward-mode AD, where torch takes an op without a forward derivative for a constant: the tangent would be 0.
        And in a transform of torch.func that differentiates, which knows no gradient of a registered op.
    """
    if _compat.forward_mode_is_active():
        raise NotImplementedError(
            f"{operation.forward_op.name()} has no forward derivative, and forward-mode AD (dual numbers, jvp, jacfwd, "
            "hessian) is at work; use backward()"
        )
    wants = wants_gradient(problem)
    if not _compat.nobody_looks_at_ops(problem.queries, problem.documents):
        if not _compat.torch_is_compiling() and _compat.torch_func_differentiates():
            raise NotImplementedError(
                f"{operation.forward_op.name()} has no gradient within torch.func, and grad, vjp or jacrev is at work; "
                "use backward()"
            )
        return operation.forward_op(*described, wants)[0]
    if kind is None:
        dispatch.keep_up()
        tensors, plain = described[: operation.tensors], described[operation.tensors :]
        kind = recipes.kind(tensors, operation.name, *plain)
    return _scores(operation, problem, described, wants, kind)


def again(operation: Operation, described: tuple[Any, ...], kind: recipes.Kind) -> Tensor:
    """Return the scores of a problem for which there is a recipe."""
    queries, documents, *_ = described
    wants = torch.is_grad_enabled() and (queries.requires_grad or documents.requires_grad)
    return _scores(operation, None, described, wants, kind)


def _scores(
    operation: Operation, problem: Any, described: tuple[Any, ...], wants: bool, kind: recipes.Kind | None
) -> Tensor:
    if wants:
        return MaxSim.apply(described[0], described[1], operation, problem, described, kind)
    return operation.forward_by_recipe(problem, described, False, kind)[0]


class MaxSim(torch.autograd.Function):
    """The gradient of an operation in eager mode; its name is what a profile shows."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        documents: Tensor,
        operation: Operation,
        problem: Any,
        described: tuple[Any, ...],
        kind: recipes.Kind | None,
    ) -> Tensor:
        """Return the scores and keep what the backward reads."""
        result, winners = operation.forward_by_recipe(problem, described, True, kind)
        ctx.operation, ctx.kind = operation, kind
        _keep(ctx, operation, queries.new_empty(0) if winners is None else winners, described)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients that are needed."""
        (grad_scores,) = grads
        need_queries, need_documents = ctx.needs_input_grad[:2]
        if grad_scores is None or not (need_queries or need_documents):
            return (None,) * 6
        winners, described = _kept(ctx)
        if torch.is_grad_enabled():  # create_graph=True: the op says what a second derivative is missing
            found = ctx.operation.backward_op(grad_scores, winners, *described, need_queries, need_documents)
            return found[0] if need_queries else None, found[1] if need_documents else None, None, None, None, None
        gradients = ctx.operation.backward_by_recipe(
            grad_scores.contiguous(), winners, described, need_queries, need_documents, ctx.kind
        )
        return *gradients, None, None, None, None


def _keep(ctx: Any, operation: Operation, winners: Tensor, described: tuple[Any, ...]) -> None:
    queries, documents, *others = described
    if winners.numel():
        unread = operation.unread(described)
        others = [None if place in unread else value for place, value in enumerate(others, 2)]
        if operation.gathers:  # the library keeps as little: what only one side needs may change before the backward
            need_queries, need_documents = ctx.needs_input_grad[:2]
            queries = queries if need_documents else _outline(queries)
            documents = documents if need_queries else _outline(documents)
    described = (queries, documents, *others)
    tensors = [value if isinstance(value, Tensor) else None for value in described]
    ctx.save_for_backward(winners, *tensors)
    ctx.plain = [None if isinstance(value, Tensor) else value for value in described]
    ctx.set_materialize_grads(False)


def _outline(embeddings: Tensor) -> Tensor:
    """Return a tensor of the same shape and dtype, of which nobody reads a value."""
    return embeddings.new_empty(()).expand(embeddings.shape)


def _kept(ctx: Any) -> tuple[Tensor, tuple[Any, ...]]:
    winners, *tensors = ctx.saved_tensors
    described = tuple(plain if tensor is None else tensor for tensor, plain in zip(tensors, ctx.plain, strict=True))
    return winners, described


def _fresh(result: Tensor) -> Tensor:
    """Return a result of a kernel as a tensor of its own: what autograd takes for a view cannot be written to later."""
    return torch.ops.aten._unsafe_view(result, result.shape) if result._is_view() else result


def register(
    name: str,
    op: str,
    arguments: str,
    problem_of: Callable[..., Any],
    check: Callable[[Any], None],
    unread: Callable[[tuple[Any, ...]], tuple[int, ...]] = lambda described: (),
    keeps_winners: Callable[[Any], bool] = lambda problem: True,
    gradients_again: Callable[..., tuple[Tensor | None, Tensor | None]] | None = None,
    gathers: bool = True,
) -> Operation:
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
    unread
        Says which of the plain arguments no backward reads.
    keeps_winners
        Says, from metadata, whether winners are kept for the backward.
    gradients_again
        Returns the gradients where they are not.
    gathers
        Whether the gradient of one side reads no embedding of that side, where winners were kept.
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

    operation = Operation(
        name, op, problem_of, check, unread, forward_op, backward_op, keeps_winners, gradients_again, gathers,
        schema.count("Tensor"),
    )  # fmt: skip

    def forward_impl(*arguments: Any) -> tuple[Tensor, Tensor]:
        *described, want_winners = arguments
        problem = problem_of(*described)
        scores, winners = operation.forward(problem, want_winners)
        return scores, scores.new_empty(0, dtype=problem.winners_dtype) if winners is None else winners

    def forward_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
        *described, want_winners = arguments
        problem = problem_of(*described)
        scores = problem.queries.new_empty(problem.scores_shape, dtype=problem.out_dtype)
        kept = problem.winners_shape if want_winners and keeps_winners(problem) else (0,)
        return scores, scores.new_empty(kept, dtype=problem.winners_dtype)

    def backward_impl(grad_scores: Tensor, winners: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        *described, need_queries, need_documents = arguments
        gradients = operation.backward(grad_scores, winners, tuple(described), need_queries, need_documents)
        return gradients[0] if gradients[0] is not None else grad_scores.new_empty(0), (
            gradients[1] if gradients[1] is not None else grad_scores.new_empty(0)
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
        _keep(ctx, operation, output[1], tuple(described))

    def gradient(ctx: Any, grad_scores: Tensor | None, _grad_winners: None) -> tuple[Tensor | None, ...]:
        winners, described = _kept(ctx)
        nothing = (None,) * (len(described) + 1)
        need_queries, need_documents = ctx.needs_input_grad[:2]
        if grad_scores is None or not (need_queries or need_documents):
            return nothing
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
    return operation
