"""A problem as the arguments of Triton kernels: strides, plain bytes, sizes."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
from torch import Tensor

from li_plugins.ops import _compat
from li_plugins.ops.maxsim.problem import Layout, Problem
from li_plugins.ops.maxsim.triton_forward import maxsim_forward
from li_plugins.ops.maxsim.tuning_sizes import Card, Sizes

INTERPRETED = not isinstance(maxsim_forward, triton.JITFunction)
"""Whether TRITON_INTERPRET=1 was set when triton was imported: kernels run in Python, on tensors of the CPU too."""

HALVED_ROWS = 64
"""Query tokens from which on fp32 is multiplied in halves: with fewer, reading the embeddings is what takes time."""

HALVED_WIDTH = 128
"""Most dimensions of halves that fit a multiprocessor: a tile of queries and three of documents."""

# What the kernels tell apart: whether every query meets all documents, its own, or those of a list
_LAYOUTS = {
    Layout.CROSS: "CROSS",
    Layout.CANDIDATES: "CANDIDATES",
    Layout.PACKED_CROSS: "CROSS",
    Layout.PACKED_PAIRS: "PAIRS",
}


def sizes_of(problem: Problem) -> Sizes:
    """Return what decides about blocks."""
    queries, offsets = problem.queries, problem.query_offsets
    sizes = Sizes(
        _LAYOUTS[problem.layout],
        offsets is not None,
        queries.element_size(),
        queries.shape[-1],
        queries.shape[0] if offsets is None else offsets.shape[0] - 1,
        problem.max_query_length,
        1 if problem.pair_queries is not None else problem.scores_shape[-1],
        problem.max_document_length,
    )
    return sizes._replace(is_halved=True) if _is_halved(sizes, queries.device) else sizes


def _is_halved(sizes: Sizes, device: torch.device) -> bool:
    return (
        sizes.element_size == 4
        and sizes.layout == "CROSS"
        and sizes.width <= HALVED_WIDTH
        and sizes.queries * sizes.query_length >= HALVED_ROWS
        and precision(sizes.element_size) == "bf16x6"
        and device.type == "cuda"
        and card_of(device).capability == 90  # where it was measured what its products are cut by
    )


def card_of(device: torch.device) -> Card:
    """Return what decides about blocks on a device; in the interpreter, a card of the present."""
    return Card(90, 132, 232_448) if INTERPRETED else _card(device)


@lru_cache
def _card(device: torch.device) -> Card:
    properties = torch.cuda.get_device_properties(device)
    # torch names it from 2.6 on; every card that is served has 99 KiB
    shared_memory = getattr(properties, "shared_memory_per_block_optin", 101_376)
    return Card(10 * properties.major + properties.minor, properties.multi_processor_count, shared_memory)


def counts(problem: Problem) -> tuple[int, int]:
    """Return the numbers of queries and of documents, candidates of different queries counted apart."""
    if problem.query_offsets is not None and problem.document_offsets is not None:
        return problem.query_offsets.shape[0] - 1, problem.document_offsets.shape[0] - 1
    *leading, _, _ = problem.documents.shape
    return problem.queries.shape[0], torch.Size(leading).numel()


def rows(embeddings: Tensor) -> Tensor:
    """Return embeddings whose last dimension is dense; all others may have any stride."""
    return embeddings if embeddings.shape[-1] <= 1 or embeddings.stride(-1) == 1 else embeddings.contiguous()


def plain(tensor: Tensor | None) -> Tensor | None:
    """Return a small tensor as the kernels index it: contiguous, and bytes for bool."""
    if tensor is None:
        return None
    tensor = tensor.contiguous()
    return tensor.view(torch.uint8) if tensor.dtype is torch.bool else tensor


def query_strides(queries: Tensor) -> tuple[int, int]:
    """Return the strides of a query and of a token."""
    return (queries.stride(0) if queries.dim() == 3 else 0), queries.stride(-2)


def document_strides(documents: Tensor) -> tuple[int, int, int]:
    """Return the strides of a query's candidates, of a document and of a token."""
    outer = documents.stride(0) if documents.dim() == 4 else 0
    return outer, (documents.stride(-3) if documents.dim() >= 3 else 0), documents.stride(-2)


def stored(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to store: the interpreter truncates to bf16 instead of rounding, so torch rounds for it."""
    return torch.float32 if INTERPRETED and dtype is torch.bfloat16 else dtype


def rounded(memory: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what was stored in the dtype that is wanted."""
    return memory if memory.dtype is dtype else memory.to(dtype)  # the call alone takes a microsecond


def precision(element_size: int) -> str:
    """Return how embeddings are multiplied whose elements have so many bytes: those of 2 as they are.

    Those of 4 in TF32 if the user allowed it. Else as three bf16 numbers each, whose six largest products keep fp32's
    24 bits, on tensor cores (scores of many query tokens on Hopper, smooth ones with their gradients, as
    ``triton_halves``); before triton 3.6, and in its interpreter, in fp32 itself.
    """
    if element_size < 4:
        return "ieee"
    if torch.backends.cuda.matmul.allow_tf32:
        return "tf32"
    return "bf16x6" if not INTERPRETED and _compat.multiplies_fp32_in_bf16_pieces() else "ieee"
