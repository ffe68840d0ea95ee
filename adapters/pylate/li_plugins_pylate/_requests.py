"""What PyLate's arguments mean to MaxSim: conversions, dtypes and masks, shared by every replacement."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from pylate.utils.tensor import convert_to_tensor
from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import MaskRule, supports_maxsim, supports_maxsim_packed

Request = dict[str, Any]
"""Keyword arguments of ``maxsim`` or ``maxsim_packed``, which their ``supports_`` and ``explain_`` twins take too."""

BACKEND_VARIABLE = "PYLATE_SCORES_BACKEND"
PLAIN_TENSORS = (Tensor, torch.nn.Parameter)
"""Subclasses may give ``einsum`` a meaning of their own."""


class Ragged(NamedTuple):
    """Token embeddings of several texts, one after the other."""

    tokens: Tensor
    """``[total length, d]``"""
    offsets: Tensor
    """``[texts + 1]``, int64, on the device of the tokens."""
    longest: int
    shortest: int
    """Lengths, in tokens."""


def named_backend(backend: str | None) -> Decline | None:
    """Decline where the user names a backend, by argument or by PyLate's variable; ``auto`` leaves the choice to us.

    An unknown name is declined as well, so that PyLate raises its own error. Releases before 1.5.1 do not read the
    variable; here it means the same for all of them.
    """
    asked = os.environ.get(BACKEND_VARIABLE, "auto") if backend is None else backend
    if isinstance(asked, str) and asked.lower() == "auto":
        return None
    source = BACKEND_VARIABLE if backend is None else "backend"
    return Decline(f"{source}={asked!r} names a backend; only 'auto' leaves the choice to li-plugins")


def dense(
    queries: Any, documents: Any, queries_mask: Any, documents_mask: Any, *, document_rank: int
) -> Request | Decline:
    """Return the ``maxsim`` of padded batches.

    Parameters
    ----------
    queries, documents
        ``[A, Lq, d]`` against ``[B, Ld, d]`` or, at a ``document_rank`` of 4, ``[A, K, Ld, d]``; anything that PyLate's
        ``convert_to_tensor`` takes.
    queries_mask, documents_mask
        Factors of the similarities: the shapes above without ``d``, where a dimension of size 1 stands for all.
    """
    queries, documents = convert_to_tensor(queries), convert_to_tensor(documents)
    multiplied = as_multiplied(queries, documents, query_rank=3, document_rank=document_rank)
    if isinstance(multiplied, Decline):
        return multiplied
    queries, documents = multiplied
    if documents.shape[-2] == 0:
        return Decline("documents without tokens have no best token")
    if document_rank == 4 and queries.shape[0] != documents.shape[0]:
        return Decline(f"{queries.shape[0]} queries, candidates for {documents.shape[0]}")

    query_weights = factors("queries_mask", queries_mask, queries)
    if isinstance(query_weights, Decline):
        return query_weights
    document_factors = factors("documents_mask", documents_mask, documents)
    if isinstance(document_factors, Decline):
        return document_factors
    out_dtype = score_dtype(queries, query_weights, document_factors)
    if out_dtype is torch.float64 and queries.dtype is not torch.float64:
        return Decline(f"a float64 mask makes PyLate sum in float64 what {queries.dtype} embeddings gave")

    request = {
        "queries": queries,
        "documents": documents,
        "query_weights": query_weights,
        "document_mask": document_factors,
        "mask_rule": MaskRule.NONE if query_weights is None and document_factors is None else MaskRule.ZERO,
        "out_dtype": out_dtype,
    }
    support = supports_maxsim(**request)
    return request if support else Decline(support.reason)


def packed(
    queries: Ragged, documents: Ragged, pairs: tuple[Tensor, Tensor], floor: Tensor | None = None
) -> Request | Decline:
    """Return the ``maxsim_packed`` of pairs of texts.

    Parameters
    ----------
    pairs
        Indices of the queries and of the documents, int64, ``[P]`` each.
    floor
        Bool, ``[P]``: where the best similarity of a query token is at least 0.
    """
    multiplied = as_multiplied(queries.tokens, documents.tokens, query_rank=2, document_rank=2)
    if isinstance(multiplied, Decline):
        return multiplied
    request: Request = {
        "queries": multiplied[0],
        "documents": multiplied[1],
        "query_offsets": queries.offsets,
        "document_offsets": documents.offsets,
        "pairs": pairs,
        "floor": floor,
        "out_dtype": score_dtype(multiplied[0]),
        "max_query_length": queries.longest,
        "max_document_length": documents.longest,
    }
    support = supports_maxsim_packed(**request)
    return request if support else Decline(support.reason)


def ragged(side: str, texts: Sequence[Any] | np.ndarray | Tensor) -> Ragged | Decline:
    """Put texts one after the other: a list of ``[length, d]``, or a batch ``[texts, length, d]``; not empty."""
    if isinstance(texts, np.ndarray) and texts.dtype != object:
        texts = torch.from_numpy(texts)
    if not isinstance(texts, Tensor):
        texts = [convert_to_tensor(text) for text in texts]
        return unlike(side, texts) or concatenated(texts)
    if texts.ndim != 3:
        return Decline(f"{side} of rank {texts.ndim}: a batch of texts has rank 3")
    count, length, _ = texts.shape
    return Ragged(texts.flatten(0, 1), torch.arange(count + 1, device=texts.device) * length, length, length)


def concatenated(texts: Sequence[Tensor], device: Any = None) -> Ragged:
    """Copy texts ``[length, d]`` into one block, on ``device`` or where they are; at least one text."""
    lengths = [len(text) for text in texts]
    tokens = torch.cat(list(texts))
    tokens = tokens if device is None else tokens.to(device)
    return Ragged(tokens, torch.tensor([0, *accumulate(lengths)], device=tokens.device), max(lengths), min(lengths))


def unlike(side: str, texts: Sequence[Any]) -> Decline | None:
    """Decline texts that are not all ``[length, d]`` of one ``d``, dtype and device; at least one text."""
    first = texts[0]
    for text in texts:
        if type(text) not in PLAIN_TENSORS or text.ndim != 2:
            return Decline(f"{side}: a text is no plain tensor [length, d]")
        if text.shape[1] != first.shape[1] or text.dtype != first.dtype or text.device != first.device:
            return Decline(f"{side}: the texts differ in dimension, dtype or device")
    return None


def unreadable(*arguments: Any) -> Decline | None:
    """Decline what a second reader would find exhausted or in another order: anything but sequences."""
    for argument in arguments:
        if not isinstance(argument, (list, tuple, np.ndarray, Tensor)):
            return Decline(f"{type(argument).__name__}: needs a list, a tuple, an array or a tensor")
        if isinstance(argument, (np.ndarray, Tensor)) and argument.ndim == 0:
            return Decline("a single number: needs a batch")
    return None


def foreign(function: Any) -> Decline | None:
    """Decline where somebody put a function of their own in the place of PyLate's ``colbert_scores``."""
    # Not __qualname__: inside of an inlined function Dynamo gives the descriptor in place of the name.
    module, name = getattr(function, "__module__", ""), getattr(function, "__name__", "")
    if name == "colbert_scores" and module.startswith("pylate.") and not hasattr(function, "__wrapped__"):
        return None
    return Decline(f"PyLate's colbert_scores was replaced by {module}.{name}")


def as_multiplied(
    queries: Any, documents: Any, *, query_rank: int, document_rank: int
) -> tuple[Tensor, Tensor] | Decline:
    """Return the embeddings as PyLate's ``einsum`` multiplies them: as they are, or lowered by autocast."""
    for side, embeddings, rank in (("queries", queries, query_rank), ("documents", documents, document_rank)):
        if type(embeddings) not in PLAIN_TENSORS:
            return Decline(f"{side} of type {type(embeddings).__name__}: needs a plain tensor")
        if embeddings.ndim != rank:
            return Decline(f"{side} of rank {embeddings.ndim}: needs rank {rank}")
        if embeddings.layout is not torch.strided or embeddings.is_nested:
            return Decline(f"{side} of layout {embeddings.layout}: needs a dense tensor")
    if queries.device != documents.device:
        return Decline(f"queries on {queries.device}, documents on {documents.device}")
    width = queries.shape[-1]
    if documents.shape[-1] != width:
        return Decline(f"queries of dimension {width}, documents of dimension {documents.shape[-1]}")
    if width == 0:
        return Decline("embeddings of dimension 0")
    lowered = autocast_dtype(queries.device)
    if lowered is not None:
        if width == 1:
            return Decline("embeddings of dimension 1: einsum does not lower them under autocast")
        queries, documents = lower(queries, lowered), lower(documents, lowered)
    if queries.dtype != documents.dtype:
        return Decline(f"queries of dtype {queries.dtype}, documents of dtype {documents.dtype}")
    if not queries.is_floating_point():
        return Decline(f"dtype {queries.dtype}: MaxSim needs a floating dtype")
    return queries, documents


def factors(name: str, mask: Any, embeddings: Tensor) -> Tensor | Decline | None:
    """Return a mask with one factor for each token; ``None`` stays ``None``."""
    if mask is None:
        return None
    mask = convert_to_tensor(mask)
    tokens = embeddings.shape[:-1]
    if type(mask) not in PLAIN_TENSORS or mask.layout is not torch.strided:
        return Decline(f"{name} is no plain dense tensor")
    if mask.ndim != len(tokens) or any(given not in (1, size) for given, size in zip(mask.shape, tokens, strict=True)):
        return Decline(f"{name} of shape {tuple(mask.shape)} for tokens of shape {tuple(tokens)}")
    if mask.device != embeddings.device:
        return Decline(f"{name} on {mask.device}, embeddings on {embeddings.device}")
    if mask.dtype.is_complex:
        return Decline(f"{name} of dtype {mask.dtype}: needs real or bool factors")
    if mask.requires_grad:
        return Decline(f"{name} requires a gradient")
    return mask.expand(tokens)


def score_dtype(queries: Tensor, *masks: Tensor | None) -> torch.dtype:
    """Return the dtype of PyLate's scores: torch's promotion of similarities and masks, then what autocast sums in.

    Autocast sums in float32 on CUDA; on the CPU it leaves the sum alone.
    """
    dtype = queries.dtype
    for mask in masks:
        if mask is not None:
            dtype = torch.promote_types(dtype, mask.dtype)
    if queries.device.type == "cuda" and dtype is not torch.float64 and autocast_dtype(queries.device) is not None:
        return torch.float32
    return dtype


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype that autocast multiplies in on a device, ``None`` where it is off."""
    if device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def lower(embeddings: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast what autocast casts: every floating dtype but float64."""
    return embeddings.to(dtype) if embeddings.is_floating_point() and embeddings.dtype != torch.float64 else embeddings
