"""The search for better blocks: one number after the other is varied, what is fastest stays.

It knows neither a GPU nor a kernel: ``tuning_run`` brings what measures a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from li_plugins.ops.maxsim.tuning_file import Row

LEAST_GAIN = 0.03
"""Share of its time that a row must save to be stored."""

_NO_LIMIT = {"maxnreg": None}

AXES: Mapping[str, tuple[tuple[Row, ...], ...]] = {
    phase: (
        (
            {"ROWS": 32, "num_warps": 1, **_NO_LIMIT},
            {"ROWS": 32, "num_warps": 2, **_NO_LIMIT},
            {"ROWS": 64, "num_warps": 4, **_NO_LIMIT},
            {"ROWS": 128, "num_warps": 4, **_NO_LIMIT},
            {"ROWS": 128, "num_warps": 8, **_NO_LIMIT},
            {"ROWS": 256, "num_warps": 8, "maxnreg": 128},
        ),
        ({"BLOCK_N": 16}, {"BLOCK_N": 32}, {"BLOCK_N": 64}, {"BLOCK_N": 128}),
        ({"num_stages": 2}, {"num_stages": 3}, {"num_stages": 4}),
        (_NO_LIMIT, {"maxnreg": 128}, {"maxnreg": 168}),
        tuple({"documents": number} for number in (1, 2, 4, 8, 16)),
    )
    for phase in ("scores", "winners")
} | {
    "queries": (
        tuple({"ROWS": rows, "VISITS": visits} for rows, visits in ((4, 8), (8, 4), (8, 8), (16, 2), (16, 4), (32, 1))),
        ({"BLOCK_D": 64}, {"BLOCK_D": 128}, {"BLOCK_D": 256}),
        ({"num_warps": 2}, {"num_warps": 4}, {"num_warps": 8}),
        ({"num_stages": 1}, {"num_stages": 3}),
    ),
    "documents": (
        ({"ENTRIES": 32}, {"ENTRIES": 64}, {"ENTRIES": 128}),
        ({"BLOCK_D": 64}, {"BLOCK_D": 128}, {"BLOCK_D": 256}),
        ({"num_warps": 1}, {"num_warps": 2}, {"num_warps": 4}),
        ({"num_stages": 2}, {"num_stages": 3}, {"num_stages": 4}),
        (_NO_LIMIT, {"maxnreg": 128}, {"maxnreg": 168}),
    ),
}
"""What is tried, by phase: groups of numbers that go together, in the order in which they are varied."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What running a row showed."""

    milliseconds: float | None
    """``None`` where it cannot be built, or computes something else."""
    reason: str = ""
    """Why there is no time."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the search found for one phase."""

    phase: str
    key: str
    builtin: Row
    builtin_ms: float
    best: Row
    best_ms: float
    tried: int
    refused: tuple[str, ...] = ()
    """Why rows have no time, each reason once."""

    @property
    def gain(self) -> float:
        """Share of the built-in row's time that the best one saves."""
        return 1 - self.best_ms / self.builtin_ms if self.builtin_ms > 0 else 0.0

    @property
    def is_better(self) -> bool:
        """Whether the best row is worth storing."""
        return self.best != self.builtin and self.gain >= LEAST_GAIN


def most_trials(phase: str) -> int:
    """Return how many rows a search runs at most, its start apart."""
    return sum(len(axis) for axis in AXES[phase])


def search(
    phase: str,
    key: str,
    builtin: Row,
    measure: Callable[[Row], Trial],
    launch_of: Callable[[Row], object],
    *,
    confirm: Callable[[Row, Row], tuple[float, float]] | None = None,
    starts: Iterable[Row] = (),
    on_trial: Callable[[Row], None] = lambda row: None,
) -> Outcome:
    """Return the best row that varying one group of numbers after the other finds.

    Parameters
    ----------
    phase, key
        A phase of ``tuning_rows.FIELDS``, and what its row is stored by.
    builtin
        The row to beat; that it runs is taken for granted.
    measure
        Runs a row.
    launch_of
        What a row comes to for these sizes (hashable): of rows that come to the same, one is run.
    confirm
        Measures the built-in and the best row again, in turns, because the best of many measurements is lucky.
    starts
        Rows to try beside the built-in one before anything is varied: what was stored before.
    on_trial
        Told of each row that is about to be tried.

    Raises
    ------
    RuntimeError
        When the built-in row has no time.
    """
    first = measure(builtin)
    if first.milliseconds is None:
        raise RuntimeError(f"the built-in blocks of {key} do not run: {first.reason}")
    best, best_ms = builtin, first.milliseconds
    seen = {launch_of(builtin)}
    refused: dict[str, None] = {}
    for candidates in (tuple(starts), *AXES[phase]):
        base = best
        for change in candidates:
            row = {**base, **change}
            on_trial(row)
            launch = launch_of(row)
            if launch in seen:
                continue
            seen.add(launch)
            trial = measure(row)
            if trial.milliseconds is None:
                refused[trial.reason] = None
            elif trial.milliseconds < best_ms:
                best, best_ms = row, trial.milliseconds
    builtin_ms = first.milliseconds
    if best != builtin and confirm is not None:
        builtin_ms, best_ms = confirm(builtin, best)
    return Outcome(phase, key, builtin, builtin_ms, best, best_ms, len(seen), tuple(refused))
