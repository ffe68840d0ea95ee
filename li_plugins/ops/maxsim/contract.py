"""What MaxSim accepts: the public arguments, validated, become a Problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from li_plugins.errors import BadInput
from li_plugins.ops.masks import MaskRule
from li_plugins.ops.maxsim.problem import Layout, Problem

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
RULES = ("NONE", "ZERO", "EXCLUDE", "FILL")


def dense(
    queries: Tensor,
    documents: Tensor,
    query_weights: Tensor | None = None,
    document_mask: Tensor | None = None,
    document_lengths: Tensor | None = None,
    mask_rule: MaskRule = MaskRule.NONE,
    out_dtype: torch.dtype | None = None,
) -> Problem:
    """Validate the arguments of ``maxsim`` by their metadata.

    Raises
    ------
    BadInput
        With what was asked, what was found and what to do.
    """
    _check_embeddings(queries, documents, "maxsim")
    if queries.dim() != 3 or documents.dim() not in (3, 4):
        raise BadInput(
            "maxsim takes queries [A, Lq, d] and documents [B, Ld, d] or [A, K, Ld, d]",
            f"{_shape(queries)} and {_shape(documents)}",
            "add or merge the leading dimensions",
        )
    if documents.dim() == 4 and documents.shape[0] != queries.shape[0]:
        raise BadInput(
            "maxsim takes one row of candidate documents [A, K, Ld, d] for each of the A queries",
            f"{documents.shape[0]} rows of documents for {queries.shape[0]} queries",
            "repeat the queries or select the documents",
        )
    _check_width(queries, documents)
    _check_rule(mask_rule, document_mask)
    if query_weights is not None:
        _check_factor("query_weights", query_weights, queries, queries.shape[:-1])
    if document_mask is not None:
        _check_factor("document_mask", document_mask, queries, documents.shape[:-1])
    if document_lengths is not None:
        _check_integers("document_lengths", document_lengths, queries, documents.shape[:-2])
    return Problem(
        layout=Layout.CROSS if documents.dim() == 3 else Layout.CANDIDATES,
        queries=queries,
        documents=documents,
        rule=mask_rule,
        out_dtype=_out_dtype(out_dtype, queries),
        max_query_length=queries.shape[1],
        max_document_length=documents.shape[-2],
        query_weights=query_weights,
        document_mask=document_mask,
        document_lengths=document_lengths,
    )


def packed(
    queries: Tensor,
    documents: Tensor,
    query_offsets: Tensor,
    document_offsets: Tensor,
    pairs: Sequence[Tensor] | None = None,
    query_weights: Tensor | None = None,
    document_mask: Tensor | None = None,
    floor: Tensor | None = None,
    mask_rule: MaskRule = MaskRule.NONE,
    out_dtype: torch.dtype | None = None,
    max_query_length: int | None = None,
    max_document_length: int | None = None,
) -> Problem:
    """Validate the arguments of ``maxsim_packed`` by their metadata.

    A maximal length that is not given is read from the offsets, which waits for the device.

    Raises
    ------
    BadInput
        With what was asked, what was found and what to do.
    """
    _check_embeddings(queries, documents, "maxsim_packed")
    if queries.dim() != 2 or documents.dim() != 2:
        raise BadInput(
            "maxsim_packed takes all tokens of all queries [Tq, d] and of all documents [Td, d]",
            f"{_shape(queries)} and {_shape(documents)}",
            "concatenate the token matrices along their first dimension",
        )
    _check_width(queries, documents)
    _check_rule(mask_rule, document_mask)
    for name, offsets in (("query_offsets", query_offsets), ("document_offsets", document_offsets)):
        _check_integers(name, offsets, queries, None)
        if offsets.shape[0] == 0:
            raise BadInput(f"{name} holds the start of each item and the end of the last", "no entry", "pass [0]")
    pair_queries, pair_documents = _check_pairs(pairs, queries)
    if query_weights is not None:
        _check_factor("query_weights", query_weights, queries, queries.shape[:-1])
    if document_mask is not None:
        _check_factor("document_mask", document_mask, queries, documents.shape[:-1])
    if floor is not None:
        shape = document_offsets.shape[0] - 1 if pair_queries is None else pair_queries.shape[0]
        _check_tensor("floor", floor, queries)
        if floor.dtype is not torch.bool or tuple(floor.shape) != (shape,):
            raise BadInput(
                f"floor is a bool tensor [{shape}], one per {'document' if pair_queries is None else 'pair'}",
                f"{floor.dtype} {_shape(floor)}",
                "correct its dtype and shape",
            )
    return Problem(
        layout=Layout.PACKED_CROSS if pair_queries is None else Layout.PACKED_PAIRS,
        queries=queries,
        documents=documents,
        rule=mask_rule,
        out_dtype=_out_dtype(out_dtype, queries),
        max_query_length=_max_length("max_query_length", max_query_length, query_offsets),
        max_document_length=_max_length("max_document_length", max_document_length, document_offsets),
        query_weights=query_weights,
        document_mask=document_mask,
        floor=floor,
        query_offsets=query_offsets,
        document_offsets=document_offsets,
        pair_queries=pair_queries,
        pair_documents=pair_documents,
    )


def check_values(problem: Problem) -> None:
    """Validate offsets, lengths and pairs by value when they lie on the CPU, where reading them costs no wait.

    Raises
    ------
    BadInput
        When an offset, a length or a pair points outside of its tensor.
    """
    if problem.queries.device.type != "cpu":
        return
    if problem.document_lengths is not None:
        _check_range("document_lengths", problem.document_lengths, problem.max_document_length + 1)
    if problem.query_offsets is None or problem.document_offsets is None:
        return
    _check_offsets("query", problem.query_offsets, problem.queries.shape[0], problem.max_query_length)
    _check_offsets("document", problem.document_offsets, problem.documents.shape[0], problem.max_document_length)
    if problem.pair_queries is not None and problem.pair_documents is not None:
        _check_range("pairs[0]", problem.pair_queries, problem.query_offsets.shape[0] - 1)
        _check_range("pairs[1]", problem.pair_documents, problem.document_offsets.shape[0] - 1)


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _check_embeddings(queries: Any, documents: Any, op: str) -> None:
    for name, tensor in (("queries", queries), ("documents", documents)):
        if not isinstance(tensor, Tensor):
            raise BadInput(f"{op} takes tensors", f"{type(tensor).__name__} for {name}", "convert it to a tensor")
        if tensor.layout is not torch.strided:
            raise BadInput(f"{op} takes strided tensors", f"{tensor.layout} for {name}", "call .to_dense()")
        if tensor.dtype not in FLOATS:
            raise BadInput(
                f"{op} takes float16, bfloat16, float32 or float64 embeddings",
                f"{tensor.dtype} for {name}",
                "cast it to one of these",
            )
    if queries.dtype is not documents.dtype:
        raise BadInput(
            f"{op} takes queries and documents of one dtype",
            f"{queries.dtype} and {documents.dtype}",
            "cast one to the other's",
        )
    if queries.device != documents.device:
        raise BadInput(
            f"{op} takes tensors on one device",
            f"queries on {queries.device}, documents on {documents.device}",
            "move one to the other's",
        )


def _check_width(queries: Tensor, documents: Tensor) -> None:
    if queries.shape[-1] != documents.shape[-1]:
        raise BadInput(
            "queries and documents have embeddings of one width",
            f"{queries.shape[-1]} and {documents.shape[-1]}",
            "encode both with one model",
        )


def _check_rule(rule: Any, document_mask: Tensor | None) -> None:
    if not isinstance(rule, MaskRule) or rule.name not in RULES:
        raise BadInput("mask_rule is a MaskRule: NONE, ZERO, EXCLUDE or FILL(value)", repr(rule), "pass one of these")
    if document_mask is not None and rule.name == "NONE":
        raise BadInput(
            "a document_mask needs a mask_rule that says what a masked token means",
            "MaskRule.NONE",
            "pass MaskRule.ZERO, EXCLUDE or FILL(value)",
        )


def _check_tensor(name: str, tensor: Any, queries: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise BadInput(f"{name} is a tensor", type(tensor).__name__, "convert it to a tensor")
    if tensor.device != queries.device:
        raise BadInput(f"{name} lies on the queries' device, {queries.device}", str(tensor.device), "move it there")


def _check_factor(name: str, factor: Tensor, queries: Tensor, shape: Sequence[int]) -> None:
    _check_tensor(name, factor, queries)
    if tuple(factor.shape) != tuple(shape):
        raise BadInput(f"{name} has one entry per token, {list(shape)}", _shape(factor), "correct its shape")
    if factor.dtype.is_complex:
        raise BadInput(f"{name} is real or bool", str(factor.dtype), "cast it")
    if factor.requires_grad:
        raise BadInput(f"{name} gets no gradient", "requires_grad=True", f"pass {name}.detach()")


def _check_integers(name: str, tensor: Tensor, queries: Tensor, shape: Sequence[int] | None) -> None:
    _check_tensor(name, tensor, queries)
    if tensor.dtype is not torch.int64:
        raise BadInput(f"{name} is an int64 tensor", str(tensor.dtype), f"pass {name}.long()")
    if (tensor.dim() != 1) if shape is None else (tuple(tensor.shape) != tuple(shape)):
        expected = "one-dimensional" if shape is None else f"of shape {list(shape)}"
        raise BadInput(f"{name} is {expected}", _shape(tensor), "correct its shape")


def _check_pairs(pairs: Sequence[Tensor] | None, queries: Tensor) -> tuple[Tensor | None, Tensor | None]:
    if pairs is None:
        return None, None
    if not isinstance(pairs, (tuple, list)) or len(pairs) != 2:
        raise BadInput("pairs is (pair_queries, pair_documents)", type(pairs).__name__, "pass two int64 tensors [P]")
    pair_queries, pair_documents = pairs
    _check_integers("pairs[0]", pair_queries, queries, None)
    _check_integers("pairs[1]", pair_documents, queries, pair_queries.shape)
    return pair_queries, pair_documents


def _out_dtype(out_dtype: torch.dtype | None, queries: Tensor) -> torch.dtype:
    if out_dtype is None:
        return queries.dtype
    if out_dtype not in FLOATS:
        raise BadInput("out_dtype is float16, bfloat16, float32 or float64", str(out_dtype), "pass one of these")
    return out_dtype


def _max_length(name: str, given: int | None, offsets: Tensor) -> int:
    if given is not None:
        if given < 0:
            raise BadInput(f"{name} is a number of tokens", str(given), "pass the longest length, or None")
        return given
    return int(offsets.diff().amax()) if offsets.shape[0] > 1 else 0


def _check_offsets(side: str, offsets: Tensor, tokens: int, max_length: int) -> None:
    lengths = offsets.diff()
    first, last = int(offsets[0]), int(offsets[-1])
    if first != 0 or last != tokens or (lengths.numel() and int(lengths.amin()) < 0):
        raise BadInput(
            f"{side}_offsets rise from 0 to the number of {side} tokens, {tokens}",
            f"{first} to {last}" if first or last != tokens else "a descent",
            "pass the cumulative lengths, starting with 0",
        )
    if lengths.numel() and int(lengths.amax()) > max_length:
        raise BadInput(
            f"max_{side}_length bounds the length of every {side}",
            f"{max_length}, and a {side} of {int(lengths.amax())} tokens",
            "pass the longest length, or None",
        )


def _check_range(name: str, values: Tensor, end: int) -> None:
    if values.numel() == 0:
        return
    low, high = (int(bound) for bound in values.aminmax())
    if low < 0 or high >= end:
        raise BadInput(f"{name} lie in [0, {end})", f"{low} to {high}", "correct the values")
