"""Time colpali-engine on a GPU with li-plugins, without, and with its own ``lik`` backend: training steps and scoring.

``python benchmarks/colpali_gpu.py`` writes ``results/colpali_gpu.csv``, one row per workload and contestant, each with
its errors against float64; ``--device cpu`` runs small workloads. ``lik`` needs late-interaction-kernels, whose fp32
products have 16-bit operands.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from colpali_engine.loss import late_interaction_losses as losses
from colpali_engine.utils.processing_utils import BaseVisualRetrieverProcessor
from common import installed
from end_to_end import OURS, Case, Contestant, Results, batch, exact_maxsim, exact_ragged, main, texts
from torch import Tensor

import li_plugins

BACKEND = "COLPALI_SCORES_BACKEND"


@contextmanager
def library(backend: str) -> Iterator[None]:
    """Leave the library alone, on one of its own backends."""
    with patch.dict(os.environ, {BACKEND: backend}):
        yield


@contextmanager
def patched() -> Iterator[None]:
    """Patch."""
    li_plugins.enable("colpali", strict=True)
    try:
        with patch.dict(os.environ, {BACKEND: "auto"}):
            yield
    finally:
        li_plugins.disable_all()


def contestants() -> list[Contestant]:
    """Return who can run here."""
    engine, kernels = f"colpali-engine {installed('colpali-engine')}", installed("late-interaction-kernels")
    found = [Contestant("colpali-engine", partial(library, "torch"), engine)]
    if kernels and torch.cuda.is_available():
        found.append(
            Contestant("colpali-engine, lik", partial(library, "lik"), f"{engine}, late-interaction-kernels {kernels}")
        )
    return [*found, Contestant(OURS, patched, engine)]


def step(
    name: str,
    size: int,
    tokens: int,
    device: str,
    negatives: int = 0,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Case:
    """Forward and backward of a loss: the loss and the gradients of all embeddings."""
    shapes = [(size, 32), (size, tokens)] + ([(size, negatives, tokens)] if negatives else [])
    leaves = [batch(*shape, dtype=dtype, device=device).requires_grad_() for shape in shapes]
    loss = getattr(losses, name)(norm_tol=1e9, **options).to(device)

    def run(loss: Callable[..., Tensor], leaves: list[Tensor]) -> Results:
        value = loss(*leaves)
        return value.detach(), *torch.autograd.grad(value, leaves)

    def exact() -> Results:
        doubled = [leaf.detach().double().requires_grad_() for leaf in leaves]
        with patch.object(losses, "maxsim_inbatch", exact_maxsim), patch.object(losses, "maxsim_kd", exact_maxsim):
            return run(loss, doubled)

    return Case(lambda: run(loss, leaves), exact, dtype)


def scoring(queries: int, pages: int, dtype: torch.dtype, device: str, home: str) -> Case:
    """``score_multi_vector`` at the library's own batch size, for pages that lie on the device ``home``."""
    qs, ps = texts(queries, 10, 40, dtype, home), texts(pages, 500, 1030, dtype, home)

    def exact() -> Results:
        # No best similarity with a page of so many tokens is negative: padding by zero rows wins nowhere.
        return (exact_ragged([query.to(device) for query in qs], [page.to(device) for page in ps]).cpu(),)

    return Case(lambda: (BaseVisualRetrieverProcessor.score_multi_vector(qs, ps, device=device),), exact, dtype)


def workloads(device: str) -> Mapping[str, Callable[[], Case]]:
    """Return what is timed."""
    if device == "cpu":
        return {
            "ColbertLoss 8, Ld 256": lambda: step("ColbertLoss", 8, 256, device),
            "ColbertLoss 8, Ld 256, bfloat16": lambda: step("ColbertLoss", 8, 256, device, dtype=torch.bfloat16),
            "ColbertLoss 4, Ld 256, smooth": lambda: step("ColbertLoss", 4, 256, device, use_smooth_max=True),
            "ColbertPairwiseCELoss 8, Ld 256": lambda: step("ColbertPairwiseCELoss", 8, 256, device),
            "ColbertNegativeCELoss 4 + 3 each, Ld 256": lambda: step("ColbertNegativeCELoss", 4, 256, device, 3),
            "score_multi_vector 5 x 20": lambda: scoring(5, 20, torch.float32, device, device),
            "score_multi_vector 5 x 20, bfloat16": lambda: scoring(5, 20, torch.bfloat16, device, device),
        }
    steps = {
        f"ColbertLoss {size}, Ld 1030{'' if dtype is torch.float32 else ', bfloat16'}": partial(
            step, "ColbertLoss", size, 1030, device, dtype=dtype
        )
        for dtype in (torch.float32, torch.bfloat16)
        for size in (64, 128, 256)
    }
    return {
        **steps,
        "ColbertNegativeCELoss 64 + 16 each, Ld 1030": lambda: step("ColbertNegativeCELoss", 64, 1030, device, 16),
        "ColbertNegativeCELoss 256 + 16 each, Ld 1030, bfloat16": lambda: step(
            "ColbertNegativeCELoss", 256, 1030, device, 16, dtype=torch.bfloat16
        ),
        "ColbertPairwiseCELoss 128, Ld 1030": lambda: step("ColbertPairwiseCELoss", 128, 1030, device),
        "ColbertPairwiseCELoss 256, Ld 1030, bfloat16": lambda: step(
            "ColbertPairwiseCELoss", 256, 1030, device, dtype=torch.bfloat16
        ),
        "ColbertLoss 64, Ld 1030, smooth": lambda: step("ColbertLoss", 64, 1030, device, use_smooth_max=True),
        "score_multi_vector 100 x 2000": lambda: scoring(100, 2000, torch.float32, device, device),
        "score_multi_vector 100 x 2000, bfloat16": lambda: scoring(100, 2000, torch.bfloat16, device, device),
        "score_multi_vector 100 x 2000, bfloat16 on the CPU": lambda: scoring(100, 2000, torch.bfloat16, device, "cpu"),
    }


if __name__ == "__main__":
    sys.exit(main(__doc__, "colpali_gpu.csv", contestants(), workloads))
