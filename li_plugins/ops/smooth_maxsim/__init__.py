"""Smooth MaxSim: the sum over query tokens of ``tau * logsumexp(similarities / tau)`` with a document's tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from li_plugins.api import Support
from li_plugins.errors import BadInput
from li_plugins.ops import autograd, dispatch
from li_plugins.ops.masks import MaskRule
from li_plugins.ops.maxsim import contract
from li_plugins.ops.maxsim.problem import Layout
from li_plugins.ops.smooth_maxsim.problem import SmoothProblem

__all__ = ["explain_smooth_maxsim", "smooth_maxsim", "supports_smooth_maxsim"]


def smooth_maxsim(queries: Tensor, documents: Tensor, *, tau: float, out_dtype: torch.dtype | None = None) -> Tensor:
    """Score every query against every document, or against its own candidates, by a smooth maximum.

    Every document token counts, those of padding too: a zero row adds ``exp(0)`` to the sum.

    Parameters
    ----------
    queries
        ``[A, Lq, d]``, float16, bfloat16, float32 or float64.
    documents
        ``[B, Ld, d]``, or ``[A, K, Ld, d]``: ``K`` candidates for each query. At least one token each.
    tau
        Temperature of the maximum, a positive number; the smaller, the harder.
    out_dtype
        Dtype of the scores; default: that of the inputs. It is rounded once, from float32 (float64 for float64).

    Returns
    -------
    Tensor
        ``[A, B]`` or ``[A, K]``; differentiable in ``queries`` and ``documents``.

    Raises
    ------
    BadInput
        When the arguments have no meaning together.
    NoKernel
        When no kernel serves the device.
    """
    problem = _validated(queries, documents, tau, out_dtype)
    return autograd.scores(_OPERATION, problem, (problem.queries, problem.documents, problem.tau, problem.out_dtype))


def supports_smooth_maxsim(
    queries: Tensor, documents: Tensor, *, tau: float, out_dtype: torch.dtype | None = None
) -> Support:
    """Say whether ``smooth_maxsim`` would serve these arguments and by which kernel, from metadata alone."""
    try:
        problem = _validated(queries, documents, tau, out_dtype)
    except BadInput as refusal:
        return Support(False, str(refusal))
    return dispatch.supports("smooth_maxsim", problem, _phase(problem))


def explain_smooth_maxsim(
    queries: Tensor, documents: Tensor, *, tau: float, out_dtype: torch.dtype | None = None
) -> dispatch.Plan:
    """Return the plan of ``smooth_maxsim`` for these arguments.

    Raises
    ------
    BadInput, NoKernel
        As ``smooth_maxsim`` does.
    """
    problem = _validated(queries, documents, tau, out_dtype)
    return dispatch.explain("smooth_maxsim", problem, _phase(problem))


def _validated(queries: Tensor, documents: Tensor, tau: float, out_dtype: torch.dtype | None) -> SmoothProblem:
    problem = contract.dense(queries, documents, out_dtype=out_dtype)
    if not isinstance(tau, (int, float)) or not 0 < tau < math.inf:
        raise BadInput("tau is a positive number", repr(tau), "pass the temperature of the smooth maximum")
    if problem.max_document_length == 0:
        raise BadInput("smooth_maxsim takes documents of at least one token", "no token", "leave them out")
    return _problem(queries, documents, float(tau), problem.out_dtype)


def _problem(queries: Tensor, documents: Tensor, tau: float, out_dtype: torch.dtype) -> SmoothProblem:
    return SmoothProblem(
        layout=Layout.CROSS if documents.dim() == 3 else Layout.CANDIDATES,
        queries=queries,
        documents=documents,
        rule=MaskRule.NONE,
        out_dtype=out_dtype,
        max_query_length=queries.shape[1],
        max_document_length=documents.shape[-2],
        tau=tau,
    )


def _phase(problem: SmoothProblem) -> dispatch.Phase:
    return "winners" if autograd.wants_gradient(problem) else "scores"


def _check(problem: Any) -> None:
    """Accept every value: metadata says all."""


_OPERATION = autograd.register(
    "smooth_maxsim", "smooth_maxsim", "float tau, ScalarType out_dtype", _problem, _check, gathers=False
)
