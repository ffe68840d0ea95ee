"""Time colbert-ai on a GPU with li-plugins and without: a training step, and search in a million passages.

``python benchmarks/colbert_gpu.py`` writes ``results/colbert_gpu.csv``, one row per workload and side; ``--device cpu``
runs small workloads.

A training step has the library's published sizes: 32 queries of 32 tokens, 64 documents of 220 for each, in-batch
negatives, distillation, autocast to float16. Its loss and gradients are compared with float64 before anything is timed;
with an encoder, with the library's own in float32.

A search begins at the embeddings of a query and ends with its best 100 passages, as lists. ``ms`` is the median of as
many queries as fit into 12 s, 1,000 at most. The scores of both sides are compared with float64, and ``agree``
is which part of the library's best 100 is in ours. The library needs its CUDA extensions for it, which are compiled
before anything is timed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any
from unittest.mock import patch

import colbert_index
import torch
from colbert.data import Queries
from colbert.infra import ColBERTConfig
from colbert.modeling.colbert import ColBERT
from colbert.search.index_storage import IndexScorer
from colbert.searcher import Searcher
from common import RESULTS, installed, provenance, save
from end_to_end import OURS, Case, Contestant, Results, batch, exact_maxsim, outcomes
from torch import Tensor, nn
from torch.nn import functional

import li_plugins

KEY = ("workload", "who", "gpu")
GRAPHS = "LI_PLUGINS_COLBERT_GRAPHS"
COLUMNS = ("ms", "p20", "p80", "p99", "host_us", "peak_mib", "error", "error_gradient", "agree", "note")
SECONDS, FEW, FIRST = 12, 80, 20
"""How long one side searches for one row; how many queries show how much memory they take together; how many searches
of each side are not timed, in which kernels and extensions are loaded."""
BUILD = """
from colbert.indexing.codecs.residual import ResidualCodec
from colbert.search.index_storage import IndexScorer
from colbert.search.strided_tensor import StridedTensor
from colbert.modeling.colbert import ColBERT
for owner in (ResidualCodec, IndexScorer, StridedTensor, ColBERT):
    owner.try_load_torch_extensions({use_gpu})
"""


@contextmanager
def patched() -> Iterator[None]:
    """Patch."""
    li_plugins.enable("colbert", strict=True)
    try:
        yield
    finally:
        li_plugins.disable_all()


@contextmanager
def without_graphs() -> Iterator[None]:
    """Patch, with no CUDA graphs of searches, as where other threads run."""
    with patch.dict(os.environ, {GRAPHS: "0"}), patched():
        yield


def contestants() -> list[Contestant]:
    """Return both sides."""
    version = f"colbert-ai {installed('colbert-ai')}"
    return [Contestant("colbert-ai", nullcontext, version), Contestant(OURS, patched, version)]


class Given(ColBERT):
    """A model whose embeddings are given: what its ``forward`` does after the encoder."""

    def __init__(self, config: Any) -> None:
        nn.Module.__init__(self)
        self.colbert_config, self.use_gpu = config, torch.cuda.is_available()

    def query(self, embeddings: Tensor) -> Tensor:
        """Return what was given."""
        return embeddings

    def doc(self, embeddings: Tensor, mask: Tensor, keep_dims: Any = True) -> tuple[Tensor, Tensor]:
        """Return what was given."""
        return embeddings, mask


def recipe(nway: int) -> Any:
    """Return the library's settings for training."""
    return ColBERTConfig(nway=nway, use_ib_negatives=True, query_maxlen=32, doc_maxlen=220, dim=128)


def total(scores: Tensor, ib_loss: Tensor, teacher: Tensor) -> Tensor:
    """Return the loss of the library's loop: distillation and in-batch negatives."""
    logits = scores.view(teacher.shape).log_softmax(-1)
    return functional.kl_div(logits, teacher.to(logits), reduction="batchmean", log_target=True) + ib_loss


def loss_step(size: int, nway: int, length: int, device: str) -> Case:
    """Forward and backward from embeddings: the loss and both gradients."""
    half = torch.float16 if device == "cuda" else torch.float32
    queries = batch(size, 32, dtype=torch.float32, device=device).requires_grad_()
    documents = batch(size * nway, length, dtype=half, device=device).requires_grad_()
    lengths = torch.randint(length // 2, length + 1, (size * nway, 1), device=device)
    mask = (torch.arange(length, device=device) < lengths)[..., None]
    teacher = torch.randn(size, nway, device=device).log_softmax(-1)
    model = Given(recipe(nway))

    def call() -> Results:
        with torch.autocast(device, half, enabled=device == "cuda"):
            loss = total(*model((queries,), (documents, mask)), teacher)
        return loss.detach(), *torch.autograd.grad(loss, (queries, documents))

    def exact() -> Results:
        leaves = [side.detach().double().requires_grad_() for side in (queries, documents)]
        scores = exact_maxsim(*leaves, mask.squeeze(-1))
        own = scores.view(size, size, nway).diagonal().T
        first = torch.arange(size, device=device) * nway
        column = torch.arange(size * nway, device=device)
        left_out = (column > first[:, None]) & (column < first[:, None] + nway)
        ib_loss = functional.cross_entropy(scores.masked_fill(left_out, -torch.inf), first)
        loss = total(own.reshape(-1), ib_loss, teacher)
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    return Case(call, exact, half)


def whole_step(size: int, nway: int, length: int, device: str, root: Path) -> Case:
    """Forward and backward with a small encoder: the loss and the gradients of two of its weights."""
    config = ColBERTConfig.from_existing(recipe(nway), ColBERTConfig(checkpoint=str(encoder(root))))
    with patched():  # to make a model by itself compiles on a machine without a GPU
        model = ColBERT(config.checkpoint, config)
    model.train(False)  # no dropout: both sides compute the same
    ids = [torch.randint(1000, 30_000, shape, device=device) for shape in ((size, 32), (size * nway, length))]
    lengths = torch.randint(length // 2, length + 1, (size * nway, 1), device=device)
    attention = (torch.arange(length, device=device) < lengths).long()
    inputs = (ids[0], torch.ones_like(ids[0])), (ids[1] * attention, attention)
    teacher = torch.randn(size, nway, device=device).log_softmax(-1)
    weights = model.linear.weight, model.bert.encoder.layer[0].output.dense.weight
    own = model.use_gpu

    def run(precise: bool) -> Results:
        model.use_gpu = own and not precise
        with torch.autocast(device, torch.float16, enabled=model.use_gpu):
            loss = total(*model(*inputs), teacher)
        return loss.detach(), *torch.autograd.grad(loss, weights)

    def exact() -> Results:
        with li_plugins.suspended():
            return run(precise=True)

    return Case(lambda: run(precise=False), exact, torch.float16 if device == "cuda" else torch.float32)


def encoder(root: Path) -> Path:
    """Write a random BERT of two layers with a tokenizer of as many words as BERT's."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = root / "encoder"
    folder.mkdir(parents=True, exist_ok=True)
    special = ["[PAD]", *(f"[unused{number}]" for number in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    marks = [chr(code) for code in range(33, 127) if not chr(code).isalnum()]
    words = [f"w{number}" for number in range(30_522 - len(special) - len(marks))]
    (folder / "vocab.txt").write_text("\n".join([*special, *marks, *words]) + "\n")
    BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    BertModel(BertConfig(**sizes)).save_pretrained(folder)
    return folder


class Extensions:
    """The library's extensions, compiled by a child so that nothing of it is left here."""

    def __init__(self, use_gpu: bool, seconds: float = 300) -> None:
        self._use_gpu, self._refusal = use_gpu, ""
        command = [sys.executable, "-c", BUILD.format(use_gpu=use_gpu)]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            self._refusal = f"its extensions are not compiled in {seconds:.0f} s"
            return
        if done.returncode:
            print(done.stdout, file=sys.stderr)
            self._refusal = f"its extensions do not compile: {done.stdout.strip().splitlines()[-1][:120]}"

    def load(self) -> None:
        """Load them.

        Raises
        ------
        RuntimeError
            They were not compiled.
        """
        if self._refusal:
            raise RuntimeError(self._refusal)
        exec(BUILD.format(use_gpu=self._use_gpu), {})


class Search:
    """An index and queries, and what each side makes of them."""

    def __init__(self, passages: int, centroids: int, asked: int, device: str, folder: Path) -> None:
        begin = time.perf_counter()
        self._folder, self._device = folder / "index", device
        self.made = colbert_index.make(self._folder, passages, centroids, device)
        self.queries, self.sought = colbert_index.queries(self.made, asked)
        print(f"# an index of {len(self.made.codes)} tokens [{time.perf_counter() - begin:.0f} s]", flush=True)

    def rows(self, k: int, extensions: Extensions) -> Iterator[tuple[str, str, dict[str, str]]]:
        """Yield workload, who and cells of each row, ours first."""
        sides: list[tuple[str, Callable[[], AbstractContextManager[Any]]]] = [
            (OURS, patched),
            (f"{OURS}, no graphs", without_graphs),
            ("colbert-ai", nullcontext),
        ]
        ours: list[list[int]] = []
        for who, active in sides:
            try:
                if not who.startswith(OURS):
                    extensions.load()
                with active():
                    for workload, cells, pids in self._side(k):
                        if who == OURS:
                            ours = pids
                        elif ours:
                            cells["agree"] = f"{_overlap(ours, pids):.4f}"
                        yield workload, who, cells
            except (RuntimeError, torch.OutOfMemoryError) as error:
                yield self._name("search", k), who, {"note": f"fails: {error}"}

    def _side(self, k: int) -> Iterator[tuple[str, dict[str, str], list[list[int]]]]:
        searcher = Searcher.__new__(Searcher)
        searcher.config = ColBERTConfig(dim=128, nbits=2, query_maxlen=32)
        begin = time.perf_counter()
        before = torch.cuda.memory_allocated() if self._device == "cuda" else 0
        searcher.ranker = IndexScorer(str(self._folder), use_gpu=self._device == "cuda")
        loaded = time.perf_counter() - begin
        holds = torch.cuda.memory_allocated() - before if self._device == "cuda" else 0
        for number in range(FIRST):
            searcher.dense_search(self.queries[number : number + 1], k)
        times, found, error = [], [], 0.0
        until = time.perf_counter() + SECONDS
        for number in range(len(self.queries)):
            query = self.queries[number : number + 1]
            start = time.perf_counter()
            pids, _, scores = searcher.dense_search(query, k)
            times.append((time.perf_counter() - start) * 1000)
            found.append(pids)
            if number < 16:
                error = max(error, self._error(query, pids, scores))
            if time.perf_counter() > until and number >= 50:
                break
        hits = sum(pids[0] == sought for pids, sought in zip(found, self.sought.tolist(), strict=False)) / len(found)
        if hits < 0.9 or error > 2e-3:
            raise RuntimeError(f"finds {hits:.3f} of the passages that were asked for, with an error of {error:.1e}")
        note = f"{len(times)} queries, {hits:.3f} hit; loaded in {loaded:.1f} s, {holds / 2**20:.0f} MiB on the GPU"
        if self._device == "cuda":
            note += f", then {(torch.cuda.memory_allocated() - before) / 2**20:.0f}"
        peak = self._peak(partial(searcher.dense_search, self.queries[:1], k))
        cells = {**_summary(times), "peak_mib": peak, "error": f"{error:.1e}", "note": note}
        yield self._name("search", k), cells, found
        if os.environ.get(GRAPHS) == "0":
            return  # several queries together take the same way
        count = min(len(times), len(self.queries))
        asked, embedded = Queries(data=dict.fromkeys(range(count), "")), self.queries[:count]
        some = Queries(data=dict.fromkeys(range(min(count, FEW)), ""))
        # it is the first call too, which compiles and loads kernels
        start = time.perf_counter()
        peak = self._peak(partial(searcher._search_all_Q, some, embedded[:FEW], k))
        first = time.perf_counter() - start
        searcher._search_all_Q(asked, embedded, k)  # whose batches have shapes of their own
        start = time.perf_counter()
        rankings = searcher._search_all_Q(asked, embedded, k)
        each = (time.perf_counter() - start) * 1000 / count
        together = [[pid for pid, _, _ in rows] for rows in rankings.data.values()]
        found_too = f"{_overlap(together, found):.4f} of what they find one by one"
        note = f"{count} queries, each; {found_too}"
        if peak:
            note += f"; the first call, of {len(some)}, took {first * 1000:.0f} ms"
        yield self._name("search_all", k), {"ms": f"{each:.3f}", "peak_mib": peak, "note": note}, found

    def _name(self, what: str, k: int) -> str:
        return f"{what} {len(self.made.offsets) - 1} passages, k {k}"

    def _error(self, query: Tensor, pids: list[int], scores: list[float]) -> float:
        """Return the relative error of a ranking's scores against float64."""
        exact = []
        for pid in pids:
            rows = torch.arange(*self.made.offsets[pid : pid + 2].tolist(), device=self.made.codes.device)
            similarities = query[0].double() @ colbert_index.decoded(self.made, rows).T
            exact.append(similarities.amax(1).sum())
        truth = torch.stack(exact)
        return float((torch.tensor(scores, device=truth.device) - truth).norm() / truth.norm())

    def _peak(self, call: Callable[[], Any]) -> str:
        if self._device != "cuda":
            return ""
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return f"{(torch.cuda.max_memory_allocated() - before) / 2**20:.1f}"


def _overlap(mine: list[list[int]], theirs: list[list[int]]) -> float:
    """Return which part of each ranking is in its twin, on average; the longer of both lists ends with the other."""
    parts = [len(set(a) & set(b)) / len(b) for a, b in zip(mine, theirs, strict=False)]
    return sum(parts) / len(parts)


def _summary(times: list[float]) -> dict[str, str]:
    cuts = quantiles(times, n=100)
    return {"ms": f"{cuts[49]:.3f}", "p20": f"{cuts[19]:.3f}", "p80": f"{cuts[79]:.3f}", "p99": f"{cuts[98]:.3f}"}


def steps(device: str, root: Path) -> Mapping[str, Callable[[], Case]]:
    """Return the training steps that are timed."""
    size, nway, length = (32, 64, 220) if device == "cuda" else (3, 4, 40)
    name = f"{size} x {nway}, Ld {length}"
    return {
        f"loss step {name}": partial(loss_step, size, nway, length, device),
        f"whole step {name}": partial(whole_step, size, nway, length, device, root),
    }


def main() -> int:
    """Run the benchmark; return 1 where ours is wrong or did not run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: small workloads, printed only")
    parser.add_argument("--only", type=re.compile, default=re.compile(""), help="regular expression on the workload")
    parser.add_argument("--output", type=Path, default=RESULTS / "colbert_gpu.csv")
    parser.add_argument("--commit", help="commit for the rows, where there is no checkout")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device was found; --device cpu runs a few small workloads")
    common, begin, is_right = provenance(options.device, options.commit), time.monotonic(), True

    def write(workload: str, who: str, cells: Mapping[str, str]) -> None:
        version = contestants()[0].version
        row = {"workload": workload, "who": who, **{name: cells.get(name, "") for name in COLUMNS}}
        print(
            f"{workload:40s} {who:18s} {row['ms']:>9} ms p99 {row['p99']:>8} {row['peak_mib']:>9} MiB",
            f"error {row['error']:>7} {row['error_gradient']:>7} agree {row['agree'] or '-'} {row['note']}",
            f"[{time.monotonic() - begin:.0f} s]",
            flush=True,
        )
        if options.device == "cuda":
            save(options.output, [{**row, "version": version, **common}], KEY)

    with tempfile.TemporaryDirectory() as folder:
        does_search = options.only.search("search")
        extensions = Extensions(options.device == "cuda") if does_search else None
        for name, make in steps(options.device, Path(folder)).items():
            if options.only.search(name):
                torch.manual_seed(0)
                is_right &= _steps(name, make(), options.device, write)
        if extensions is not None:
            passages, centroids, asked = (1_000_000, 2**17, 1_000) if options.device == "cuda" else (2_000, 2**10, 60)
            search = Search(passages, centroids, asked, options.device, Path(folder))
            for workload, who, cells in search.rows(100, extensions):
                write(workload, who, cells)
                is_right &= not who.startswith(OURS) or bool(cells.get("ms"))
    return int(not is_right)


def _steps(name: str, case: Case, device: str, write: Callable[..., None]) -> bool:
    """Time a training step on both sides; return whether ours is right."""
    sides = contestants()
    rows = outcomes(name, sides[0].name, sides, case, device)
    for who, cells in rows.items():
        write(name, who, cells)
    return bool(rows.get(OURS, {}).get("ms"))


if __name__ == "__main__":
    sys.exit(main())
