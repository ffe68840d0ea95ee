"""Time colpali-engine on the CPU with li-plugins and without: scoring, a training step of each kind, token pooling.

``python benchmarks/colpali_cpu.py [--quick] [--only REGEX]`` writes ``results/colpali_cpu.csv``, one row per workload
and side. Both sides are compared first: nothing wrong is timed. They take turns.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from functools import partial
from statistics import median, quantiles
from typing import Any

import torch
from colpali_engine.compression.token_pooling import HierarchicalTokenPooler
from colpali_engine.loss import late_interaction_losses as losses
from colpali_engine.utils.processing_utils import BaseVisualRetrieverProcessor
from common import RESULTS, in_turns, installed, peak_mib, provenance, save
from torch import Tensor

import li_plugins

WIDTH = 128
ROUNDS, FEW, LONG = 9, 3, 10.0
"""How many turns each side has, and how many where the library takes longer than so many seconds."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest relative difference between the sides; the library rounds every similarity and sum to bfloat16."""


def texts(count: int, shortest: int, longest: int) -> list[Tensor]:
    """Return unit vectors of ragged lengths."""
    lengths = torch.randint(shortest, longest + 1, (count,)).tolist()
    return [torch.nn.functional.normalize(torch.randn(length, WIDTH), dim=-1) for length in lengths]


def batch(*shape: int) -> Tensor:
    """Return unit vectors whose similarities are those of a model: positive."""
    return torch.nn.functional.normalize(torch.rand(*shape, WIDTH), dim=-1).requires_grad_()


def scoring(queries: int, pages: int, dtype: torch.dtype = torch.float32, shortest: int = 500) -> Callable[[], Tensor]:
    """``score_multi_vector`` at the library's own batch size."""
    qs, ps = ([text.to(dtype) for text in side] for side in (texts(queries, 10, 40), texts(pages, shortest, 1030)))
    return lambda: BaseVisualRetrieverProcessor.score_multi_vector(qs, ps, device="cpu")


def step(name: str, size: int, tokens: int, negatives: int = 0, **options: Any) -> Callable[[], Tensor]:
    """Forward and backward of a loss; returns the gradient of the queries."""
    loss = getattr(losses, name)(norm_tol=1e9, **options)
    embeddings = [batch(size, 32), batch(size, tokens)] + ([batch(size, negatives, tokens)] if negatives else [])

    def call() -> Tensor:
        for leaf in embeddings:
            leaf.grad = None
        loss(*embeddings).backward()
        return embeddings[0].grad

    return call


def pooling(tokens: int, factor: int) -> Callable[[], Tensor]:
    """Pool a page whose patches lie around some topics."""
    topics = torch.randn(60, WIDTH)[torch.randint(60, (tokens,))]
    page = torch.nn.functional.normalize(3 * topics + torch.randn(tokens, WIDTH), dim=-1)
    return lambda: HierarchicalTokenPooler().pool_embeddings([page], pool_factor=factor)[0]


def workloads(quick: bool) -> dict[str, Callable[[], Callable[[], Tensor]]]:
    """Return what makes each call that is timed, by a name that does not change."""
    small = {
        "score_multi_vector 16 x 64": partial(scoring, 16, 64),
        "ColbertLoss 8, Ld 256": partial(step, "ColbertLoss", 8, 256),
        "pooling 256 tokens by 3": partial(pooling, 256, 3),
    }
    if quick:
        return small
    return {
        "score_multi_vector 100 x 2000": partial(scoring, 100, 2000),
        "score_multi_vector 64 x 256": partial(scoring, 64, 256),
        "score_multi_vector 64 x 256 of 200-1030": partial(scoring, 64, 256, shortest=200),
        "score_multi_vector 1 x 256": partial(scoring, 1, 256),
        "score_multi_vector 8 x 256, bfloat16": partial(scoring, 8, 256, torch.bfloat16),
        "ColbertLoss 32, Ld 1030": partial(step, "ColbertLoss", 32, 1030),
        "ColbertPairwiseCELoss 32, Ld 1030": partial(step, "ColbertPairwiseCELoss", 32, 1030),
        "ColbertLoss 32, Ld 1030, smooth": partial(step, "ColbertLoss", 32, 1030, use_smooth_max=True),
        "ColbertNegativeCELoss 8 + 8 each, Ld 1030": partial(step, "ColbertNegativeCELoss", 8, 1030, negatives=8),
        "pooling 768 tokens by 3": partial(pooling, 768, 3),
        "pooling 1030 tokens by 3": partial(pooling, 1030, 3),
    }


def enable() -> None:
    """Patch."""
    li_plugins.enable("colpali", strict=True)


def main() -> None:
    """Time and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small workloads, printed only")
    parser.add_argument("--only", type=re.compile, default=re.compile(""), help="regular expression on the workload")
    parser.add_argument("--commit", help="commit for the rows, where there is no checkout")
    options = parser.parse_args()
    rows = []
    for name, make in workloads(options.quick).items():
        if not options.only.search(name):
            continue
        torch.manual_seed(0)
        call = make()
        enable()
        found = call()
        li_plugins.disable_all()
        begin = time.monotonic()
        expected = call()
        rounds = FEW if time.monotonic() - begin > LONG else ROUNDS
        difference = (found - expected).abs().max().item() / expected.abs().max().item()
        dtype = torch.bfloat16 if "bfloat16" in name else torch.float32
        if not difference < TOLERANCE[dtype]:
            print(f"{name}: differs by {difference:.1e}, not timed")
            continue
        sides = {"colpali-engine": li_plugins.disable_all, "li-plugins": enable}
        times = in_turns(call, sides, rounds)
        for side, switch in sides.items():
            switch()
            peak = peak_mib(call, "cpu")
            p20, *_, p80 = quantiles(times[side], n=5, method="inclusive")
            rows.append(
                {
                    "workload": name,
                    "who": side,
                    "ms": f"{median(times[side]):.1f}",
                    "p20": f"{p20:.1f}",
                    "p80": f"{p80:.1f}",
                    "peak_mib": f"{peak:.1f}",
                    "difference": f"{difference:.1e}",
                    "colpali_engine": installed("colpali-engine"),
                    **provenance("cpu", options.commit),
                }
            )
            print(
                f"{name:45s} {side:15s} {median(times[side]):9.1f} ms {peak:9.1f} MiB  difference {difference:.1e}",
                flush=True,
            )
    if not options.quick:
        save(RESULTS / "colpali_cpu.csv", rows, ("workload", "who", "gpu"))


if __name__ == "__main__":
    main()
