"""Time sentence-transformers' multi-vector scoring on a GPU with li-plugins and without: search and training steps.

``python benchmarks/st_gpu.py`` writes ``results/st_gpu.csv``, one row per workload and side, each with its errors
against float64; ``--device cpu`` runs small workloads. The library has no other kernels of its own to compare with.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from common import installed
from end_to_end import EXACT_ELEMENTS, OURS, Case, Contestant, Results, batch, exact_maxsim, exact_ragged, main, texts
from sentence_transformers.multi_vector_encoder.scoring import (
    colbert_kd_scores,
    colbert_scores,
    xtr_kd_scores,
    xtr_scores,
)
from sentence_transformers.util import maxsim
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import li_plugins

TOP_K = 256
APART = 1e-6
"""Least difference between the last similarity that is retrieved and the next: less, and roundings choose the token."""


@contextmanager
def patched() -> Iterator[None]:
    """Patch."""
    li_plugins.enable("sentence-transformers", strict=True)
    try:
        yield
    finally:
        li_plugins.disable_all()


def contestants() -> list[Contestant]:
    """Return both sides."""
    version = f"sentence-transformers {installed('sentence-transformers')}"
    return [Contestant("sentence-transformers", nullcontext, version), Contestant(OURS, patched, version)]


def search(queries: int, documents: int, dtype: torch.dtype, device: str) -> Case:
    """Find the best 10 documents of each query as the library's guide does: similarities of ragged lists, then topk."""
    qs, ds = texts(queries, 8, 32, dtype, device), texts(documents, 20, 300, dtype, device)

    def call() -> Results:
        scores = maxsim(qs, ds)
        scores.topk(10)
        return (scores,)

    return Case(call, lambda: (exact_ragged(qs, ds),), dtype)


def step(function: Callable[..., Tensor], dtype: torch.dtype, device: str, queries: int, *documents: int) -> Case:
    """Forward and backward of scores as a loss asks for them: the loss and both gradients."""
    leaves = [batch(*shape, dtype=dtype, device=device).requires_grad_() for shape in ((queries, 32), documents)]
    mask = torch.arange(documents[-1], device=device) < torch.randint(1, documents[-1] + 1, (*documents[:-1], 1)).to(
        device
    )
    masks = {"queries_mask": torch.ones(queries, 32, device=device), "documents_mask": mask}
    is_xtr = function in (xtr_scores, xtr_kd_scores)
    if is_xtr:
        draw_apart(leaves[0], leaves[1].flatten(0, 1), mask.flatten(0, 1))

    def run(score: Callable[..., Tensor], leaves: list[Tensor]) -> Results:
        value = -score(*leaves).log_softmax(-1)[:, 0].mean()
        return value.detach(), *torch.autograd.grad(value, leaves)

    def exact_score(queries: Tensor, documents: Tensor) -> Tensor:
        if is_xtr:
            scores = exact_xtr(queries, documents.flatten(0, 1), mask.flatten(0, 1))
            if function is xtr_scores:
                return scores
            return scores.view(len(queries), *documents.shape[:2]).diagonal().T
        if function is colbert_kd_scores:
            return exact_maxsim(queries, documents, mask)
        return exact_maxsim(queries, documents.flatten(0, 1), mask.flatten(0, 1))

    def exact() -> Results:
        return run(exact_score, [leaf.detach().double().requires_grad_() for leaf in leaves])

    return Case(lambda: run(partial(function, **masks), leaves), exact, dtype)


def exact_xtr(queries: Tensor, documents: Tensor, mask: Tensor) -> Tensor:
    """Score in float64 by what each query token retrieves, some queries at a time, in the backward as well."""
    documents = documents.double()

    def score(queries: Tensor, documents: Tensor) -> Tensor:
        grid = torch.einsum("ash,bth->asbt", queries, documents).masked_fill(~mask, -torch.inf)
        least = grid.flatten(2).topk(TOP_K).values[..., -1, None, None]
        best = grid.masked_fill(grid < least, -torch.inf).amax(-1)
        is_found = best.isfinite()
        return best.masked_fill(~is_found, 0).sum(1) / is_found.sum(1).clamp(min=1)

    each = max(1, EXACT_ELEMENTS // (queries.shape[1] * documents.shape[:2].numel()))
    parts = [checkpoint(score, part, documents, use_reentrant=False) for part in queries.double().split(each)]
    return torch.cat(parts)


@torch.no_grad()
def draw_apart(queries: Tensor, documents: Tensor, mask: Tensor) -> None:
    """Draw query tokens anew that would retrieve one of two documents' tokens by a rounding."""
    rows, tokens = queries.flatten(0, 1), documents[mask].double()
    left = torch.arange(len(rows), device=rows.device)
    while len(left):
        gaps = []
        for part in rows[left].double().split(max(1, EXACT_ELEMENTS // len(tokens))):
            best = (part @ tokens.T).topk(TOP_K + 1).values
            gaps.append(best[:, -2] - best[:, -1])
        left = left[torch.cat(gaps) < APART]
        rows[left] = batch(len(left), dtype=rows.dtype, device=str(rows.device))


def workloads(device: str) -> Mapping[str, Callable[[], Case]]:
    """Return what is timed."""
    if device == "cpu":
        return {
            "search 5 x 100": lambda: search(5, 100, torch.float32, device),
            "search 5 x 100, bfloat16": lambda: search(5, 100, torch.bfloat16, device),
            "colbert_scores step 4 x 4 x 2, Ld 60": lambda: step(colbert_scores, torch.float32, device, 4, 4, 2, 60),
            "colbert_kd_scores step 4 x 3, Ld 60": lambda: step(colbert_kd_scores, torch.float32, device, 4, 4, 3, 60),
            "xtr_scores step 4 x 4 x 4, Ld 60": lambda: step(xtr_scores, torch.float32, device, 4, 4, 4, 60),
            "xtr_scores step 4 x 4 x 4, Ld 60, bfloat16": lambda: step(xtr_scores, torch.bfloat16, device, 4, 4, 4, 60),
            "xtr_kd_scores step 4 x 4, Ld 60": lambda: step(xtr_kd_scores, torch.float32, device, 4, 4, 4, 60),
        }
    return {
        "search 100 x 10000": lambda: search(100, 10_000, torch.float32, device),
        "search 100 x 10000, bfloat16": lambda: search(100, 10_000, torch.bfloat16, device),
        "search 1 x 10000": lambda: search(1, 10_000, torch.float32, device),
        "colbert_scores step 128 x 128 x 2, Ld 300": lambda: step(
            colbert_scores, torch.float32, device, 128, 128, 2, 300
        ),
        "colbert_scores step 128 x 128 x 2, Ld 300, bfloat16": lambda: step(
            colbert_scores, torch.bfloat16, device, 128, 128, 2, 300
        ),
        "colbert_kd_scores step 64 x 16, Ld 300": lambda: step(
            colbert_kd_scores, torch.float32, device, 64, 64, 16, 300
        ),
        "xtr_scores step 128 x 128 x 2, Ld 300": lambda: step(xtr_scores, torch.float32, device, 128, 128, 2, 300),
        "xtr_scores step 128 x 128 x 2, Ld 300, bfloat16": lambda: step(
            xtr_scores, torch.bfloat16, device, 128, 128, 2, 300
        ),
        "xtr_kd_scores step 32 x 16, Ld 300": lambda: step(xtr_kd_scores, torch.float32, device, 32, 32, 16, 300),
    }


if __name__ == "__main__":
    sys.exit(main(__doc__, "st_gpu.csv", contestants(), workloads))
