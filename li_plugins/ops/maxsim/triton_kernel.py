"""MaxSim on CUDA through Triton: which problems it serves, in which blocks, and the launches."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from li_plugins.api import Support
from li_plugins.ops.maxsim.problem import Layout, Problem
from li_plugins.ops.maxsim.triton_backward import maxsim_document_gradient, maxsim_query_gradient
from li_plugins.ops.maxsim.triton_forward import maxsim_forward

INTERPRETED = not isinstance(maxsim_forward, triton.JITFunction)
"""Whether TRITON_INTERPRET=1 was set when triton was imported: kernels run in Python, on tensors of the CPU too."""

MAX_PROGRAMS = 2**31 - 1
"""Programs of one launch: CUDA's limit for the first dimension of a grid."""

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_EXACT_IN_16_BITS = (torch.bool, torch.uint8, torch.int8)


class ForwardBlocks(NamedTuple):
    """How the forward is cut into programs; each program's tile is ``QUERIES * TOKENS`` rows by ``BLOCK_N`` columns."""

    QUERIES: int
    TOKENS: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int


class QueryGradientBlocks(NamedTuple):
    """How the gradient of the queries is cut into programs of ``ROWS`` tokens by ``BLOCK_D`` dimensions."""

    ROWS: int
    BLOCK_D: int
    num_warps: int
    num_stages: int


class DocumentGradientBlocks(NamedTuple):
    """How the gradient of the documents is cut into programs of ``BLOCK_N`` tokens by ``BLOCK_D`` dimensions."""

    QUERY_TOKENS: int
    BLOCK_N: int
    BLOCK_D: int
    num_warps: int
    num_stages: int


class TritonMaxSim:
    """The kernel object that the registry loads."""

    def supports(self, problem: Problem) -> Support:
        """Serve fp16, bf16 and fp32 on CUDA devices of compute capability 8.0 and later, NVIDIA's only."""
        dtype, device = problem.queries.dtype, problem.queries.device
        if dtype not in _DTYPES:
            return Support(False, f"dtype {dtype}: it computes in fp32, which serves float16, bfloat16 and float32")
        if INTERPRETED:
            return Support(True)
        if device.type != "cuda":
            return Support(False, f"device {device}: it needs CUDA")
        if torch.version.hip is not None:
            return Support(False, "ROCm: it was never tried there")
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            return Support(False, f"compute capability {major}.{minor}: it needs 8.0")
        return Support(True)

    def forward(self, problem: Problem, want_winners: bool) -> tuple[Tensor, Tensor | None]:
        """Return the scores and, if wanted, the winning document token of every query token."""
        queries, documents = _rows(problem.queries), _rows(problem.documents)
        scores = queries.new_empty(problem.scores_shape, dtype=_stored(problem.out_dtype))
        winners = _winners_of(problem) if want_winners else None
        crossed = problem.layout in (Layout.CROSS, Layout.PACKED_CROSS)
        query_count, document_count = _counts(problem)
        blocks = forward_blocks(problem, want_winners)
        programs = -(-query_count // blocks.QUERIES) * document_count if crossed else scores.numel()
        with _on(queries.device):
            for first_program in range(0, programs, MAX_PROGRAMS):
                maxsim_forward[(min(programs - first_program, MAX_PROGRAMS),)](
                    queries,
                    documents,
                    _plain(problem.query_weights),
                    _plain(problem.document_mask),
                    _plain(problem.document_lengths),
                    _plain(problem.query_offsets),
                    _plain(problem.document_offsets),
                    _plain(problem.pair_queries),
                    _plain(problem.pair_documents),
                    _plain(problem.floor),
                    scores,
                    winners,
                    *_query_strides(queries),
                    *_document_strides(documents),
                    query_count,
                    scores.shape[-1],
                    problem.max_query_length,
                    problem.max_document_length,
                    first_program,
                    problem.rule.fill,
                    problem.rule.empty_score,
                    RULE=problem.rule.name,
                    CANDIDATES=problem.layout is Layout.CANDIDATES,
                    DIM=queries.shape[-1],
                    PRECISION=_precision(problem),
                    INTERPRET=INTERPRETED,
                    **blocks._asdict(),
                )
        return scores.to(problem.out_dtype), winners

    def backward(
        self, problem: Problem, grad_scores: Tensor, winners: Tensor, need_queries: bool, need_documents: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients that are needed, each computed for itself."""
        grad_scores, winners = grad_scores.contiguous(), winners.contiguous()
        with _on(grad_scores.device):
            return (
                _query_gradient(problem, grad_scores, winners) if need_queries else None,
                _document_gradient(problem, grad_scores, winners) if need_documents else None,
            )


KERNEL = TritonMaxSim()


def _query_gradient(problem: Problem, grad_scores: Tensor, winners: Tensor) -> Tensor:
    documents, dim = _rows(problem.documents), problem.queries.shape[-1]
    gradient = _gradient_of(problem.queries, packed=problem.query_offsets is not None)
    query_count, _ = _counts(problem)
    blocks = query_gradient_blocks(problem)
    programs = query_count * -(-problem.max_query_length // blocks.ROWS) * -(-dim // blocks.BLOCK_D)
    order, segments = _visiting_order(problem.pair_queries, query_count)
    if programs and gradient.numel():
        maxsim_query_gradient[(programs,)](
            documents,
            _plain(problem.query_weights),
            _plain(problem.document_mask) if problem.rule.name == "ZERO" else None,
            _plain(problem.query_offsets),
            _plain(problem.document_offsets),
            order,
            segments,
            _plain(problem.pair_documents),
            grad_scores,
            winners,
            gradient,
            *_document_strides(documents),
            grad_scores.shape[-1],
            problem.max_query_length,
            problem.max_document_length,
            CANDIDATES=problem.layout is Layout.CANDIDATES,
            DIM=dim,
            INTERPRET=INTERPRETED,
            **blocks._asdict(),
        )
    return gradient.to(problem.queries.dtype)


def _document_gradient(problem: Problem, grad_scores: Tensor, winners: Tensor) -> Tensor:
    queries, dim = _rows(problem.queries), problem.queries.shape[-1]
    gradient = _gradient_of(problem.documents, packed=problem.document_offsets is not None)
    query_count, document_count = _counts(problem)
    blocks = document_gradient_blocks(problem)
    programs = document_count * -(-problem.max_document_length // blocks.BLOCK_N) * -(-dim // blocks.BLOCK_D)
    order, segments = _visiting_order(problem.pair_documents, document_count)
    weights = problem.query_weights
    exact_weights = weights is None or weights.dtype in _EXACT_IN_16_BITS
    precision = _precision(problem)
    if not exact_weights and problem.queries.dtype is not torch.float32:
        precision = "ieee"  # 16-bit rows are exact in TF32; the two halves of a weight keep 22 bits of it
    if programs and gradient.numel():
        maxsim_document_gradient[(programs,)](
            queries,
            _plain(weights),
            _plain(problem.document_mask) if problem.rule.name == "ZERO" else None,
            _plain(problem.document_lengths),
            _plain(problem.query_offsets),
            _plain(problem.document_offsets),
            order,
            segments,
            _plain(problem.pair_queries),
            grad_scores,
            winners,
            gradient,
            *_query_strides(queries),
            query_count,
            grad_scores.shape[-1],
            problem.max_query_length,
            problem.max_document_length,
            CANDIDATES=problem.layout is Layout.CANDIDATES,
            DIM=dim,
            EXACT_WEIGHTS=exact_weights,
            PRECISION=precision,
            INTERPRET=INTERPRETED,
            **blocks._asdict(),
        )
    return gradient.to(problem.documents.dtype)


def forward_blocks(problem: Problem, want_winners: bool) -> ForwardBlocks:
    """Choose the forward's blocks: up to 128 rows of 16-bit embeddings or 64 of fp32, from one or several queries."""
    wide, dim = problem.queries.dtype is torch.float32, problem.queries.shape[-1]
    most_rows = 64 if wide else 128
    tokens = min(max(triton.next_power_of_2(problem.max_query_length), 16), most_rows)
    queries = 1
    if problem.layout in (Layout.CROSS, Layout.PACKED_CROSS) and problem.max_query_length <= tokens:
        queries = min(most_rows // tokens, triton.next_power_of_2(max(_counts(problem)[0], 1)))
    one_chunk = dim <= 128 and not wide  # then a query's tile is loaded once, else again for each document tile
    block_k = min(max(triton.next_power_of_2(dim), 16), 128 if one_chunk else 32 if wide else 64)
    many_registers = wide or (queries * tokens == 128 and (want_winners or not one_chunk))
    return ForwardBlocks(queries, tokens, 64, block_k, num_warps=8 if many_registers else 4, num_stages=2)


def query_gradient_blocks(problem: Problem) -> QueryGradientBlocks:
    """Choose the blocks of the queries' gradient: few rows, so that many programs gather at once."""
    rows = min(triton.next_power_of_2(max(problem.max_query_length, 1)), 16)
    return QueryGradientBlocks(rows, _block_d(problem, 256), num_warps=4, num_stages=3)


def document_gradient_blocks(problem: Problem) -> DocumentGradientBlocks:
    """Choose the blocks of the documents' gradient: as many tokens of a query as it has, up to 64, in one product."""
    tokens = min(max(triton.next_power_of_2(problem.max_query_length), 16), 64)
    block_n = min(max(triton.next_power_of_2(problem.max_document_length), 16), 64)
    num_warps = 8 if problem.queries.dtype is torch.float32 else 4
    return DocumentGradientBlocks(tokens, block_n, _block_d(problem, 128), num_warps, num_stages=1)


def _block_d(problem: Problem, most: int) -> int:
    return min(max(triton.next_power_of_2(problem.queries.shape[-1]), 16), most)


def _counts(problem: Problem) -> tuple[int, int]:
    """Return the numbers of queries and of documents, candidates of different queries counted apart."""
    if problem.query_offsets is not None and problem.document_offsets is not None:
        return problem.query_offsets.shape[0] - 1, problem.document_offsets.shape[0] - 1
    *leading, _, _ = problem.documents.shape
    return problem.queries.shape[0], torch.Size(leading).numel()


def _visiting_order(pair_items: Tensor | None, item_count: int) -> tuple[Tensor | None, Tensor | None]:
    """Return the pairs sorted by item and where each item's begin, ``[item_count + 1]``, without a host sync."""
    if pair_items is None:
        return None, None
    items, order = torch.sort(pair_items, stable=True)
    bounds = torch.arange(item_count + 1, device=pair_items.device)
    return order, torch.searchsorted(items, bounds)


def _rows(embeddings: Tensor) -> Tensor:
    """Return embeddings whose last dimension is dense; all others may have any stride."""
    return embeddings if embeddings.shape[-1] <= 1 or embeddings.stride(-1) == 1 else embeddings.contiguous()


def _plain(tensor: Tensor | None) -> Tensor | None:
    """Return a small tensor as the kernels index it: contiguous, and bytes for bool."""
    if tensor is None:
        return None
    tensor = tensor.contiguous()
    return tensor.view(torch.uint8) if tensor.dtype is torch.bool else tensor


def _query_strides(queries: Tensor) -> tuple[int, int]:
    """Return the strides of a query and of a token."""
    return (queries.stride(0) if queries.dim() == 3 else 0), queries.stride(-2)


def _document_strides(documents: Tensor) -> tuple[int, int, int]:
    """Return the strides of a query's candidates, of a document and of a token."""
    outer = documents.stride(0) if documents.dim() == 4 else 0
    return outer, (documents.stride(-3) if documents.dim() >= 3 else 0), documents.stride(-2)


def _stored(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to store: the interpreter truncates to bf16 instead of rounding, so torch rounds for it."""
    return torch.float32 if INTERPRETED and dtype is torch.bfloat16 else dtype


def _gradient_of(embeddings: Tensor, packed: bool) -> Tensor:
    """Return memory for a gradient; packed tokens may belong to no item, so nobody but this would write theirs."""
    allocate = torch.zeros if packed else torch.empty
    return allocate(embeddings.shape, dtype=_stored(embeddings.dtype), device=embeddings.device)


def _winners_of(problem: Problem) -> Tensor:
    """Return memory for winners; ragged queries leave entries to nobody, and two runs must agree on those too."""
    if problem.query_offsets is None:
        return problem.queries.new_empty(problem.winners_shape, dtype=torch.int32)
    return problem.queries.new_full(problem.winners_shape, -1, dtype=torch.int32)


def _precision(problem: Problem) -> str:
    """Return how fp32 embeddings are multiplied: TF32 if the user allowed it; 16-bit embeddings ignore it."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Return the guard that makes ``device`` current: Triton launches on the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
