"""MaxSim: the sum over query tokens of the best similarity with a document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from li_plugins.api import Support
from li_plugins.errors import BadInput
from li_plugins.ops import dispatch, recipes
from li_plugins.ops.autograd import wants_gradient
from li_plugins.ops.masks import MaskRule
from li_plugins.ops.maxsim import autograd, contract
from li_plugins.ops.maxsim.problem import Layout, Problem

__all__ = [
    "Layout",
    "Problem",
    "explain_maxsim",
    "explain_maxsim_packed",
    "maxsim",
    "maxsim_packed",
    "supports_maxsim",
    "supports_maxsim_packed",
]


def maxsim(
    queries: Tensor,
    documents: Tensor,
    *,
    query_weights: Tensor | None = None,
    document_mask: Tensor | None = None,
    document_lengths: Tensor | None = None,
    mask_rule: MaskRule = MaskRule.NONE,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Score every query against every document, or against its own candidates.

    Parameters
    ----------
    queries
        ``[A, Lq, d]``, float16, bfloat16, float32 or float64.
    documents
        ``[B, Ld, d]``, or ``[A, K, Ld, d]``: ``K`` candidates for each query. Same dtype and device as ``queries``.
    query_weights
        ``[A, Lq]``, bool or real: a factor of each query token. No gradient flows to it.
    document_mask
        ``[B, Ld]`` or ``[A, K, Ld]``, bool or real; ``mask_rule`` says what it means. No gradient flows to it.
    document_lengths
        ``[B]`` or ``[A, K]``, int64: tokens from there on do not exist.
    mask_rule
        See ``MaskRule``.
    out_dtype
        Dtype of the scores; default: that of the inputs. It is rounded once, from float32 (float64 for float64).

    Returns
    -------
    Tensor
        ``[A, B]`` or ``[A, K]``. Gradients flow to ``queries`` and ``documents``, through the first of the best tokens.

    Raises
    ------
    BadInput
        When the arguments have no meaning together.
    NoKernel
        When no kernel serves the device.
    """
    tensors = queries, documents, query_weights, document_mask, document_lengths
    kind = _kind(tensors, mask_rule, out_dtype)
    if kind is not None and kind.recipe is not None:  # what has a recipe was valid
        return autograd.again(tensors, mask_rule, out_dtype, kind)
    return autograd.scores(contract.dense(*tensors, mask_rule, out_dtype), kind)


def maxsim_packed(
    queries: Tensor,
    documents: Tensor,
    query_offsets: Tensor,
    document_offsets: Tensor,
    *,
    pairs: Sequence[Tensor] | None = None,
    query_weights: Tensor | None = None,
    document_mask: Tensor | None = None,
    floor: Tensor | None = None,
    mask_rule: MaskRule = MaskRule.NONE,
    out_dtype: torch.dtype | None = None,
    max_query_length: int | None = None,
    max_document_length: int | None = None,
) -> Tensor:
    """Score ragged queries against ragged documents without padding: all of them, or a list of pairs.

    Parameters
    ----------
    queries, documents
        ``[Tq, d]`` and ``[Td, d]``: the tokens of all queries and of all documents, one after the other.
    query_offsets, document_offsets
        ``[A + 1]`` and ``[B + 1]``, int64: where each begins, and the end of the last.
    pairs
        ``(pair_queries, pair_documents)``, each ``[P]``, int64: the pairs to score; default: all.
    query_weights, document_mask
        ``[Tq]`` and ``[Td]``, as in ``maxsim``.
    floor
        Bool, ``[B]``, or ``[P]`` with pairs: where true, the best similarity of each query token is at least 0, as if
        a row of zeros followed the document.
    mask_rule, out_dtype
        As in ``maxsim``.
    max_query_length, max_document_length
        The longest lengths, in tokens. Read from the offsets when not given, which waits for the device;
        ``torch.compile(fullgraph=True)`` needs them.

    Returns
    -------
    Tensor
        ``[A, B]``, or ``[P]`` with pairs.

    Raises
    ------
    BadInput
        When the arguments have no meaning together. Offsets and pairs are checked by value on the CPU only.
    NoKernel
        When no kernel serves the device.
    """
    problem = contract.packed(
        queries,
        documents,
        query_offsets,
        document_offsets,
        pairs,
        query_weights,
        document_mask,
        floor,
        mask_rule,
        out_dtype,
        max_query_length,
        max_document_length,
    )
    return autograd.scores(problem)


def supports_maxsim(
    queries: Tensor,
    documents: Tensor,
    *,
    query_weights: Tensor | None = None,
    document_mask: Tensor | None = None,
    document_lengths: Tensor | None = None,
    mask_rule: MaskRule = MaskRule.NONE,
    out_dtype: torch.dtype | None = None,
) -> Support:
    """Say whether ``maxsim`` would serve these arguments and by which kernel, from metadata alone."""
    tensors = queries, documents, query_weights, document_mask, document_lengths
    kind = _kind(tensors, mask_rule, out_dtype)
    if kind is not None and kind.recipe is not None:
        return Support(True, "the kernel that served calls of this kind before")
    try:
        problem = contract.dense(*tensors, mask_rule, out_dtype)
    except BadInput as refusal:
        return Support(False, str(refusal))
    return dispatch.supports("maxsim", problem, _phase(problem))


def supports_maxsim_packed(
    queries: Tensor,
    documents: Tensor,
    query_offsets: Tensor,
    document_offsets: Tensor,
    *,
    pairs: Sequence[Tensor] | None = None,
    query_weights: Tensor | None = None,
    document_mask: Tensor | None = None,
    floor: Tensor | None = None,
    mask_rule: MaskRule = MaskRule.NONE,
    out_dtype: torch.dtype | None = None,
    max_query_length: int | None = None,
    max_document_length: int | None = None,
) -> Support:
    """Say whether ``maxsim_packed`` would serve these arguments and by which kernel, from metadata alone.

    A maximal length that is not given counts as 0 here: reading it would wait for the device.
    """
    try:
        problem = contract.packed(
            queries,
            documents,
            query_offsets,
            document_offsets,
            pairs,
            query_weights,
            document_mask,
            floor,
            mask_rule,
            out_dtype,
            0 if max_query_length is None else max_query_length,
            0 if max_document_length is None else max_document_length,
        )
    except BadInput as refusal:
        return Support(False, str(refusal))
    return dispatch.supports("maxsim", problem, _phase(problem))


def explain_maxsim(
    queries: Tensor,
    documents: Tensor,
    *,
    query_weights: Tensor | None = None,
    document_mask: Tensor | None = None,
    document_lengths: Tensor | None = None,
    mask_rule: MaskRule = MaskRule.NONE,
    out_dtype: torch.dtype | None = None,
) -> dispatch.Plan:
    """Return the plan of ``maxsim`` for these arguments, which prints the kernel and why the others do not run.

    Raises
    ------
    BadInput, NoKernel
        As ``maxsim`` does.
    """
    problem = contract.dense(queries, documents, query_weights, document_mask, document_lengths, mask_rule, out_dtype)
    return dispatch.explain("maxsim", problem, _phase(problem))


def explain_maxsim_packed(
    queries: Tensor,
    documents: Tensor,
    query_offsets: Tensor,
    document_offsets: Tensor,
    *,
    pairs: Sequence[Tensor] | None = None,
    query_weights: Tensor | None = None,
    document_mask: Tensor | None = None,
    floor: Tensor | None = None,
    mask_rule: MaskRule = MaskRule.NONE,
    out_dtype: torch.dtype | None = None,
    max_query_length: int | None = None,
    max_document_length: int | None = None,
) -> dispatch.Plan:
    """Return the plan of ``maxsim_packed`` for these arguments.

    Raises
    ------
    BadInput, NoKernel
        As ``maxsim_packed`` does.
    """
    problem = contract.packed(
        queries,
        documents,
        query_offsets,
        document_offsets,
        pairs,
        query_weights,
        document_mask,
        floor,
        mask_rule,
        out_dtype,
        max_query_length,
        max_document_length,
    )
    return dispatch.explain("maxsim", problem, _phase(problem))


def _kind(tensors: tuple[Any, ...], mask_rule: MaskRule, out_dtype: torch.dtype | None) -> recipes.Kind | None:
    """Return the kind of a dense call, whose recipe is of today's plugins."""
    kind = recipes.kind(tensors, "maxsim as given", mask_rule, out_dtype)
    if kind is not None:
        dispatch.keep_up()
    return kind


def _phase(problem: Problem) -> dispatch.Phase:
    return "winners" if wants_gradient(problem) else "scores"
