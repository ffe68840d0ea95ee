"""Time scores of stored documents against peers in one process: MaxSim from residual bytes, and by codes alone.

``python benchmarks/stored_maxsim.py [--only REGEX]`` writes ``results/stored_maxsim.csv``, one row per workload and
contestant: this project's kernel, the same in plain torch (``blocked``), what the libraries do in torch (decode all
embeddings, pad, multiply; gather all scores, reduce) and late-interaction-kernels, where it can be imported. With
several queries, ``one by one`` is this project's kernel once for each.

Scores are first compared with float64. Their relative error as a whole may be one rounding step of fp16, or torch's own
error up to four steps; this project gets no row above that, a peer gets one with the note ``wrong``.

``ms`` is what a user waits for, ``graph_ms`` the call replayed as a CUDA graph. GB/s counts what a document token needs
once for each query of a call: its code, its bytes and a centroid, or its code and a row of scores.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from common import graph_ms, measure, parsed, parser, peak_mib, provenance, save
from torch import Tensor
from torch.nn import functional

from li_plugins.ops import code_maxsim, dispatch, residual_maxsim
from li_plugins.ops.codec import bits

Call = Callable[[], Tensor]
KEY = ("workload", "who", "gpu")
EXACT_ELEMENTS = 2**28
"""Most similarities that the float64 reference holds at a time."""


@dataclass(frozen=True)
class Workload:
    """``a`` queries of ``lq`` tokens against ``b`` stored documents of 20 to 220 tokens, in fp16.

    ``nbits`` of residuals for each of ``d`` dimensions; 0: scores by codes, in fp32, a share of which is ``kept``.
    """

    a: int
    b: int
    nbits: int = 0
    kept: float = 1.0
    lq: int = 32
    d: int = 128
    centroids: int = 65_536

    @property
    def name(self) -> str:
        """What the CSV calls it."""
        kind = f"residual nbits {self.nbits}" if self.nbits else "code"
        share = "" if self.kept == 1 else f" kept {self.kept:g}"
        return f"{kind}{share} {self.a}x{self.b} Lq {self.lq} Ld 20-220" + (f" d {self.d}" if self.nbits else "")


WORKLOADS = (
    Workload(1, 4_096, nbits=2),
    Workload(1, 4_096, nbits=4),
    Workload(32, 4_096, nbits=2),
    Workload(32, 4_096, nbits=4),
    Workload(1, 100_000),
    Workload(1, 100_000, kept=0.1),
)
SMALL = (
    Workload(1, 30, nbits=2, centroids=64),
    Workload(3, 20, nbits=4, centroids=64),
    Workload(1, 50, centroids=64),
    Workload(2, 50, kept=0.3, centroids=64),
)
"""For a CPU, which has nothing to prove here: that the script runs."""


class Inputs:
    """A random index of a workload, and queries."""

    def __init__(self, work: Workload, device: str) -> None:
        random = torch.Generator(device).manual_seed(0)

        def unit(*shape: int) -> Tensor:
            return functional.normalize(torch.randn(shape, generator=random, device=device), dim=-1).half()

        self.work, self.device = work, device
        self.lengths = torch.randint(20, 221, (work.b,), generator=random, device=device)
        self.offsets = functional.pad(self.lengths.cumsum(0), (1, 0))
        self.tokens = int(self.offsets[-1])
        self.codes = torch.randint(work.centroids, (self.tokens,), generator=random, device=device, dtype=torch.int32)
        self.queries, self.centroids = unit(work.a, work.lq, work.d), unit(work.centroids, work.d)
        self.owners = torch.arange(work.b, device=device).repeat_interleave(self.lengths)
        self.kept: Tensor | None = None
        if not work.nbits:
            self.scores = (self.centroids.float() @ self.queries.float().mT).contiguous()
            if work.kept < 1:
                self.kept = torch.rand(work.a, work.centroids, generator=random, device=device) < work.kept
            return
        shape = self.tokens, work.d * work.nbits // 8
        self.residuals = torch.randint(256, shape, generator=random, device=device, dtype=torch.uint8)
        spread = torch.randn(2**work.nbits, generator=random, device=device) * 0.04
        self.weights = spread.sort().values.half()

    def rows(self, centroids: Tensor, weights: Tensor) -> Tensor:
        """Return all embeddings in torch, by a table of the weights of each byte."""
        table = weights[bits.buckets_of_bytes(self.work.nbits, weights.device)]
        rest = table[self.residuals.int()].view(self.tokens, self.work.d)
        return functional.normalize(centroids[self.codes.int()] + rest, dim=-1)


def residual_contestants(inputs: Inputs) -> dict[str, Callable[[], Call]]:
    """Return what makes each contestant; torch first, its error is the budget."""
    work = inputs.work
    stored = inputs.codes, inputs.residuals, inputs.centroids, inputs.weights, inputs.offsets

    def ours() -> Tensor:
        return residual_maxsim(inputs.queries, *stored, nbits=work.nbits, out_dtype=torch.float32)

    def one_by_one() -> Tensor:
        queries = inputs.queries.split(1)
        return torch.cat([residual_maxsim(q, *stored, nbits=work.nbits, out_dtype=torch.float32) for q in queries])

    def library() -> Tensor:
        places = torch.arange(inputs.tokens, device=inputs.device) - inputs.offsets[inputs.owners]
        padded = inputs.centroids.new_zeros(work.b, 220, work.d)
        padded[inputs.owners, places] = inputs.rows(inputs.centroids, inputs.weights)
        is_token = torch.arange(220, device=inputs.device) < inputs.lengths[:, None]
        scores = [
            torch.einsum("sh,bth->bts", query, padded).masked_fill(~is_token[..., None], -9999.0).amax(1).sum(-1)
            for query in inputs.queries
        ]
        return torch.stack(scores)

    def peer() -> Call:
        module: Any = import_module("late_interaction_kernels.plaid")
        offsets = inputs.offsets.int()
        return lambda: module.maxsim_residual_varlen(
            inputs.queries,
            *stored[:2],
            offsets,
            *stored[2:4],
            work.nbits,
            max_seqlen_d=220,
        )

    found = {"torch": lambda: library, "li-plugins": lambda: ours, "li-plugins blocked": lambda: ours}
    if work.a > 1:
        found["li-plugins one by one"] = lambda: one_by_one
    return {**found, "late-interaction-kernels": peer}


def code_contestants(inputs: Inputs) -> dict[str, Callable[[], Call]]:
    """Return the same for scores by codes."""
    work = inputs.work

    def ours() -> Tensor:
        return code_maxsim(inputs.scores, inputs.codes, inputs.offsets, kept=inputs.kept, least=-9999.0)

    def library() -> Tensor:
        return torch.stack([_by_codes(inputs, query, inputs.scores[query]) for query in range(work.a)])

    def peer() -> Call:
        module: Any = import_module("late_interaction_kernels.plaid")
        if inputs.kept is not None or work.a > 1:
            raise NotImplementedError("one query at a time, and all of its codes")
        padded = inputs.codes.new_zeros(work.b, 220)
        padded[torch.arange(220, device=inputs.device) < inputs.lengths[:, None]] = inputs.codes
        return lambda: module.plaid_approx_score(inputs.scores[0], padded, inputs.lengths)[None]

    return {
        "torch": lambda: library,
        "li-plugins": lambda: ours,
        "li-plugins blocked": lambda: ours,
        "late-interaction-kernels": peer,
    }


def _by_codes(inputs: Inputs, query: int, scores: Tensor) -> Tensor:
    """Return one query's scores ``[b]`` by ``scores [K, Lq]``, every row gathered."""
    codes, owners = inputs.codes, inputs.owners
    if inputs.kept is not None:
        is_kept = inputs.kept[query].index_select(0, codes)
        codes, owners = codes[is_kept], owners[is_kept]
    found = scores.index_select(0, codes)
    best = scores.new_full((inputs.work.b, scores.shape[1]), -9999.0)
    return best.scatter_reduce_(0, owners[:, None].expand_as(found), found, "amax").sum(1)


def exact(inputs: Inputs) -> Tensor:
    """Return the scores in float64, some queries at a time."""
    work = inputs.work
    if not work.nbits:
        return torch.stack([_by_codes(inputs, query, inputs.scores[query].double()) for query in range(work.a)])
    rows = inputs.rows(inputs.centroids.double(), inputs.weights.double())
    parts = []
    for queries in inputs.queries.double().split(max(1, EXACT_ELEMENTS // (inputs.tokens * work.lq))):
        found = rows @ queries.flatten(0, 1).T
        best = found.new_full((work.b, found.shape[1]), -torch.inf)
        best.scatter_reduce_(0, inputs.owners[:, None].expand_as(found), found, "amax")
        parts.append(best.view(work.b, -1, work.lq).sum(-1).T)
    return torch.cat(parts)


def error_of(found: Tensor, truth: Tensor) -> float:
    """Return the relative error of all scores as a whole; infinite where one is no number."""
    error = float((found.double() - truth).norm() / truth.norm())
    return error if error == error else float("inf")


def choose(who: str) -> None:
    """Let the public functions run what a contestant's name says."""
    os.environ.pop("LI_PLUGINS_BACKEND", None)
    if who == "li-plugins blocked":
        os.environ["LI_PLUGINS_BACKEND"] = "blocked"
    dispatch.reset()


def rows(work: Workload, device: str, who: re.Pattern[str], common: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Time every contestant of a workload; yield its rows as they come."""
    inputs = Inputs(work, device)
    truth = exact(inputs)
    contestants = (residual_contestants if work.nbits else code_contestants)(inputs)
    step = torch.finfo(torch.float16).eps if work.nbits else 4 * torch.finfo(torch.float32).eps
    budget = step
    bytes_per_token = 4 + (work.d * work.nbits // 8 + 2 * work.d if work.nbits else 4 * work.lq * work.kept)
    for name, make in contestants.items():
        if not who.search(name):
            continue
        choose(name)
        row: dict[str, Any] = {"workload": work.name, "who": name}
        try:
            call = make()
            error = error_of(call(), truth)
            if name == "torch":
                budget = max(step, min(4 * step, error))
            is_wrong = error > budget and name != "torch"
            if is_wrong and name.startswith("li-plugins"):
                print(f"# {work.name}: {name} is wrong by {error:.2e}, allowed is {budget:.2e}; not timed", flush=True)
                continue
            timing = measure(call, device)
            replayed = graph_ms(call) if device == "cuda" and timing.median < 60 else None
            row |= {
                "ms": f"{timing.median:.4f}",
                "p20": f"{timing.p20:.4f}",
                "p80": f"{timing.p80:.4f}",
                "host_us": f"{timing.host_us:.1f}",
                "graph_ms": "" if replayed is None else f"{replayed:.4f}",
                "tflops": f"{2 * work.a * inputs.tokens * work.lq * work.d / timing.median / 1e9:.1f}"
                if work.nbits
                else "",
                "gb_per_s": f"{work.a * inputs.tokens * bytes_per_token / timing.median / 1e6:.0f}",
                "peak_mib": f"{peak_mib(call, device):.1f}",
                "error": f"{error:.2e}",
                "note": "wrong" if is_wrong else "",
            }
        except Exception as failure:  # whoever fails costs itself its row: the others are still to be timed
            if device == "cuda" and isinstance(failure, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            reason = f"{type(failure).__name__}: {failure}".strip().splitlines()[0][:120]
            row |= dict.fromkeys(
                ("ms", "p20", "p80", "host_us", "graph_ms", "tflops", "gb_per_s", "peak_mib", "error"), ""
            )
            row["note"] = reason
        yield {**row, **common}
    choose("")


def main() -> int:
    """Run the workloads; return 1 when our own kernel got no time somewhere."""
    arguments = parsed(parser(__doc__.partition("\n")[0], "stored_maxsim.csv"))
    common = provenance(arguments.device, arguments.commit)
    right = True
    for work in SMALL if arguments.device == "cpu" else WORKLOADS:
        if not arguments.only.search(work.name):
            continue
        timed = []
        for row in rows(work, arguments.device, arguments.who, common):
            if row["ms"]:
                timed.append(row["who"])
            save(arguments.output, [row], KEY)
            print(
                f"{row['workload']:46} {row['who']:26} {row['ms'] or '-':>9} ms {row['graph_ms'] or '-':>8} ms graph",
                f"{row['tflops'] or '-':>6} TFLOP/s {row['gb_per_s'] or '-':>5} GB/s {row['peak_mib'] or '-':>8} MiB",
                f"{row['host_us'] or '-':>7} us host  error {row['error'] or '-'} {row['note']}",
                flush=True,
            )
        right &= "li-plugins" in timed or not arguments.who.search("li-plugins")
        if arguments.device == "cuda":
            torch.cuda.empty_cache()
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
