"""What PyLate's arguments mean to MaxSim: conversions, dtypes and masks, shared by every replacement."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pylate.utils.tensor import convert_to_tensor
from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import MaskRule, arguments
from li_plugins.ops.arguments import Ragged, Request

BACKEND_VARIABLE = "PYLATE_SCORES_BACKEND"


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
    multiplied = arguments.padded(queries, documents, document_rank=document_rank)
    if isinstance(multiplied, Decline):
        return multiplied
    queries, documents = multiplied

    query_weights = _factors("queries_mask", queries_mask, queries)
    if isinstance(query_weights, Decline):
        return query_weights
    document_factors = _factors("documents_mask", documents_mask, documents)
    if isinstance(document_factors, Decline):
        return document_factors
    out_dtype = arguments.score_dtype(queries, query_weights, document_factors)
    if out_dtype is torch.float64 and queries.dtype is not torch.float64:
        return Decline(f"a float64 mask makes PyLate sum in float64 what {queries.dtype} embeddings gave")

    return {
        "queries": queries,
        "documents": documents,
        "query_weights": query_weights,
        "document_mask": document_factors,
        "mask_rule": MaskRule.NONE if query_weights is None and document_factors is None else MaskRule.ZERO,
        "out_dtype": out_dtype,
    }


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
    multiplied = arguments.as_multiplied(queries.tokens, documents.tokens, query_rank=2, document_rank=2)
    if isinstance(multiplied, Decline):
        return multiplied
    return {
        "queries": multiplied[0],
        "documents": multiplied[1],
        "query_offsets": queries.offsets,
        "document_offsets": documents.offsets,
        "pairs": pairs,
        "floor": floor,
        "out_dtype": arguments.score_dtype(multiplied[0]),
        "max_query_length": queries.longest,
        "max_document_length": documents.longest,
    }


def ragged(side: str, texts: Sequence[Any] | np.ndarray | Tensor) -> Ragged | Decline:
    """Put texts one after the other: a list of ``[length, d]``, or a batch ``[texts, length, d]``; not empty."""
    if isinstance(texts, np.ndarray) and texts.dtype != object:
        texts = torch.from_numpy(ascending(texts))
    if not isinstance(texts, Tensor):
        texts = [convert_to_tensor(text) for text in texts]
        return arguments.unlike(side, texts) or arguments.concatenated(texts)
    if texts.ndim != 3:
        return Decline(f"{side} of rank {texts.ndim}: a batch of texts has rank 3")
    count, length, _ = texts.shape
    return Ragged(texts.flatten(0, 1), torch.arange(count + 1, device=texts.device) * length, length, length)


def ascending(array: Any) -> Any:
    """Return an array that torch takes: PyLate converts parts of it, which descend in no dimension."""
    descends = isinstance(array, np.ndarray) and any(stride < 0 for stride in array.strides)
    return np.ascontiguousarray(array) if descends else array


def unreadable(*arguments: Any) -> Decline | None:
    """Decline what a second reader would find exhausted or in another order: anything but sequences."""
    for argument in arguments:
        if not isinstance(argument, (list, tuple, np.ndarray, Tensor)):
            return Decline(f"{type(argument).__name__}: needs a list, a tuple, an array or a tensor")
        if isinstance(argument, (np.ndarray, Tensor)) and argument.ndim == 0:
            return Decline("a single number: needs a batch")
    return None


def _factors(name: str, mask: Any, embeddings: Tensor) -> Tensor | Decline | None:
    if mask is None:
        return None
    converted = convert_to_tensor(mask)
    if converted is None:
        return Decline(f"{name} of type {type(mask).__name__}: PyLate's own error is the answer")
    return arguments.factors(name, converted, embeddings)
