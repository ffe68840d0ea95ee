"""Time what is small: PyLate's calls on a few texts, the step from a patched function to ours, and ``import torch``.

``python benchmarks/small_calls.py`` writes ``results/small_calls.csv``: microseconds of processor time on one core, so
that what else runs on the machine counts little. Run it where the distribution is installed; both sides are compared
first, and nothing wrong is timed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import RESULTS, installed, provenance, save
from torch import Tensor

import li_plugins
from li_plugins.api import Target
from li_plugins.host import patch

ROUNDS = 15
"""Times a measurement is repeated, the sides in turn; the row has the fastest and the median."""


def unit(*shape: int) -> Tensor:
    """Return unit vectors."""
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


def calls() -> dict[str, Callable[[], Any]]:
    """Return what is timed with PyLate, by a name that does not change."""
    scores, rank = import_module("pylate.scores"), import_module("pylate.rank.rank")
    found: dict[str, Callable[[], Any]] = {}

    def cross(queries: int, documents: int, length: int) -> None:
        pair = unit(queries, 32, 128), unit(documents, length, 128)
        mask = torch.rand(documents, length) < 0.8
        name = f"colbert_scores {queries} x {documents}, Ld {length}"
        found[name] = lambda: scores.colbert_scores(*pair)
        found[f"{name}, masked"] = lambda: scores.colbert_scores(*pair, None, mask)
        leaves = [side.clone().requires_grad_() for side in pair]
        found[f"{name}, masked, with gradients"] = lambda: torch.autograd.grad(
            scores.colbert_scores(*leaves, None, mask).sum(), leaves
        )[0]

    for sizes in ((1, 1, 180), (1, 10, 180), (4, 4, 24), (8, 16, 180)):
        cross(*sizes)
    candidates, mask = unit(2, 4, 48, 128), torch.rand(2, 4, 48) < 0.8
    queries = unit(2, 32, 128)
    found["colbert_kd_scores 2 x 4, Ld 48, masked"] = lambda: scores.colbert_kd_scores(queries, candidates, None, mask)
    lengths = torch.randint(20, 180, (100,)).tolist()
    documents = [unit(length, 128) for length in lengths]
    pairs = [unit(32, 128) for _ in range(16)]
    found["colbert_scores_pairwise 16"] = lambda: scores.colbert_scores_pairwise(pairs, documents[:16])
    arrays, query = [document.numpy() for document in documents], [unit(32, 128).numpy()]

    def reranking(count: int) -> Callable[[], Tensor]:
        def call() -> Tensor:
            (row,) = rank.rerank([list(range(count))], query, [arrays[:count]])
            return torch.tensor([result["score"] for result in row])

        return call

    return found | {f"rank.rerank 1 x {count}": reranking(count) for count in (1, 10, 100)}


def microseconds(call: Callable[[], Any], repeats: int) -> float:
    """Return the processor time of one call."""
    start = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - start) / repeats * 1e6


def compared(call: Callable[[], Any]) -> dict[str, list[float]]:
    """Time a call patched and unpatched, in turn."""
    call()
    repeats = max(5, min(200, int(20_000 / microseconds(call, 5))))
    times: dict[str, list[float]] = {"PyLate": [], "PyLate + li-plugins": []}
    for _ in range(ROUNDS):
        times["PyLate + li-plugins"].append(microseconds(call, repeats))
        with li_plugins.suspended():
            times["PyLate"].append(microseconds(call, repeats))
    return times


def trampoline() -> dict[str, list[float]]:
    """Time a patched function that does nothing, and its replacement called directly."""
    with tempfile.TemporaryDirectory() as folder:
        parameters = "queries, documents, queries_mask=None, documents_mask=None, backend=None"
        for name, value in (("nothing_lib", 1), ("nothing_ours", 2)):
            Path(folder, f"{name}.py").write_text(f"def f({parameters}):\n    return {value}\n")
        sys.path.insert(0, folder)
        library, ours = import_module("nothing_lib"), import_module("nothing_ours")
        sys.path.remove(folder)
    target = Target("nothing_lib:f", "nothing_ours:f")
    record = patch.apply("nothing", target, ours.f, version="0", untested=True, on_decline=lambda *_: None)
    try:
        sides = {"through the patch": library.f, "the replacement": ours.f}
        assert library.f(1, 2) == 2
        return {
            side: [
                microseconds(lambda function=function: function(1, 2, documents_mask=3), 5000) for _ in range(ROUNDS)
            ]
            for side, function in sides.items()
        }
    finally:
        patch.undo(record)


def imports() -> Iterator[tuple[str, list[float]]]:
    """Time ``import torch`` in fresh processes, the variable unset: as installed, and with no entry point to find."""
    code = "import time; start = time.process_time(); import torch; print((time.process_time() - start) * 1e6)"
    blind = (
        "import importlib.metadata as m; found = m.entry_points; "
        "m.entry_points = lambda **k: () if k.get('group') == 'torch.backends' else found(**k); "
    )
    sides: dict[str, list[float]] = {"li-plugins installed": [], "no entry point to be found": []}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LI_PLUGINS")}
    for _ in range(ROUNDS):
        for side, prefix in zip(sides, ("import importlib.metadata; ", blind), strict=True):
            done = subprocess.run(
                [sys.executable, "-c", prefix + code], env=environment, capture_output=True, text=True, check=True
            )
            sides[side].append(float(done.stdout))
    yield from sides.items()


def main() -> None:
    """Time and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "small_calls.csv")
    parser.add_argument("--commit", help="commit for the rows, where there is no checkout")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows: list[dict[str, str]] = []

    def add(what: str, who: str, times: list[float]) -> None:
        fastest, middle = f"{min(times):.2f}", f"{median(times):.2f}"
        versions = {"pylate": installed("pylate"), **provenance("cpu", options.commit)}
        rows.append({"what": what, "who": who, "fastest_us": fastest, "median_us": middle, **versions})
        print(f"{what:55s} {who:30s} {fastest:>12s} us, median {middle:>12s} us", flush=True)

    li_plugins.enable("pylate", strict=True)
    for name, call in calls().items():
        found = call()
        with li_plugins.suspended():
            difference = (found - call()).abs().max().item()
        if not difference < 1e-4:
            print(f"{name}: differs by {difference:.1e}, not timed")
            continue
        for side, times in compared(call).items():
            add(name, side, times)
    li_plugins.disable_all()
    for side, times in trampoline().items():
        add("a function that does nothing", side, times)
    for side, times in imports():
        add("import torch, LI_PLUGINS unset", side, times)
    save(options.output, rows, ("what", "who", "gpu"))


if __name__ == "__main__":
    main()
