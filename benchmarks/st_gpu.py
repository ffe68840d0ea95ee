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
from end_to_end import OURS, Case, Contestant, Results, batch, exact_maxsim, exact_ragged, main, texts
from sentence_transformers.multi_vector_encoder.scoring import colbert_kd_scores, colbert_scores
from sentence_transformers.util import maxsim
from torch import Tensor

import li_plugins


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

    def run(score: Callable[..., Tensor], leaves: list[Tensor]) -> Results:
        value = -score(*leaves).log_softmax(-1)[:, 0].mean()
        return value.detach(), *torch.autograd.grad(value, leaves)

    def exact_score(queries: Tensor, documents: Tensor) -> Tensor:
        if function is colbert_kd_scores:
            return exact_maxsim(queries, documents, mask)
        return exact_maxsim(queries, documents.flatten(0, 1), mask.flatten(0, 1))

    def exact() -> Results:
        return run(exact_score, [leaf.detach().double().requires_grad_() for leaf in leaves])

    return Case(lambda: run(partial(function, **masks), leaves), exact, dtype)


def workloads(device: str) -> Mapping[str, Callable[[], Case]]:
    """Return what is timed."""
    if device == "cpu":
        return {
            "search 5 x 100": lambda: search(5, 100, torch.float32, device),
            "search 5 x 100, bfloat16": lambda: search(5, 100, torch.bfloat16, device),
            "colbert_scores step 4 x 4 x 2, Ld 60": lambda: step(colbert_scores, torch.float32, device, 4, 4, 2, 60),
            "colbert_kd_scores step 4 x 3, Ld 60": lambda: step(colbert_kd_scores, torch.float32, device, 4, 4, 3, 60),
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
    }


if __name__ == "__main__":
    sys.exit(main(__doc__, "st_gpu.csv", contestants(), workloads))
