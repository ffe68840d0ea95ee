"""A library's tensors as the operations take them: lowered as by autocast, put one after the other, or declined."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from li_plugins.api import Decline, Support
from li_plugins.errors import BadInput, NoKernel
from li_plugins.ops import _compat

Answer = TypeVar("Answer")

Request = dict[str, Any]
"""Keyword arguments of an operation, which its ``supports_`` and ``explain_`` twins take too."""

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


def as_multiplied(
    queries: Any, documents: Any, *, query_rank: int, document_rank: int
) -> tuple[Tensor, Tensor] | Decline:
    """Return the embeddings as a library's ``einsum`` multiplies them: as they are, or lowered by autocast."""
    if _compat.a_transform_is_active():
        return Decline("forward-mode AD or a transform of torch.func: the kernels have a reverse-mode gradient alone")
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


def padded(queries: Any, documents: Any, *, document_rank: int) -> tuple[Tensor, Tensor] | Decline:
    """Return padded batches as multiplied: ``[A, Lq, d]``, and ``[B, Ld, d]`` or at rank 4 ``[A, K, Ld, d]``."""
    multiplied = as_multiplied(queries, documents, query_rank=3, document_rank=document_rank)
    if isinstance(multiplied, Decline):
        return multiplied
    queries, documents = multiplied
    if documents.shape[-2] == 0:
        return Decline("documents without tokens have no best token")
    if document_rank == 4 and queries.shape[0] != documents.shape[0]:
        return Decline(f"{queries.shape[0]} queries, candidates for {documents.shape[0]}")
    return multiplied


def factors(name: str, mask: Any, embeddings: Tensor) -> Tensor | Decline | None:
    """Return a mask with one factor for each token, a dimension of size 1 standing for all; ``None`` stays ``None``."""
    if mask is None:
        return None
    tokens = embeddings.shape[:-1]
    if type(mask) not in PLAIN_TENSORS or mask.layout is not torch.strided:
        return Decline(f"{name} is no plain dense tensor")
    fits = mask.shape == tokens
    if not fits and (
        mask.ndim != len(tokens) or any(given not in (1, size) for given, size in zip(mask.shape, tokens, strict=True))
    ):
        return Decline(f"{name} of shape {tuple(mask.shape)} for tokens of shape {tuple(tokens)}")
    if mask.device != embeddings.device:
        return Decline(f"{name} on {mask.device}, embeddings on {embeddings.device}")
    if mask.dtype.is_complex:
        return Decline(f"{name} of dtype {mask.dtype}: needs real or bool factors")
    if mask.requires_grad:
        return Decline(f"{name} requires a gradient")
    return mask if fits else mask.expand(tokens)


def score_dtype(queries: Tensor, *masks: Tensor | None) -> torch.dtype:
    """Return the dtype of a library's scores: torch's promotion of similarities and masks, then what autocast sums in.

    Autocast sums in float32 on CUDA; on the CPU it leaves the sum alone.
    """
    dtype = queries.dtype
    for mask in masks:
        if mask is not None:
            dtype = torch.promote_types(dtype, mask.dtype)
    if queries.device.type == "cuda" and dtype is not torch.float64 and autocast_dtype(queries.device) is not None:
        return torch.float32
    return dtype


def answered(request: Request | Decline, operation: Callable[..., Answer]) -> Answer | Decline:
    """Run an operation, or its ``explain_`` twin; what it refuses, it refuses before any work.

    Instead of ``supported``, where nothing else happens between the request and its answer: validated once.
    """
    if isinstance(request, Decline):
        return request
    try:
        return operation(**request)
    except (BadInput, NoKernel) as refusal:
        return Decline(str(refusal))


def supported(request: Request | Decline, supports: Callable[..., Support]) -> Request | Decline:
    """Return a request that a kernel serves; ``supports`` is the twin of the operation."""
    if isinstance(request, Decline):
        return request
    support = supports(**request)
    return request if support else Decline(support.reason)


def concatenated(texts: Sequence[Tensor], device: Any = None) -> Ragged:
    """Copy texts ``[length, d]`` into one block, on ``device`` or where they are; at least one text."""
    lengths = [text.shape[0] for text in texts]  # len() of a tensor asks for more
    tokens = _moved(list(texts), sum(lengths), device)
    return Ragged(tokens, torch.tensor([0, *accumulate(lengths)], device=tokens.device), max(lengths), min(lengths))


def _moved(texts: list[Tensor], length: int, device: Any) -> Tensor:
    """Return texts one after the other, on ``device`` unless ``None``."""
    first = texts[0]
    is_tracked = _compat.a_transform_is_active() or (
        torch.is_grad_enabled() and any(text.requires_grad for text in texts)
    )
    if device is None or is_tracked or first.device.type != "cpu" or torch.device(device).type != "cuda":
        with _compat.without_autocast(first.device):  # it refuses to join texts of the other 16-bit dtype
            tokens = torch.cat(texts)
        return tokens if device is None else tokens.to(device)
    # Torch keeps pinned memory for the next time: no page is mapped anew, and the GPU fetches it while the next texts
    # are put together.
    staged = torch.empty((length, first.shape[1]), dtype=first.dtype, device="cpu", pin_memory=True)
    return torch.cat(texts, out=staged).to(device, non_blocking=True)


def flat(scores: Tensor) -> Tensor:
    """Return scores ``[n, 1]`` or ``[1, n]`` as ``[n]``, no view: a caller may change what a library's sum returned."""
    return torch.ops.aten._unsafe_view(scores, [scores.numel()])


def unlike_positive(name: str, value: Any) -> Decline | None:
    """Decline what is no positive integer, a compiler's symbol for one included."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)) or value <= 0:
        return Decline(f"{name} is {value!r}: needs a positive int")
    return None


def unlike(side: str, texts: Sequence[Any]) -> Decline | None:
    """Decline texts that are not all ``[length, d]`` of one ``d``, dtype and device; at least one text."""
    width = dtype = device = None
    nothing = torch.Size()
    for text in texts:
        shape = text.shape if type(text) in PLAIN_TENSORS else nothing
        if len(shape) != 2:
            return Decline(f"{side}: a text is no plain tensor [length, d]")
        if width is None:
            width, dtype, device = shape[1], text.dtype, text.device
        elif shape[1] != width or text.dtype is not dtype or text.device != device:
            return Decline(f"{side}: the texts differ in dimension, dtype or device")
    return None


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype that autocast multiplies in on a device, ``None`` where it is off."""
    if device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def lower(embeddings: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast what autocast casts: every floating dtype but float64."""
    return embeddings.to(dtype) if embeddings.is_floating_point() and embeddings.dtype != torch.float64 else embeddings


def runs(sizes: Sequence[int], limit: int) -> Iterator[slice]:
    """Yield runs of items, one after the other, that take at most ``limit`` together, or one that takes more."""
    start = total = 0
    for stop, size in enumerate(sizes):
        total += size
        if total > limit and stop > start:
            yield slice(start, stop)
            start, total = stop, size
    if sizes:
        yield slice(start, len(sizes))


def bytes_of(embeddings: Tensor) -> int:
    """Return the bytes of an embedding."""
    return embeddings.numel() * embeddings.element_size()


def foreign(function: Any, name: str, package: str) -> Decline | None:
    """Decline where somebody put a function of their own in the place of one that a library's function calls."""
    # Not __qualname__: inside of an inlined function Dynamo gives the descriptor in place of the name.
    # A mock's module is None.
    module, found = getattr(function, "__module__", None) or "", getattr(function, "__name__", "")
    if found == name and module.startswith(f"{package}.") and not hasattr(function, "__wrapped__"):
        return None
    return Decline(f"{name} of {package} was replaced by {module}.{found}")
