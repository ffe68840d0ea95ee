"""Time k-means and the residual codec against their peers in one process; nothing wrong is timed.

``python benchmarks/kmeans_codec.py [--only REGEX] [--who REGEX]`` writes ``results/kmeans_codec.csv``, one row per
workload and contestant: this project on Triton and on plain torch, flash-kmeans and fastkmeans (where they can be
imported), and torch as colbert-ai's ``ResidualCodec`` uses it.

First each contestant is judged on its own results. Of codes, ``error`` is how much farther than the nearest centroid
the chosen ones are (mean squared distance by distance, mean similarity by dot product), relative to the nearest, in
float64, on a sample of rows; of residual bytes, the share that differs from colbert-ai's formula for the same codes;
of embeddings, the relative error of the tensor as a whole. One rounding step of the inputs' dtype is allowed.
``objective`` is the mean squared distance of all rows to the centroids that several iterations end with.

TFLOP/s counts ``2 * N * K * d`` for each assignment; GB/s each row once, read, and each result once, written.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from common import measure, parsed, parser, peak_mib, provenance, save
from torch import Tensor
from torch.nn.functional import normalize

from li_plugins.ops import assign, cluster_sums, compress, decompress, kmeans
from li_plugins.ops.codec import blocked as plain_codec
from li_plugins.ops.codec.problem import BinarizeProblem, CompressProblem, DecompressProblem
from li_plugins.ops.kmeans import blocked as plain_kmeans
from li_plugins.ops.kmeans.problem import AssignProblem, SumsProblem

KEY = ("workload", "who", "gpu")
SAMPLE = 2**15
"""Rows that are judged in float64."""
BLOCK = 2**12
"""Rows whose similarities are in memory while they are judged."""
OURS = "li-plugins"


@dataclass(frozen=True)
class Workload:
    """``kind`` of work on ``rows`` of ``width`` dimensions and ``centroids``."""

    kind: str
    rows: int
    centroids: int
    width: int = 128
    nbits: int = 2
    dtype: torch.dtype = torch.float16
    iterations: int = 1

    @property
    def name(self) -> str:
        """A name that does not change."""
        how = f" {self.iterations} iterations" if self.kind == "kmeans" else ""
        bits = f" {self.nbits} bits" if self.kind in ("compress", "decompress", "binarize") else ""
        return f"{self.kind}{how} {self.rows}x{self.width} K {self.centroids}{bits} {str(self.dtype)[6:]}"


BF16, FP32 = torch.bfloat16, torch.float32
WORKLOADS = (
    Workload("iteration", 2_000_000, 16_384),
    Workload("iteration", 2_000_000, 16_384, dtype=BF16),
    Workload("assign", 2_000_000, 16_384),
    Workload("update", 2_000_000, 16_384),
    Workload("kmeans", 2_000_000, 16_384, iterations=5),
    Workload("iteration", 200_000, 1_024),
    Workload("iteration", 200_000, 4_096, dtype=FP32),
    Workload("compress", 1_000_000, 65_536),
    Workload("compress", 10_000_000, 65_536),
    Workload("binarize", 1_000_000, 65_536),
    Workload("decompress", 1_000_000, 65_536),
    Workload("decompress", 1_000_000, 65_536, nbits=4),
)
SMALL = (
    Workload("iteration", 2_000, 64),
    Workload("assign", 2_000, 64),
    Workload("update", 2_000, 64),
    Workload("kmeans", 2_000, 64, iterations=2),
    Workload("compress", 2_000, 64),
    Workload("binarize", 2_000, 64),
    Workload("decompress", 2_000, 64),
)
"""For a CPU, which has nothing to prove here: that the script runs."""

Results = tuple[Tensor, ...]
Call = Callable[[], Results]


class Inputs:
    """Unit rows around centres, as embeddings are, and centroids that were drawn from them."""

    def __init__(self, work: Workload, device: str) -> None:
        self.work, self.device = work, device
        self.random = torch.Generator(device).manual_seed(0)
        centres = normalize(self._normal(max(1, work.centroids // 2), work.width), dim=-1)
        self.rows = torch.empty(work.rows, work.width, dtype=work.dtype, device=device)
        for block in self.rows.split(2**18):
            of = torch.randint(len(centres), (len(block),), generator=self.random, device=device)
            noise = self._normal(len(block), work.width) * (0.5 / work.width**0.5)
            block.copy_(normalize(centres[of] + noise, dim=-1))
        drawn = torch.randperm(work.rows, generator=torch.Generator().manual_seed(1))[: work.centroids]
        seeds = self.rows[drawn.to(device)]
        if len(seeds) < work.centroids:
            seeds = torch.cat([seeds, centres[: work.centroids - len(seeds)].to(work.dtype)])
        # an index's centroids are means; these are of about their length and no rows themselves
        moved = seeds.float() + 0.02 * self._normal(*seeds.shape) / work.width**0.5
        self.centroids = (moved if work.kind in ("assign", "compress", "decompress") else seeds).to(work.dtype)
        self.codes = torch.randint(work.centroids, (work.rows,), generator=self.random, device=device).int()
        spread = torch.linspace(-1.5, 1.5, 2**work.nbits + 1, device=device) * 0.5 / work.width**0.5
        self.cutoffs = spread[1:-1].clone()
        self.weights = ((spread[1:] + spread[:-1]) / 2).to(work.dtype)
        self.residuals = torch.empty(0, device=device)
        if work.kind == "decompress":
            shape = (work.rows, work.width * work.nbits // 8)
            self.residuals = torch.randint(256, shape, generator=self.random, device=device, dtype=torch.uint8)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random, device=self.device)


# --- k-means: each returns codes and the centroids that follow from them ---


def _means(sums: Tensor, sizes: Tensor, before: Tensor) -> Tensor:
    return torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], before.float())


def _ours_iteration(inputs: Inputs, centroids: Tensor) -> Results:
    codes, _ = assign(inputs.rows, centroids.to(inputs.work.dtype), by="distance")
    return codes, _means(*cluster_sums(inputs.rows, codes, len(centroids)), centroids)


def _plain_iteration(inputs: Inputs, centroids: Tensor) -> Results:
    problem = AssignProblem(inputs.rows, centroids.to(inputs.work.dtype), by_distance=True)
    codes, _ = plain_kmeans.ASSIGN.forward(problem)
    sums, sizes = plain_kmeans.SUMS.forward(SumsProblem(inputs.rows, codes, len(centroids)))
    return codes, _means(sums, sizes, centroids)


def _torch_assign(inputs: Inputs, centroids: Tensor) -> Tensor:
    """Return the codes of products in the inputs' dtype, half a billion of them at a time."""
    half_squares = (centroids.float().square().sum(1) / 2).to(centroids.dtype)
    step = max(1, 2**29 // len(centroids))
    return torch.cat([torch.addmm(-half_squares, part, centroids.T).max(1).indices for part in inputs.rows.split(step)])


def _torch_iteration(inputs: Inputs, centroids: Tensor) -> Results:
    codes = _torch_assign(inputs, centroids.to(inputs.work.dtype))
    sums = torch.zeros(centroids.shape, device=inputs.device)
    for rows, of in zip(inputs.rows.split(2**18), codes.split(2**18), strict=True):
        sums.index_add_(0, of, rows.float())
    return codes, _means(sums, torch.bincount(codes, minlength=len(centroids)), centroids)


def _flash_kmeans(inputs: Inputs) -> Callable[[Inputs, Tensor], Results]:
    """Its own iteration, with the squares of the rows made beforehand, as its training has them."""
    peer: Any = import_module("flash_kmeans.kmeans_triton_impl")
    rows = inputs.rows[None]
    squares = rows.square().sum(-1)

    def iteration(_: Inputs, centroids: Tensor) -> Results:
        moved, _shift, codes = peer._euclid_iter(rows, squares, centroids.to(rows.dtype)[None])
        return codes[0], moved[0]

    return iteration


def _fastkmeans(inputs: Inputs, dtype: torch.dtype) -> Callable[[Inputs, Tensor], Results]:
    """Its kernel in the loop that its training has, with its chunks, on rows that are on the device already.

    Rows, centroids and squares have one dtype: float16 by default in its training on CUDA, float32 in its ``predict``;
    the kernel multiplies in float16 either way. A program of it that is no longer the best writes back the code that it
    read before another one's, so that codes depend on which is later: right where programs run one after the other (in
    Triton's interpreter), wrong where many do at a time.
    """
    peer: Any = import_module("fastkmeans.triton_kernels")
    rows = inputs.rows.to(dtype)
    squares = inputs.rows.float().square().sum(1).to(dtype)

    def iteration(_: Inputs, centroids: Tensor) -> Results:
        centroids = centroids.to(dtype)
        centroid_squares = centroids.square().sum(1)
        sums = torch.zeros(centroids.shape, device=inputs.device)
        sizes = torch.zeros(len(centroids), device=inputs.device)
        codes = torch.zeros(len(rows), device=inputs.device, dtype=torch.int64)
        for start in range(0, len(rows), 51_200):
            chunk = slice(start, start + 51_200)
            peer.triton_kmeans(rows[chunk], squares[chunk], centroids, centroid_squares, codes[chunk])
            sums.index_add_(0, codes[chunk], rows[chunk].float())
            sizes.index_add_(0, codes[chunk], torch.ones_like(codes[chunk], dtype=torch.float32))
        return codes, _means(sums, sizes, centroids)

    return iteration


def _iterations(inputs: Inputs) -> dict[str, Callable[[], Callable[[Inputs, Tensor], Results]]]:
    return {
        OURS: lambda: _ours_iteration,
        "flash-kmeans": lambda: _flash_kmeans(inputs),
        "fastkmeans": lambda: _fastkmeans(inputs, inputs.work.dtype),
        "fastkmeans fp32": lambda: _fastkmeans(inputs, FP32),
        "torch": lambda: _torch_iteration,
        "li-plugins blocked": lambda: _plain_iteration,
    }


def _repeated(inputs: Inputs, iteration: Callable[[Inputs, Tensor], Results]) -> Results:
    codes, centroids = torch.empty(0), inputs.centroids
    for _ in range(inputs.work.iterations):
        codes, centroids = iteration(inputs, centroids)
    return codes, centroids


# --- the codec ---


def _colbert_codes(inputs: Inputs) -> Tensor:
    centroids = inputs.centroids
    step = max(1, 2**29 // len(centroids))
    return torch.cat([(centroids @ part.T).max(0).indices for part in inputs.rows.split(step)])


def _colbert_bytes(rest: Tensor, cutoffs: Tensor, nbits: int) -> Tensor:
    """``ResidualCodec.binarize``, its extension's packing by a sum of powers."""
    buckets = torch.bucketize(rest.float(), cutoffs).to(torch.uint8)
    bits = (buckets.unsqueeze(-1) >> torch.arange(nbits, device=rest.device, dtype=torch.uint8)) & 1
    powers = 2 ** torch.arange(7, -1, -1, device=rest.device, dtype=torch.uint8)
    packed = (bits.reshape(-1, 8) * powers).sum(1, dtype=torch.uint8)
    return packed.reshape(len(rest), -1)


def _colbert_compress(inputs: Inputs) -> Results:
    codes = _colbert_codes(inputs)
    step = 2**18  # the library's own
    residuals = [
        _colbert_bytes(rows - inputs.centroids[of], inputs.cutoffs, inputs.work.nbits)
        for rows, of in zip(inputs.rows.split(step), codes.split(step), strict=True)
    ]
    return codes.int(), torch.cat(residuals)


def contestants(inputs: Inputs) -> dict[str, Callable[[], Call]]:
    """Return how to make each contestant's call; that may fail."""
    work, rows, centroids, nbits = inputs.work, inputs.rows, inputs.centroids, inputs.work.nbits
    if work.kind in ("iteration", "kmeans"):

        def made(make: Callable[[], Callable[[Inputs, Tensor], Results]]) -> Call:
            iteration = make()
            return lambda: _repeated(inputs, iteration)

        found = {who: (lambda make=make: made(make)) for who, make in _iterations(inputs).items()}
        if work.dtype is FP32:
            del found["fastkmeans fp32"]  # as the other
        if work.kind == "kmeans":
            found = {who: make for who, make in found.items() if who in (OURS, "flash-kmeans", "fastkmeans")}
            found["li-plugins kmeans()"] = lambda: (
                lambda: (kmeans(rows, work.centroids, iterations=work.iterations, max_rows_per_cluster=None),)
            )
        return found
    calls: dict[str, Call] = {}
    if work.kind == "assign":
        calls[OURS] = lambda: assign(rows, centroids, by="distance")[:1]
        calls["torch"] = lambda: (_torch_assign(inputs, centroids),)
    elif work.kind == "update":
        calls[OURS] = lambda: cluster_sums(rows, inputs.codes, work.centroids)
        calls["li-plugins blocked"] = lambda: plain_kmeans.SUMS.forward(SumsProblem(rows, inputs.codes, work.centroids))
    elif work.kind == "compress":
        calls[OURS] = lambda: compress(rows, centroids, inputs.cutoffs, nbits=nbits)
        calls["torch as colbert-ai"] = lambda: _colbert_compress(inputs)
        if work.rows <= 1_000_000:
            calls["li-plugins blocked"] = lambda: plain_codec.COMPRESS.forward(
                CompressProblem(rows, centroids, inputs.cutoffs, nbits)
            )
    elif work.kind == "binarize":
        ours: Any = import_module("li_plugins.ops").binarize
        calls[OURS] = lambda: (ours(rows, inputs.cutoffs, nbits=nbits),)
        calls["torch as colbert-ai"] = lambda: (_colbert_bytes(rows, inputs.cutoffs, nbits),)
        calls["li-plugins blocked"] = lambda: (
            plain_codec.BINARIZE.forward(BinarizeProblem(rows, inputs.cutoffs, nbits)),
        )
    else:
        stored = inputs.codes, inputs.residuals, centroids, inputs.weights
        calls[OURS] = lambda: (decompress(*stored, nbits=nbits),)
        calls["li-plugins blocked"] = lambda: (
            plain_codec.DECOMPRESS.forward(DecompressProblem(*stored, nbits, normalized=True)),
        )
    return {who: (lambda call=call: call) for who, call in calls.items()}


# --- errors ---


def farther(inputs: Inputs, codes: Tensor, by_distance: bool) -> float:
    """Return how much farther than the nearest centroid the chosen ones are, relative to the nearest."""
    centroids = inputs.centroids.double()
    half_squares = centroids.square().sum(1) / 2
    nearest = chosen = 0.0
    count = min(SAMPLE, len(inputs.rows))
    for start in range(0, count, BLOCK):
        rows = inputs.rows[start : min(start + BLOCK, count)].double()
        similarities = rows @ centroids.T
        if by_distance:
            similarities -= half_squares
        best = similarities.amax(1).sum()
        own = similarities.gather(1, codes[start : start + len(rows), None].long()).sum()
        total = rows.square().sum()
        nearest += float(total - 2 * best) if by_distance else float(best)
        chosen += float(total - 2 * own) if by_distance else float(own)
    return abs(chosen - nearest) / abs(nearest)


def error_of(inputs: Inputs, found: Results) -> float:
    """Return what the module's docstring calls the error."""
    work = inputs.work
    if work.kind in ("assign", "iteration"):
        return farther(inputs, found[0], by_distance=True)
    if work.kind == "kmeans":
        return 0.0 if bool(found[-1].isfinite().all()) else float("inf")
    if work.kind == "update":
        exact = torch.zeros(work.centroids, work.width, device=inputs.device, dtype=torch.float64)
        for rows, codes in zip(inputs.rows.split(2**18), inputs.codes.split(2**18), strict=True):
            exact.index_add_(0, codes.long(), rows.double())
        return float((found[0].double() - exact).norm() / exact.norm())
    if work.kind == "decompress":
        plain = DecompressProblem(
            inputs.codes, inputs.residuals, inputs.centroids, inputs.weights, work.nbits, normalized=False
        )
        exact = normalize(plain_codec.DECOMPRESS.forward(plain).double(), dim=-1)
        return float((found[0].double() - exact).norm() / exact.norm())
    wrong = total = 0.0
    for start in range(0, len(inputs.rows), 2**18):
        part = slice(start, start + 2**18)
        rest = inputs.rows[part] if work.kind == "binarize" else inputs.rows[part] - inputs.centroids[found[0][part]]
        wrong += float((found[-1][part] != _colbert_bytes(rest, inputs.cutoffs, work.nbits)).sum())
        total += found[-1][part].numel()
    if wrong or work.kind == "binarize":
        return wrong / total
    return farther(inputs, found[0], by_distance=False)


def objective(inputs: Inputs, centroids: Tensor) -> float:
    """Return the mean squared distance of all rows to their nearest centroids, in float32 sums of float32 products."""
    total = 0.0
    for rows in inputs.rows.split(2**18):
        problem = AssignProblem(rows.float(), centroids.float(), by_distance=True)
        _, best = plain_kmeans.ASSIGN.forward(problem)
        total += float((rows.double().square().sum(1) - 2 * best.double()).sum())
    return total / len(inputs.rows)


# --- rows ---


def rates(work: Workload, ms: float) -> dict[str, str]:
    """Return TFLOP/s and GB/s."""
    assigns = work.kind in ("iteration", "assign", "kmeans", "compress")
    operations = 2 * work.rows * work.centroids * work.width * work.iterations if assigns else 0
    row = work.width * work.dtype.itemsize
    packed = work.width * work.nbits // 8
    moved = {"compress": row + packed + 4, "binarize": row + packed, "decompress": row + packed + 4}.get(work.kind, row)
    return {
        "tflops": f"{operations / ms / 1e9:.1f}" if operations else "",
        "gb_per_s": f"{work.rows * moved * work.iterations / ms / 1e6:.0f}",
    }


def rows_of(work: Workload, device: str, who: re.Pattern[str], common: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Time every contestant of a workload that is right; yield rows as they come, with a note of those that fail."""
    inputs = Inputs(work, device)
    step = torch.finfo(work.dtype).eps
    for name, make in contestants(inputs).items():
        if not who.search(name):
            continue
        row = dict.fromkeys(
            ("ms", "p20", "p80", "host_us", "tflops", "gb_per_s", "peak_mib", "error", "objective", "note"), ""
        )
        row = {"workload": work.name, "who": name, **row, **common}
        try:
            call = make()
            found = call()
            error = error_of(inputs, found)
            row["error"] = f"{error:.2e}"
            if work.kind == "kmeans":
                row["objective"] = f"{objective(inputs, found[-1]):.6f}"
            del found
            if not error <= step:
                row["note"] = f"wrong: {step:.2e} is allowed; not timed"
                yield row
                continue
            timing = measure(call, device)
            row |= {
                "ms": f"{timing.median:.4f}",
                "p20": f"{timing.p20:.4f}",
                "p80": f"{timing.p80:.4f}",
                "host_us": f"{timing.host_us:.1f}",
                "peak_mib": f"{peak_mib(call, device):.1f}",
                **rates(work, timing.median),
            }
        except Exception as failure:  # a contestant that is not installed or breaks costs only its own row
            row["note"] = " ".join(f"{type(failure).__name__}: {failure}".split())[:200]
        yield row


def main() -> int:
    """Run the workloads; return 1 when ours has no time somewhere."""
    arguments = parsed(parser(__doc__.partition("\n")[0], "kmeans_codec.csv"))
    common = provenance(arguments.device, arguments.commit)
    right = True
    for work in SMALL if arguments.device == "cpu" else WORKLOADS:
        if not arguments.only.search(work.name):
            continue
        for row in rows_of(work, arguments.device, arguments.who, common):
            save(arguments.output, [row], KEY)
            right &= row["who"] != OURS or bool(row["ms"])
            print(
                f"{row['workload']:52} {row['who']:22} {row['ms'] or '-':>10} ms {row['tflops'] or '-':>6} TFLOP/s",
                f"{row['gb_per_s'] or '-':>5} GB/s {row['peak_mib'] or '-':>8} MiB {row['host_us'] or '-':>8} us host",
                f"error {row['error'] or '-'} {row['objective']} {row['note']}",
                flush=True,
            )
        if arguments.device == "cuda":
            torch.cuda.empty_cache()
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
