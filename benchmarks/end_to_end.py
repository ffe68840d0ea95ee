"""What the benchmarks of whole libraries share: contestants in one process, errors against float64 before times, rows.

A contestant that does not fit into memory, or that fails, gets a row that says so. This project gets none, and the
script returns 1 in the end, where its error is more than allowed or a call of its functions was left to the library.
"""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass
from statistics import median
from typing import Any

import torch
from common import Timing, measure, parsed, parser, peak_mib, provenance, save
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from li_plugins.host.session import SESSION
from li_plugins.ops import dispatch

OURS = "li-plugins"
ALLOWED = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""Relative error of each of this project's results as a whole, a loss that the library adds up in bfloat16 among them;
or twice the library's own where that is more."""
TURNS, MILLISECONDS = 7, 100
"""How often each contestant is timed, and for how long: in turns, since a machine is not equally fast for long."""
EXACT_ELEMENTS = 2**26
"""Similarities that the float64 reference holds at a time."""

Results = tuple[Tensor, ...]
"""Scores or a loss, then the gradients of a training step."""


@dataclass(frozen=True)
class Case:
    """What is timed, with inputs of its own, and the same in float64."""

    call: Callable[[], Results]
    exact: Callable[[], Results]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Contestant:
    """Who computes: a context in which the library's functions are the contestant's."""

    name: str
    active: Callable[[], AbstractContextManager[Any]]
    version: str


def main(
    description: str,
    output: str,
    contestants: list[Contestant],
    workloads: Callable[[str], Mapping[str, Callable[[], Case]]],
) -> int:
    """Run a benchmark from the command line and return its exit status; the library is the first of the contestants.

    Parameters
    ----------
    description
        The script's.
    output
        Name of the CSV file under ``results``. What runs on the CPU is printed only.
    contestants
        In the order in which they take a workload.
    workloads
        Gives, for a device, what makes each case, by a name that does not change.
    """
    options = parsed(parser(description, output))
    common = provenance(options.device, options.commit)
    begin, is_right = time.monotonic(), True
    for name, make in workloads(options.device).items():
        if not options.only.search(name):
            continue
        torch.manual_seed(0)
        asked = [contestant for contestant in contestants if options.who.search(contestant.name)]
        rows = outcomes(name, contestants[0].name, asked, make(), options.device)
        is_right &= all(contestant.name != OURS or bool(rows.get(OURS, {}).get("ms")) for contestant in asked)
        for contestant in asked:
            if contestant.name not in rows:
                continue
            row = {"workload": name, "who": contestant.name, **rows[contestant.name]}
            row |= {"version": contestant.version, **common}
            print(
                f"{name:50s} {contestant.name:21s} {row['ms']:>9} ms {row['peak_mib']:>9} MiB",
                f"error {row['error']:>7} {row['error_gradient']:>7} {row['note']} [{time.monotonic() - begin:.0f} s]",
                flush=True,
            )
            if options.device == "cuda":
                save(options.output, [row], ("workload", "who", "gpu"))
    return int(not is_right)


def outcomes(
    name: str, library: str, contestants: list[Contestant], case: Case, device: str
) -> dict[str, dict[str, str]]:
    """Return the cells of each contestant's row; none of this project's where it is wrong or did not run.

    Twice the errors of the ``library``, where it is among them, are allowed.
    """
    truth, budget, rows = case.exact(), None, {}
    for contestant in contestants:
        try:
            with contestant.active():
                found, rows[contestant.name] = outcome(contestant.name == OURS, case, truth, budget, device)
        except NotTimed as reason:
            print(f"# {name}: {OURS} {reason}; not timed", file=sys.stderr, flush=True)
            continue
        if contestant.name == library and found:
            budget = [2 * error for error in found]
    able = [who for who in contestants if rows.get(who.name, {}).get("peak_mib")]
    turns: dict[str, list[Timing]] = {contestant.name: [] for contestant in able}
    for _ in range(TURNS):
        for contestant in list(able):
            if device == "cuda":
                torch.cuda.empty_cache()
            try:
                with contestant.active():
                    turns[contestant.name].append(measure(case.call, device, MILLISECONDS))
            except Exception as error:  # it costs a contestant its times, not the others theirs
                able.remove(contestant)
                rows[contestant.name]["note"] = f"fails: {type(error).__name__}"
                traceback.print_exc()
    for who, timings in turns.items():
        if len(timings) < TURNS:
            continue
        cells = (f"{median(values):.3f}" for values in zip(*map(astuple, timings), strict=True))
        rows[who] |= dict(zip(("ms", "p20", "p80", "host_us"), cells, strict=True))
    return rows


class NotTimed(Exception):
    """What is wrong, or did not run, is not timed."""


def outcome(
    is_ours: bool, case: Case, truth: Results, budget: list[float] | None, device: str
) -> tuple[list[float], dict[str, str]]:
    """Return a contestant's errors, none where it did not come so far, and its cells but for the times.

    Raises
    ------
    NotTimed
        Of this project alone.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    found: list[float] = []
    peak, note = "", ""
    kernels, declined = dispatch.counters(), declines()
    try:
        found = errors(case.call(), truth)
        if is_ours:
            note = " + ".join(sorted({kernel for _, kernel in dispatch.counters() - kernels}))
            check(found, case.dtype, budget, note, declines() - declined)
        peak = f"{peak_mib(case.call, device):.3f}"
    except NotTimed:
        raise
    except torch.OutOfMemoryError:
        note = "out of memory"
    except Exception as error:  # a contestant's own failure costs it its figures, not the others theirs
        note = f"fails: {type(error).__name__}"
        traceback.print_exc()
    return found, {
        **dict.fromkeys(("ms", "p20", "p80", "host_us"), ""),
        "peak_mib": peak,
        "error": f"{found[0]:.1e}" if found else "",
        "error_gradient": f"{max(found[1:]):.1e}" if found[1:] else "",
        "note": note,
    }


def check(
    found: list[float], dtype: torch.dtype, budget: list[float] | None, kernels: str, declined: Counter[str]
) -> None:
    """Refuse to time what is wrong or did not run.

    Raises
    ------
    NotTimed
        With what was found.
    """
    if not kernels or declined:
        raise NotTimed(f"left calls to the library: {dict(declined) or 'no kernel ran'}")
    allowed = [max(ALLOWED[dtype], library) for library in budget or [0.0] * len(found)]
    if not all(error <= most for error, most in zip(found, allowed, strict=True)):
        raise NotTimed(f"is wrong by {found}, allowed is {allowed}")


def declines() -> Counter[str]:
    """Return how often each patched function left a call to the library, and why."""
    return Counter(
        {
            f"{target}: {reason}": times
            for target, (_, reasons) in SESSION.counts().items()
            for reason, times in reasons.items()
        }
    )


def errors(found: Results, truth: Results) -> list[float]:
    """Return the relative error of each result as a whole; infinite where it is not a number."""
    pairs = zip(found, truth, strict=True)
    relative = [float((ours.to(right).double() - right).norm() / right.norm()) for ours, right in pairs]
    return [error if error == error else float("inf") for error in relative]


def texts(count: int, shortest: int, longest: int, dtype: torch.dtype, device: str, width: int = 128) -> list[Tensor]:
    """Return unit vectors of ragged lengths."""
    lengths = torch.randint(shortest, longest + 1, (count,)).tolist()
    return list(batch(sum(lengths), dtype=dtype, device=device, width=width).split(lengths))


def batch(*shape: int, dtype: torch.dtype, device: str, width: int = 128) -> Tensor:
    """Return unit vectors: of random ones many, the best similarity is positive, as of a model."""
    rows = torch.randn(*shape, width, device=device)
    return torch.nn.functional.normalize(rows, dim=-1).to(dtype)


def exact_maxsim(queries: Tensor, documents: Tensor, mask: Tensor | None = None) -> Tensor:
    """Score in float64, some documents or queries at a time, in the backward as well.

    ``queries [A, Lq, d]``, ``documents [B, Ld, d]`` to ``[A, B]``, or ``[A, K, Ld, d]`` to ``[A, K]``.
    """
    queries, documents = queries.double(), documents.double()
    is_cross = documents.dim() == 3
    each = queries.shape[1] * documents.shape[-2] * (queries.shape[0] if is_cross else documents.shape[1])

    def score(queries: Tensor, documents: Tensor, mask: Tensor | None) -> Tensor:
        grid = torch.einsum("ash,bth->abst" if is_cross else "ash,abth->abst", queries, documents)
        if mask is not None:
            grid = grid.masked_fill(~(mask[None] if is_cross else mask)[:, :, None], -torch.inf)
        return grid.amax(-1).sum(-1)

    parts = []
    for start in range(0, len(documents), max(1, EXACT_ELEMENTS // each)):
        part = slice(start, start + max(1, EXACT_ELEMENTS // each))
        chosen = None if mask is None else mask[part]
        asked = queries if is_cross else queries[part]
        parts.append(checkpoint(score, asked, documents[part], chosen, use_reentrant=False))
    return torch.cat(parts, dim=1 if is_cross else 0)


def exact_ragged(queries: list[Tensor], documents: list[Tensor]) -> Tensor:
    """Score ragged texts in float64, some documents at a time."""
    padded = pad_sequence(queries, batch_first=True)  # a zero row adds nothing
    columns = []
    for start in range(0, len(documents), 256):
        some = documents[start : start + 256]
        lengths = torch.tensor([len(document) for document in some], device=padded.device)
        stacked = pad_sequence(some, batch_first=True).to(padded.device)
        columns.append(
            exact_maxsim(padded, stacked, torch.arange(stacked.shape[1], device=padded.device) < lengths[:, None])
        )
    return torch.cat(columns, dim=1)
