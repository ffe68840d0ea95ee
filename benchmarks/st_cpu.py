"""Time sentence-transformers' multi-vector scoring on the CPU with li-plugins and without.

``python benchmarks/st_cpu.py [--quick]`` writes ``results/st_cpu.csv``, one row per workload and side. Both sides are
compared first: nothing wrong is timed. They take turns, so that what else the machine does meets both.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from common import RESULTS, in_turns, installed, peak_mib, provenance, save
from sentence_transformers.multi_vector_encoder.scoring import (
    colbert_kd_scores,
    colbert_scores,
    xtr_kd_scores,
    xtr_scores,
)
from sentence_transformers.util import maxsim, maxsim_pairwise
from torch import Tensor

import li_plugins

WIDTH = 128
TOLERANCE = 1e-5
"""Largest relative difference between the sides."""

Call = Callable[[], Tensor]


def texts(count: int, shortest: int, longest: int) -> list[Tensor]:
    """Return unit vectors of ragged lengths."""
    lengths = torch.randint(shortest, longest + 1, (count,)).tolist()
    return [torch.nn.functional.normalize(torch.randn(length, WIDTH), dim=-1) for length in lengths]


def batch(*shape: int) -> Tensor:
    """Return unit vectors."""
    return torch.nn.functional.normalize(torch.randn(*shape, WIDTH), dim=-1)


def ragged(function: Callable[..., Tensor], queries: int, documents: int) -> Call:
    """Score lists as ``encode`` returns them."""
    qs, ds = texts(queries, 8, 32), texts(documents, 20, 300)
    return lambda: function(qs, ds)


def step(function: Callable[..., Tensor], queries: int, *documents: int) -> Call:
    """Forward and backward of scores as a loss asks for them; returns the gradient of the queries."""
    q, d = batch(queries, 32).requires_grad_(), batch(*documents, 180).requires_grad_()
    masks = {"queries_mask": torch.ones(queries, 32) > 0, "documents_mask": torch.rand(*documents, 180) < 0.9}

    def call() -> Tensor:
        q.grad = d.grad = None
        function(q, d, **masks).log_softmax(-1)[:, 0].sum().backward()
        assert q.grad is not None
        return q.grad

    return call


def scores(function: Callable[..., Tensor], *sides: tuple[int, ...]) -> Call:
    """Score padded batches without a gradient."""
    q, d = (batch(*side) for side in sides)
    return lambda: function(q, d)


def workloads(quick: bool) -> dict[str, Callable[[], Call]]:
    """Return what is timed, by a name that does not change."""
    if quick:
        return {
            "maxsim, ragged 10 x 100": lambda: ragged(maxsim, 10, 100),
            "colbert_kd_scores step 4 x 4, Ld 180": lambda: step(colbert_kd_scores, 4, 4, 4),
            "xtr_scores step 4 x 4 x 2, Ld 180": lambda: step(xtr_scores, 4, 4, 2),
        }
    return {
        "maxsim, ragged 100 x 1000": lambda: ragged(maxsim, 100, 1000),
        "maxsim, ragged 1 x 1000": lambda: ragged(maxsim, 1, 1000),
        "maxsim_pairwise, ragged 500": lambda: ragged(maxsim_pairwise, 500, 500),
        "maxsim, padded 100 x 1000, Ld 180": lambda: scores(maxsim, (100, 32), (1000, 180)),
        "maxsim_pairwise, padded 256, Ld 180": lambda: scores(maxsim_pairwise, (256, 32), (256, 180)),
        "colbert_kd_scores 32 x 16, Ld 180": lambda: scores(colbert_kd_scores, (32, 32), (32, 16, 180)),
        "colbert_kd_scores step 32 x 16, Ld 180": lambda: step(colbert_kd_scores, 32, 32, 16),
        "colbert_scores step 32 x 32 x 2, Ld 180": lambda: step(colbert_scores, 32, 32, 2),
        "xtr_scores 32 x 32 x 2, Ld 180": lambda: scores(xtr_scores, (32, 32), (32, 2, 180)),
        "xtr_scores step 32 x 32 x 2, Ld 180": lambda: step(xtr_scores, 32, 32, 2),
        "xtr_kd_scores step 32 x 16, Ld 180": lambda: step(xtr_kd_scores, 32, 32, 16),
    }


def rows(name: str, call: Call, rounds: int, common: dict[str, str]) -> list[dict[str, Any]]:
    """Return a row for each side; none when they differ."""
    sides = {"sentence-transformers": li_plugins.disable_all, "li-plugins": enable}
    found = []
    for switch in sides.values():
        switch()
        found.append(call())
    difference = (found[1] - found[0]).abs().max().item() / found[0].abs().max().item()
    if not difference < TOLERANCE:
        print(f"{name}: differs by {difference:.1e}, not timed")
        return []
    times = in_turns(call, sides, rounds, 500)
    peaks: dict[str, float] = {}
    for side, switch in sides.items():
        switch()
        peaks[side] = peak_mib(call, "cpu")
    return [
        {
            "workload": name,
            "who": side,
            "ms": f"{median(times[side]):.1f}",
            "fastest": f"{min(times[side]):.1f}",
            "slowest": f"{max(times[side]):.1f}",
            "peak_mib": f"{peaks[side]:.1f}",
            "difference": f"{difference:.1e}",
            "sentence_transformers": installed("sentence-transformers"),
            **common,
        }
        for side in sides
    ]


def enable() -> None:
    """Patch."""
    li_plugins.enable("sentence-transformers", strict=True)


def main() -> None:
    """Time and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small workloads, printed only")
    parser.add_argument("--only", type=re.compile, default=re.compile(""), help="regular expression on the workload")
    parser.add_argument("--rounds", type=int, default=5, help="how often the sides take turns")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--commit", help="commit for the rows, where there is no checkout")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    common = provenance("cpu", options.commit)
    for name, make in workloads(options.quick).items():
        if not options.only.search(name):
            continue
        torch.manual_seed(0)
        found = rows(name, make(), options.rounds, common)
        for row in found:
            print(f"{name:42s} {row['who']:22s} {row['ms']:>9} ms {row['peak_mib']:>9} MiB", flush=True)
        if not options.quick:
            save(RESULTS / "st_cpu.csv", found, ("workload", "who", "gpu"))


if __name__ == "__main__":
    main()
