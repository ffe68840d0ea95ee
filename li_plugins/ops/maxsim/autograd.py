"""The torch ops ``li_plugins::maxsim`` and ``li_plugins::maxsim_packed``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from li_plugins.ops import autograd, recipes
from li_plugins.ops.masks import MaskRule
from li_plugins.ops.maxsim import contract, recompute
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


def _unread_dense(described: tuple[Any, ...]) -> tuple[int, ...]:
    """Return the place of the document mask, which winners have settled under every rule but ZERO."""
    return () if described[5] == "ZERO" else (3,)


def _unread_packed(described: tuple[Any, ...]) -> tuple[int, ...]:
    """Return the places of the floor and, as above, of the document mask."""
    return (8,) if described[11] == "ZERO" else (7, 8)


DENSE = autograd.register(
    "maxsim",
    "maxsim",
    f"{_DENSE}, {_RULE}",
    _dense_problem,
    contract.check_values,
    _unread_dense,
    recompute.keeps_winners,
    recompute.gradients,
)
PACKED = autograd.register(
    "maxsim_packed", "maxsim", f"{_PACKED}, {_RULE}", _packed_problem, contract.check_values, _unread_packed
)


def described(problem: Problem) -> tuple[autograd.Operation, tuple[Any, ...]]:
    """Return the operation that serves a validated problem, and the problem as its op's plain arguments."""
    rule = problem.rule
    meaning = (rule.name, rule.fill, rule.empty_score, problem.out_dtype)
    factors = (problem.query_weights, problem.document_mask)
    if problem.query_offsets is None:
        return DENSE, (problem.queries, problem.documents, *factors, problem.document_lengths, *meaning)
    offsets = (problem.query_offsets, problem.document_offsets)
    pairs = (problem.pair_queries, problem.pair_documents)
    lengths = (problem.max_query_length, problem.max_document_length)
    return PACKED, (
        problem.queries,
        problem.documents,
        *offsets,
        *pairs,
        *factors,
        problem.floor,
        *lengths,
        *meaning,
    )


def scores(problem: Problem, kind: recipes.Kind | None = None) -> Tensor:
    """Return the scores of a validated problem, differentiable in its queries and documents."""
    operation, arguments = described(problem)
    return autograd.scores(operation, problem, arguments, kind)


def again(tensors: tuple[Any, ...], rule: MaskRule, out_dtype: torch.dtype | None, kind: recipes.Kind) -> Tensor:
    """Return the scores of a dense problem for which there is a recipe: the tensors of the op, in its order."""
    meaning = (rule.name, rule.fill, rule.empty_score, out_dtype or tensors[0].dtype)
    return autograd.again(DENSE, (*tensors, *meaning), kind)
