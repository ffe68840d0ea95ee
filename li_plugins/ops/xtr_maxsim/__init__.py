"""XTR's MaxSim: the sum over query tokens of the best *retrieved* similarity with a document, as a mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from li_plugins.api import Support
from li_plugins.errors import BadInput
from li_plugins.ops import autograd, dispatch
from li_plugins.ops.masks import MaskRule
from li_plugins.ops.maxsim import contract
from li_plugins.ops.maxsim.problem import Layout
from li_plugins.ops.xtr_maxsim.problem import XtrProblem
from li_plugins.ops.xtr_maxsim.rule import XtrRule

__all__ = ["XtrRule", "explain_xtr_maxsim", "supports_xtr_maxsim", "xtr_maxsim"]


def xtr_maxsim(
    queries: Tensor,
    documents: Tensor,
    *,
    k: int,
    xtr_rule: XtrRule = XtrRule.RETRIEVED,
    query_weights: Tensor | None = None,
    document_mask: Tensor | None = None,
    mask_rule: MaskRule = MaskRule.NONE,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Score every query against every document, or against its own candidates, by what each query token retrieves.

    A query token retrieves the ``k`` most similar of all document tokens, those of the other queries' candidates
    included. Which of several equal similarities it retrieves is not defined where it cannot retrieve all.

    Parameters
    ----------
    queries
        ``[A, Lq, d]``, float16, bfloat16, float32 or float64.
    documents
        ``[B, Ld, d]``, or ``[A, K, Ld, d]``: ``K`` candidates for each query. Same dtype and device as ``queries``.
    k
        How many tokens are retrieved, from 1 to the number of document tokens (masked ones included).
    xtr_rule
        See ``XtrRule``.
    query_weights
        ``[A, Lq]``, bool or real: a factor of each query token. No gradient flows to it.
    document_mask
        ``[B, Ld]`` or ``[A, K, Ld]``, bool or real: nonzero means keep. No gradient flows to it.
    mask_rule
        ``EXCLUDE``: a masked token is retrieved after all others and then counts for nothing. ``FILL(value)``: it is a
        token with that similarity. See ``MaskRule``.
    out_dtype
        Dtype of the scores; default: that of the inputs. It is rounded once, from float32 (float64 for float64).

    Returns
    -------
    Tensor
        ``[A, B]`` or ``[A, K]``. Gradients flow to ``queries`` and ``documents`` through the first of the best tokens
        retrieved; what a sum is divided by is a constant to them.

    Raises
    ------
    BadInput
        When the arguments have no meaning together.
    NoKernel
        When no kernel serves the device.
    """
    problem = _validated(queries, documents, k, xtr_rule, query_weights, document_mask, mask_rule, out_dtype)
    return autograd.scores(_OPERATION, problem, _described(problem))


def supports_xtr_maxsim(
    queries: Tensor,
    documents: Tensor,
    *,
    k: int,
    xtr_rule: XtrRule = XtrRule.RETRIEVED,
    query_weights: Tensor | None = None,
    document_mask: Tensor | None = None,
    mask_rule: MaskRule = MaskRule.NONE,
    out_dtype: torch.dtype | None = None,
) -> Support:
    """Say whether ``xtr_maxsim`` would serve these arguments and by which kernel, from metadata alone."""
    try:
        problem = _validated(queries, documents, k, xtr_rule, query_weights, document_mask, mask_rule, out_dtype)
    except BadInput as refusal:
        return Support(False, str(refusal))
    return dispatch.supports("xtr_maxsim", problem, _phase(problem))


def explain_xtr_maxsim(
    queries: Tensor,
    documents: Tensor,
    *,
    k: int,
    xtr_rule: XtrRule = XtrRule.RETRIEVED,
    query_weights: Tensor | None = None,
    document_mask: Tensor | None = None,
    mask_rule: MaskRule = MaskRule.NONE,
    out_dtype: torch.dtype | None = None,
) -> dispatch.Plan:
    """Return the plan of ``xtr_maxsim`` for these arguments.

    Raises
    ------
    BadInput, NoKernel
        As ``xtr_maxsim`` does.
    """
    problem = _validated(queries, documents, k, xtr_rule, query_weights, document_mask, mask_rule, out_dtype)
    return dispatch.explain("xtr_maxsim", problem, _phase(problem))


def _validated(
    queries: Tensor,
    documents: Tensor,
    k: int,
    xtr_rule: XtrRule,
    query_weights: Tensor | None,
    document_mask: Tensor | None,
    mask_rule: MaskRule,
    out_dtype: torch.dtype | None,
) -> XtrProblem:
    problem = contract.dense(queries, documents, query_weights, document_mask, mask_rule=mask_rule, out_dtype=out_dtype)
    if mask_rule.name == "ZERO":
        raise BadInput("xtr_maxsim takes mask_rule NONE, EXCLUDE or FILL(value)", "ZERO", "pass one of these")
    if not isinstance(xtr_rule, XtrRule) or xtr_rule.name not in ("RETRIEVED", "POSITIVE"):
        raise BadInput("xtr_rule is an XtrRule: RETRIEVED or POSITIVE", repr(xtr_rule), "pass one of these")
    if isinstance(k, bool) or not isinstance(k, (int, torch.SymInt)):
        raise BadInput("k is a number of tokens", repr(k), "pass an int")
    pool = documents.shape[:-1].numel()
    if not 1 <= k <= pool:
        raise BadInput(
            f"k lies between 1 and the number of document tokens, {pool}", str(k), "pass min(k, that number)"
        )
    return _problem(
        queries,
        documents,
        query_weights,
        document_mask,
        k,
        xtr_rule.name,
        xtr_rule.least_count,
        *_meaning(mask_rule),
        problem.out_dtype,
    )


def _meaning(rule: MaskRule) -> tuple[str, float, float]:
    return rule.name, rule.fill, rule.empty_score


def _problem(
    queries: Tensor,
    documents: Tensor,
    query_weights: Tensor | None,
    document_mask: Tensor | None,
    k: int,
    xtr_rule: str,
    least_count: float,
    rule: str,
    fill: float,
    empty_score: float,
    out_dtype: torch.dtype,
) -> XtrProblem:
    return XtrProblem(
        layout=Layout.CROSS if documents.dim() == 3 else Layout.CANDIDATES,
        queries=queries,
        documents=documents,
        rule=MaskRule(rule, fill, empty_score),
        out_dtype=out_dtype,
        max_query_length=queries.shape[1],
        max_document_length=documents.shape[-2],
        query_weights=query_weights,
        document_mask=document_mask,
        k=k,
        xtr_rule=xtr_rule,
        least_count=least_count,
    )


def _described(problem: XtrProblem) -> tuple[Any, ...]:
    """Return a problem as its op's plain arguments."""
    return (
        problem.queries,
        problem.documents,
        problem.query_weights,
        problem.document_mask,
        problem.k,
        problem.xtr_rule,
        problem.least_count,
        *_meaning(problem.rule),
        problem.out_dtype,
    )


def _phase(problem: XtrProblem) -> dispatch.Phase:
    return "winners" if autograd.wants_gradient(problem) else "scores"


def _check(problem: Any) -> None:
    """Accept every value: metadata says all."""


def _unread(described: tuple[Any, ...]) -> tuple[int, ...]:
    """Return the place of the document mask, which winners have settled."""
    return (3,)


_OPERATION = autograd.register(
    "xtr_maxsim",
    "xtr_maxsim",
    "Tensor? query_weights, Tensor? document_mask, SymInt k, str xtr_rule, float least_count, "
    "str rule, float fill, float empty_score, ScalarType out_dtype",
    _problem,
    _check,
    _unread,
)
