"""Measures MaxSim's kernels on this machine's GPU for one shape, and stores the rows that are better."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from li_plugins.errors import BadInput
from li_plugins.ops import _compat
from li_plugins.ops.masks import MaskRule
from li_plugins.ops.maxsim import tuning, tuning_file, tuning_rows
from li_plugins.ops.maxsim.problem import Layout, Problem
from li_plugins.ops.maxsim.triton_arguments import card_of, sizes_of
from li_plugins.ops.maxsim.triton_kernel import KERNEL
from li_plugins.ops.maxsim.tuning_file import Row
from li_plugins.ops.maxsim.tuning_search import Outcome, Trial, search
from li_plugins.ops.maxsim.tuning_sizes import Card, Sizes

_SHORT = {"num_warps": "warps", "num_stages": "stages", "maxnreg": "registers", "BLOCK_D": "dimensions"}

Measure = Callable[[Callable[[], Any]], float]
"""Returns the milliseconds of a call."""

DIFFERING_WINNERS = 1e-3
"""Share of winners that may differ: rows add in another order, so near ties may fall to another token."""


NAMES = {
    "scores": "forward",
    "winners": "forward with winners",
    "queries": "queries' gradient",
    "documents": "documents' gradient",
}
"""Phases, for people."""


class Shape(NamedTuple):
    """A problem to tune for: ``queries`` by ``documents``, or by as many candidates each."""

    queries: int = 256
    documents: int = 512
    query_length: int = 32
    document_length: int = 180
    width: int = 128
    dtype: torch.dtype = torch.bfloat16
    candidates: bool = False


def problem_of(shape: Shape, device: torch.device) -> Problem:
    """Return random unit embeddings, as encoders make them."""
    random = torch.Generator(device).manual_seed(0)

    def unit(*sizes: int) -> Tensor:
        rows = torch.empty(sizes, device=device, dtype=shape.dtype).normal_(generator=random)
        return torch.nn.functional.normalize(rows, dim=-1)

    layout = Layout.CANDIDATES if shape.candidates else Layout.CROSS
    leading = (shape.queries, shape.documents) if shape.candidates else (shape.documents,)
    queries = unit(shape.queries, shape.query_length, shape.width)
    documents = unit(*leading, shape.document_length, shape.width)
    return Problem(
        layout, queries, documents, MaskRule.NONE, shape.dtype, shape.query_length, shape.document_length
    )  # fmt: skip


def tune(
    shape: Shape,
    device: torch.device,
    *,
    dry_run: bool = False,
    measure: Measure | None = None,
    on_trial: Callable[[str, Row], None] = lambda phase, row: None,
) -> list[Outcome]:
    """Measure every phase that a row can be stored for, and store the rows that are better.

    A row that was stored before and is not better any more is dropped. What was chosen before is forgotten.

    Parameters
    ----------
    shape, device
        What to tune for, and where.
    dry_run
        Store nothing.
    measure
        Default: the median on the device, with a flushed L2 cache.
    on_trial
        Told of each row that is about to be tried, and of its phase.

    Raises
    ------
    BadInput
        When the kernel does not serve the problem, or the rows cannot be stored where they would be.
    """
    if not dry_run:
        tuning_file.check()
    problem = problem_of(shape, device)
    support = KERNEL.supports(problem)
    if not support:
        raise BadInput("a problem that the Triton kernel serves", support.reason, "tune another one")
    outcomes = [_tune(phase, problem, measure or _milliseconds, on_trial) for phase in phases_of(problem)]
    if not dry_run:
        _store(outcomes, device)
    tuning_rows.forget()
    return outcomes


def cut(row: Row) -> str:
    """Return a row in a line: the tile, then what is not left open."""
    first, second, *rest = row
    others = (f"{_SHORT.get(name, name)} {row[name]}" for name in rest if row[name] is not None)
    return ", ".join((f"{row[first]} x {row[second]}", *others))


def as_dict(outcome: Outcome, stored: bool) -> dict[str, Any]:
    """Return an outcome as JSON shows it."""
    return {
        "phase": outcome.phase,
        "key": outcome.key,
        "builtin": dict(outcome.builtin),
        "builtin_ms": outcome.builtin_ms,
        "best": dict(outcome.best),
        "best_ms": outcome.best_ms,
        "gain": outcome.gain,
        "tried": outcome.tried,
        "refused": list(outcome.refused),
        "stored": stored,
    }


def phases_of(problem: Problem) -> list[str]:
    """Return what there is to tune: the documents' gradient only where winners are sorted."""
    return ["scores", "winners", "queries", *(["documents"] if tuning.sorting(sizes_of(problem)) else [])]


def _tune(phase: str, problem: Problem, measure: Measure, on_trial: Callable[[str, Row], None]) -> Outcome:
    sizes, card = sizes_of(problem), card_of(problem.queries.device)
    key = tuning_rows.key(phase, sizes, card)
    before = tuning_rows.stored(phase, sizes, card)

    @contextmanager
    def using(row: Row) -> Iterator[None]:
        with tuning_rows.trial({key: row}):
            yield

    def launch_of(row: Row) -> object:
        with using(row):
            return _chosen(phase, sizes, card)

    with tuning_rows.trial({}):
        builtin = tuning.as_row(_chosen(phase, sizes, card))
        run = _runner(phase, problem)
        expected = run()

    def try_row(row: Row) -> Trial:
        with using(row):
            try:
                reason = differs(run(), expected)
                return Trial(None, reason) if reason else Trial(measure(run))
            except Exception as error:  # what cannot be built is no candidate; anything else is for the user to see
                if not _compat.is_compile_failure(error):
                    raise
                return Trial(None, f"{type(error).__name__}: {error}".splitlines()[0])

    def confirm(first: Row, second: Row) -> tuple[float, float]:
        times: dict[int, list[float]] = {0: [], 1: []}
        for _ in range(3):
            for number, row in enumerate((first, second)):
                with using(row):
                    times[number].append(measure(run))
        return sorted(times[0])[1], sorted(times[1])[1]

    return search(
        phase,
        key,
        builtin,
        try_row,
        launch_of,
        confirm=confirm,
        starts=() if before is None else (before,),
        on_trial=lambda row: on_trial(phase, row),
    )


def _chosen(phase: str, sizes: Sizes, card: Card) -> tuning.Forward | tuning.QueryGradient | tuning.SortedGradient:
    if phase == "queries":
        return tuning.query_gradient(sizes, card)
    if phase == "documents":
        return tuning.sorted_gradient(sizes, card)
    return tuning.forward(sizes, phase == "winners", card)


def _runner(phase: str, problem: Problem) -> Callable[[], tuple[Tensor, ...]]:
    """Return the call of one phase; its tensors are made once."""
    if phase in ("scores", "winners"):
        return lambda: tuple(tensor for tensor in KERNEL.forward(problem, phase == "winners") if tensor is not None)
    scores, winners = KERNEL.forward(problem, True)
    assert winners is not None
    random = torch.Generator(scores.device).manual_seed(1)
    grad_scores = torch.empty_like(scores).normal_(generator=random)

    def backward() -> tuple[Tensor, ...]:
        gradients = KERNEL.backward(problem, grad_scores, winners, phase == "queries", phase == "documents")
        return tuple(gradient for gradient in gradients if gradient is not None)

    return backward


def differs(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> str:
    """Say what is wrong with results, or nothing: numbers within a rounding or two, winners up to near ties."""
    for ours, theirs in zip(found, expected, strict=True):
        if not theirs.numel():
            continue
        if not theirs.is_floating_point():
            share = (ours != theirs).float().mean().item()
            if share > DIFFERING_WINNERS:
                return f"{share:.1%} of the winners are others"
            continue
        theirs32 = theirs.float()
        allowed = 2 * torch.finfo(theirs.dtype).eps * theirs32.abs() + 1e-5 * theirs32.abs().max()
        if not bool(((ours.float() - theirs32).abs() <= allowed).all()):  # NaN is not
            return "its results are others"
    return ""


def _milliseconds(call: Callable[[], Any]) -> float:
    from triton.testing import do_bench

    return float(do_bench(call, warmup=20, rep=100, return_mode="median"))


def _store(outcomes: list[Outcome], device: torch.device) -> None:
    now = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    stored = tuning_file.rows()
    rows: dict[str, dict[str, Any] | None] = {}
    for outcome in outcomes:
        if outcome.is_better:
            measured = {
                "milliseconds": round(outcome.best_ms, 5),
                "builtin_milliseconds": round(outcome.builtin_ms, 5),
                "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
                "torch": torch.__version__,
                "date": now,
            }
            rows[outcome.key] = {"blocks": dict(outcome.best), "measured": measured}
        elif outcome.key in stored:
            rows[outcome.key] = None
    if rows:
        tuning_file.store(rows)
