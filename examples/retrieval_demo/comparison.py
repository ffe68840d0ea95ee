"""One stage run with the plugin off and on, alternately: times, peaks of memory, results, and who really ran."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import li_plugins
from retrieval_demo.memory import method, peak_in_fresh_process, watch_peak

if TYPE_CHECKING:
    from retrieval_demo.stages import Inputs, Stage

OFF, ON = "PyLate", "PyLate + li-plugins"
SIDES = (OFF, ON)


@dataclass
class Runs:
    """The measured runs of one side."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)

    @property
    def median_seconds(self) -> float:
        """Median wall time of a run."""
        return median(self.seconds)

    @property
    def median_peak_bytes(self) -> float:
        """Median of the runs' peaks, in bytes above what was in use before the run."""
        return median(self.peak_bytes)


@dataclass
class Comparison:
    """A stage with both sides' runs.

    ``served`` counts the calls that li-plugins answered in the measured runs, by target; ``declined`` those that it
    gave back to PyLate.
    """

    title: str
    sides: dict[str, Runs] = field(default_factory=lambda: {side: Runs() for side in SIDES})
    served: Counter[str] = field(default_factory=Counter)
    declined: Counter[str] = field(default_factory=Counter)

    @property
    def speedup(self) -> float:
        """How many times faster the plugin's side is."""
        return self.sides[OFF].median_seconds / self.sides[ON].median_seconds

    @property
    def memory_ratio(self) -> float:
        """How many times less memory the plugin's side needs; a peak below one megabyte counts as one."""
        peaks = {side: max(self.sides[side].median_peak_bytes, 2**20) for side in SIDES}
        return peaks[OFF] / peaks[ON]


@contextmanager
def side_in_force(side: str) -> Iterator[None]:
    """Run the block with PyLate's own functions or with the patched ones."""
    if side == ON:
        yield
    else:
        with li_plugins.suspended():
            yield


def compare(make_stage: Callable[[Inputs], Stage], inputs: Inputs, advance: Callable[[int], object]) -> Comparison:
    """Run a stage on both sides, taking turns at going first.

    Parameters
    ----------
    make_stage
        The stage's class.
    inputs
        What it works on.
    advance
        Told of every measured run.
    """
    stage = make_stage(inputs)
    comparison = Comparison(stage.title)
    for side in SIDES:
        with side_in_force(side):
            stage.warm_up(side)
    for repetition in range(stage.repetitions):
        for side in SIDES if repetition % 2 == 0 else SIDES[::-1]:
            with side_in_force(side):
                before = _answers()
                with watch_peak(inputs.device) as peak:
                    started = time.perf_counter()
                    result = stage.run(side, repetition)
                    _wait_for(inputs.device)
                    seconds = time.perf_counter() - started
            if side == ON:
                served, declined = (now - then for now, then in zip(_answers(), before, strict=True))
                comparison.served += served
                comparison.declined += declined
            runs = comparison.sides[side]
            runs.seconds.append(seconds)
            runs.results.append(result)
            if peak.bytes is not None:
                runs.peak_bytes.append(peak.bytes)
            advance(1)
    if method(inputs.device) == "process":
        for side in SIDES:
            comparison.sides[side].peak_bytes.append(peak_in_fresh_process(_job, make_stage, inputs, side))
    return comparison


def _job(make_stage: Callable[[Inputs], Stage], inputs: Inputs, side: str) -> Callable[[], object]:
    """Prepare, in a fresh process, one run of a stage on one side."""
    if side == ON:
        li_plugins.enable_all()
    stage = make_stage(inputs)
    stage.warm_up(side)
    return lambda: stage.run(side, 0)


def _answers() -> tuple[Counter[str], Counter[str]]:
    """Count the calls so far that li-plugins answered, and those that it declined, by target."""
    served: Counter[str] = Counter()
    declined: Counter[str] = Counter()
    for row in li_plugins.status().rows:
        served[row.target] += row.calls - row.declines
        declined[row.target] += row.declines
    return served, declined


def _wait_for(device: str) -> None:
    """Let a GPU finish what it was given."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
