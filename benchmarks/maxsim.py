"""Time MaxSim against its peers in one process: forwards, training steps, reranking; nothing wrong is timed.

``python benchmarks/maxsim.py [--quick] [--only REGEX]`` writes ``results/maxsim.csv``, one row per workload and
contestant: this project, late-interaction-kernels, flash-maxsim (where they can be imported), PyLate's own einsum and
the same under ``torch.compile``.

A contestant's scores, and its gradients in a step, are first compared with float64. The relative error of each tensor
as a whole may be one rounding step of the inputs' dtype, or torch's own error in that dtype up to four steps; otherwise
the contestant gets no row. torch itself is what the libraries run: it is timed whatever its error.

``ms`` is what a user waits for on that machine; ``graph_ms`` is the call replayed as a CUDA graph, without its host.

TFLOP/s counts ``2 * pairs * Lq * Ld * d`` for a forward and three times that for a step, over true lengths. GB/s counts
each embedding once, read, and in a step also its gradient, written.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from common import graph_ms, measure, parsed, parser, peak_mib, provenance, save
from torch import Tensor
from torch.nn import functional

from li_plugins.ops import maxsim, maxsim_packed, smooth_maxsim

Call = Callable[[Tensor, Tensor], Tensor]
KEY = ("workload", "who", "gpu")
EXACT_ELEMENTS = 2**27
"""Most similarities that the float64 reference holds at a time."""


@dataclass(frozen=True)
class Workload:
    """``a`` queries of ``lq`` tokens against ``b`` documents of ``ld``; with ``candidates``, ``b`` for each query.

    ``loss`` makes it a training step: ``ce`` (cross entropy at temperature 0.02), ``kd`` (KL divergence from a teacher)
    or ``pairwise`` (softplus of the hardest negative minus the positive). ``shortest`` makes documents ragged. With
    ``tau`` the maximum is smooth, as in colpali-engine's losses.
    """

    a: int
    b: int
    lq: int
    ld: int
    d: int = 128
    loss: str = ""
    candidates: bool = False
    shortest: int = 0
    tau: float = 0.0
    dtype: torch.dtype = torch.bfloat16
    quick: bool = False

    @property
    def name(self) -> str:
        """A name that does not change."""
        lengths = f"Ld {self.shortest}-{self.ld}" if self.shortest else f"Ld {self.ld}"
        kind = f"{self.loss} step" if self.loss else "packed forward" if self.shortest else "forward"
        kind = f"smooth {kind}" if self.tau else kind
        width = "" if self.d == 128 else f" d {self.d}"
        dtype = "" if self.dtype is torch.bfloat16 else f" {str(self.dtype).removeprefix('torch.')}"
        return (
            f"{kind} {self.a}x{self.b}{' candidates' if self.candidates else ''} Lq {self.lq} {lengths}{width}{dtype}"
        )


WORKLOADS = (
    Workload(256, 512, 32, 180, quick=True),
    Workload(1024, 2048, 32, 256),
    Workload(64, 64, 32, 1030),
    Workload(256, 256, 32, 1030),
    Workload(256, 512, 32, 180, d=96),
    Workload(256, 512, 32, 180, d=48),
    Workload(32, 32, 1030, 1030),
    Workload(16, 10_000, 32, 180),
    Workload(16, 2_000, 32, 1030),
    Workload(1, 1_000, 32, 300, quick=True),
    Workload(1, 10_000, 32, 300),
    Workload(1, 100, 32, 180),
    Workload(1, 1_000, 32, 220, shortest=20, quick=True),
    Workload(1, 10_000, 32, 220, shortest=20),
    Workload(64, 32, 32, 256, candidates=True),
    Workload(256, 16, 32, 1030, candidates=True),
    Workload(256, 512, 32, 180, loss="ce", quick=True),
    Workload(1024, 2048, 32, 256, loss="ce"),
    Workload(256, 256, 32, 1030, loss="ce"),
    Workload(32, 32, 1030, 1030, loss="ce"),
    Workload(64, 32, 32, 256, loss="kd", candidates=True, quick=True),
    Workload(256, 16, 32, 1030, loss="kd", candidates=True),
    Workload(256, 256, 32, 1030, loss="pairwise"),
    Workload(256, 512, 32, 180, dtype=torch.float32),
    Workload(64, 64, 32, 1030, tau=0.1),
    Workload(64, 64, 32, 1030, tau=0.1, loss="ce", quick=True),
    Workload(64, 64, 32, 1030, tau=0.1, loss="pairwise"),
)
SMALL = (
    Workload(8, 16, 32, 180),
    Workload(1, 100, 32, 220, shortest=20),
    Workload(4, 4, 32, 64, candidates=True, loss="kd"),
    Workload(8, 16, 32, 64, loss="ce"),
    Workload(8, 16, 32, 64, tau=0.1, loss="ce"),
)
"""For a CPU, which has nothing to prove here: that the script runs."""


class Inputs:
    """Random unit embeddings of a workload, and where its ragged documents begin."""

    def __init__(self, work: Workload, device: str) -> None:
        random = torch.Generator(device).manual_seed(0)

        def unit(*shape: int) -> Tensor:
            rows = torch.randn(shape, generator=random, device=device, dtype=torch.float32)
            return functional.normalize(rows, dim=-1).to(work.dtype)

        self.work, self.device = work, device
        self.queries = unit(work.a, work.lq, work.d)
        self.teacher = torch.randn(work.a, work.b, generator=random, device=device).log_softmax(-1)
        self.lengths = torch.full((work.b,), work.ld, device=device)
        if work.shortest:
            self.lengths = torch.randint(work.shortest, work.ld + 1, (work.b,), generator=random, device=device)
            self.lengths[0] = work.ld
        self.offsets = functional.pad(self.lengths.cumsum(0), (1, 0))
        if work.shortest:
            self.documents = unit(int(self.offsets[-1]), work.d)
            items = torch.repeat_interleave(torch.arange(work.b, device=device), self.lengths)
            self.padded = self.documents.new_zeros(work.b, work.ld, work.d)
            self.padded[items, torch.arange(len(items), device=device) - self.offsets[items]] = self.documents
        else:
            self.documents = unit(*((work.a, work.b) if work.candidates else (work.b,)), work.ld, work.d)

    @property
    def tokens(self) -> int:
        """Document tokens that a query meets, all of them together."""
        return self.work.b * self.work.ld if self.work.candidates else int(self.lengths.sum())

    def loss(self, scores: Tensor) -> Tensor:
        """Return the loss of a step."""
        scores = scores if scores.dtype is torch.float64 else scores.float()
        if self.work.loss == "kd":
            return functional.kl_div(scores.log_softmax(-1), self.teacher.to(scores), log_target=True, reduction="sum")
        if self.work.loss == "pairwise":
            hardest = (scores - 1e6 * torch.eye(*scores.shape, device=scores.device, dtype=scores.dtype)).amax(-1)
            return functional.softplus(hardest - scores.diagonal()).mean()
        return functional.cross_entropy(scores / 0.02, torch.arange(len(scores), device=scores.device))


def einsum(queries: Tensor, documents: Tensor, tau: float = 0.0) -> Tensor:
    """PyLate's own computation without masks, colpali-engine's with ``tau``: the whole grid in the inputs' dtype."""
    equation = "ash,bth->abst" if documents.dim() == 3 else "ash,abth->abst"
    return maximum(torch.einsum(equation, queries, documents), tau).sum(-1)


def maximum(grid: Tensor, tau: float) -> Tensor:
    """Return the maximum over document tokens, smooth at a temperature that is not 0."""
    return tau * torch.logsumexp(grid / tau, -1) if tau else grid.max(-1).values


def contestants(inputs: Inputs, who: re.Pattern[str]) -> Iterator[tuple[str, Call]]:
    """Yield the contestants that can be imported and serve the workload; torch first, its error is the budget."""
    work = inputs.work
    library = partial(einsum, tau=work.tau)
    found: dict[str, Callable[[], Call]] = {"torch": lambda: _torch(inputs, library)}
    found["li-plugins"] = lambda: _ours(inputs)
    if not work.tau:
        found["late-interaction-kernels"] = lambda: _late_interaction_kernels(inputs, "auto")
        found["flash-maxsim"] = lambda: _flash_maxsim(inputs)
    if work.loss and not work.tau:
        found["late-interaction-kernels unified"] = lambda: _late_interaction_kernels(inputs, "unified")
        found["late-interaction-kernels lowmem"] = lambda: _late_interaction_kernels(inputs, "lowmem")
    found["torch.compile"] = lambda: _compiled(inputs, library)
    for name, make in found.items():
        if not who.search(name):
            continue
        try:
            yield name, make()
        except ImportError as error:
            print(f"# {name} cannot be imported: {error}", file=sys.stderr)


def _torch(inputs: Inputs, function: Call) -> Call:
    if inputs.work.shortest:
        return lambda queries, _: function(queries, inputs.padded)
    return function


def _compiled(inputs: Inputs, function: Call) -> Call:
    torch.compiler.reset()  # after eight shapes of one function Dynamo compiles no more, and says so to the log alone
    return _torch(inputs, torch.compile(function, dynamic=False))


def _ours(inputs: Inputs) -> Call:
    work = inputs.work
    if work.tau:
        return lambda queries, documents: smooth_maxsim(queries, documents, tau=work.tau, out_dtype=torch.float32)
    if not work.shortest:
        return lambda queries, documents: maxsim(queries, documents, out_dtype=torch.float32)
    query_offsets = torch.arange(work.a + 1, device=inputs.device) * work.lq
    return lambda queries, documents: maxsim_packed(
        queries.flatten(0, 1),
        documents,
        query_offsets,
        inputs.offsets,
        out_dtype=torch.float32,
        max_query_length=work.lq,
        max_document_length=work.ld,
    )


def _late_interaction_kernels(inputs: Inputs, backward: str) -> Call:
    peer: Any = import_module("late_interaction_kernels")
    work = inputs.work
    if not work.shortest:
        return lambda queries, documents: peer.maxsim(queries, documents, backward=backward)
    query_offsets = torch.arange(work.a + 1, device=inputs.device, dtype=torch.int32) * work.lq
    offsets = inputs.offsets.int()
    return lambda queries, documents: peer.maxsim_varlen(
        queries.flatten(0, 1), documents, query_offsets, offsets, work.lq, work.ld
    )


def _flash_maxsim(inputs: Inputs) -> Call:
    peer: Any = import_module("flash_maxsim")
    work = inputs.work
    if work.shortest:
        offsets = inputs.offsets.int()
        return lambda queries, documents: peer.flash_maxsim_packed(queries[0], documents, offsets, work.ld)[None]
    if work.loss:
        return lambda q, d: peer.flash_maxsim_batched_train(q, d, shared_docs=not work.candidates)
    return lambda q, d: peer.flash_maxsim_batched(q, d, shared_docs=not work.candidates)


def run(inputs: Inputs, call: Call) -> tuple[Tensor, ...]:
    """Return the scores, and the gradients of a step."""
    if not inputs.work.loss:
        with torch.no_grad():
            return (call(inputs.queries, inputs.documents),)
    leaves = [side.detach().requires_grad_() for side in (inputs.queries, inputs.documents)]
    scores = call(*leaves)
    return scores.detach(), *torch.autograd.grad(inputs.loss(scores), leaves)


def exact(inputs: Inputs) -> tuple[Tensor, ...]:
    """Return the same in float64, a few queries at a time."""
    work = inputs.work
    documents = (inputs.padded if work.shortest else inputs.documents).double()
    queries = inputs.queries.double()
    exists = torch.arange(work.ld, device=inputs.device) < inputs.lengths[:, None]
    chunk = max(1, EXACT_ELEMENTS // (work.b * work.lq * work.ld))
    chunks = [slice(start, start + chunk) for start in range(0, work.a, chunk)]

    def part(queries: Tensor, documents: Tensor) -> Tensor:
        equation = "ash,bth->abst" if documents.dim() == 3 else "ash,abth->abst"
        grid = torch.einsum(equation, queries, documents)
        return maximum(grid.masked_fill(~exists[:, None], -torch.inf), work.tau).sum(-1)

    def documents_of(these: slice) -> Tensor:
        return documents[these] if work.candidates else documents

    scores = torch.cat([part(queries[these], documents_of(these)) for these in chunks])
    if not work.loss:
        return (scores,)
    leaf = scores.detach().requires_grad_()
    (grad_scores,) = torch.autograd.grad(inputs.loss(leaf), leaf)
    grad_queries, grad_documents = torch.zeros_like(queries), torch.zeros_like(documents)
    for these in chunks:
        leaves = queries[these].detach().requires_grad_(), documents_of(these).detach().requires_grad_()
        gradients = torch.autograd.grad(part(*leaves), leaves, grad_scores[these])
        grad_queries[these] = gradients[0]
        documents_of_grad = grad_documents[these] if work.candidates else grad_documents
        documents_of_grad += gradients[1]
    return scores, grad_queries, grad_documents


def errors(found: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> list[float]:
    """Return the relative error of each tensor as a whole; infinite where it is not a number."""
    relative = [float((ours.double() - right).norm() / right.norm()) for ours, right in zip(found, truth, strict=True)]
    return [error if error == error else float("inf") for error in relative]


def rows(work: Workload, device: str, who: re.Pattern[str], common: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Time every contestant of a workload that is right; yield its rows as they come."""
    inputs = Inputs(work, device)
    truth = exact(inputs)
    step = torch.finfo(work.dtype).eps
    budget = [step] * len(truth)
    try:
        budget = [
            max(step, min(4 * step, own))
            for own in errors(run(inputs, _torch(inputs, partial(einsum, tau=work.tau))), truth)
        ]
    except torch.OutOfMemoryError:
        print(f"# {work.name}: torch does not fit into memory", file=sys.stderr)
    for name, call in contestants(inputs, who):
        try:
            found = errors(run(inputs, call), truth)
        except torch.OutOfMemoryError:
            print(f"# {work.name}: {name} does not fit into memory", file=sys.stderr)
            continue
        except Exception as error:  # a peer's own failure costs it its row, not ours
            if name == "li-plugins":
                raise
            print(f"# {work.name}: {name} fails: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        is_library = name.startswith("torch")
        if not is_library and any(error > allowed for error, allowed in zip(found, budget, strict=True)):
            print(f"# {work.name}: {name} is wrong by {found}, allowed is {budget}; not timed", file=sys.stderr)
            continue
        timing = measure(lambda call=call: run(inputs, call), device)
        replayed = graph_ms(lambda call=call: run(inputs, call)) if device == "cuda" and timing.median < 60 else None
        passes = 3 if work.loss else 1
        operations = 2 * passes * work.a * inputs.tokens * work.lq * work.d
        elements = (inputs.queries.numel() + inputs.documents.numel()) * (2 if work.loss else 1)
        yield {
            "workload": work.name,
            "who": name,
            "ms": f"{timing.median:.4f}",
            "p20": f"{timing.p20:.4f}",
            "p80": f"{timing.p80:.4f}",
            "host_us": f"{timing.host_us:.1f}",
            "graph_ms": "" if replayed is None else f"{replayed:.4f}",
            "tflops": f"{operations / timing.median / 1e9:.1f}",
            "gb_per_s": f"{elements * inputs.queries.element_size() / timing.median / 1e6:.0f}",
            "peak_mib": f"{peak_mib(lambda call=call: run(inputs, call), device):.1f}",
            "error": f"{max(found):.2e}",
            **common,
        }


def main() -> int:
    """Run the workloads; return 1 when our own numbers were wrong somewhere."""
    options = parser(__doc__.partition("\n")[0], "maxsim.csv")
    options.add_argument("--quick", action="store_true", help="one workload of each kind")
    arguments = parsed(options)
    common = provenance(arguments.device, arguments.commit)
    workloads = SMALL if arguments.device == "cpu" else WORKLOADS
    right = True
    for work in workloads:
        if not arguments.only.search(work.name) or (arguments.quick and workloads is WORKLOADS and not work.quick):
            continue
        names = []
        for row in rows(work, arguments.device, arguments.who, common):
            names.append(row["who"])
            save(arguments.output, [row], KEY)
            print(
                f"{row['workload']:48} {row['who']:34} {row['ms']:>9} ms {row['tflops']:>6} TFLOP/s",
                f"{row['gb_per_s']:>5} GB/s {row['peak_mib']:>8} MiB {row['host_us']:>7} us host",
                f"{row['graph_ms'] or '-':>8} ms graph  error {row['error']}",
                flush=True,
            )
        right &= "li-plugins" in names or not arguments.who.search("li-plugins")
        if arguments.device == "cuda":
            torch.cuda.empty_cache()
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
