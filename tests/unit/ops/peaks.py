"""How much memory steps take beyond what was there before: the peak of each, measured in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

Limits = Mapping[str, tuple[str, tuple[float, float]]]
"""Steps by name, expressions in ``part``, and between how many MiB their peak lies."""

MEASURE = """
import json, sys
from pathlib import Path

def status(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024

def peak_of(step):
    step(slice(4))  # what threads and libraries allocate once
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = status("VmRSS")
    step(slice(None))
    return status("VmHWM") - before

steps = json.loads(sys.argv[1])
print(json.dumps({name: peak_of(eval("lambda part: " + step)) for name, step in steps.items()}))
"""

measurable = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the high-water mark is read from Linux's /proc"
)


def measured(setup: str, limits: Limits) -> dict[str, float]:
    """Return the peak of each step in MiB; ``setup`` is code that defines what the steps name.

    A step runs first with a ``part`` of 4 items, then, measured, with all of them.
    """
    steps = json.dumps({name: step for name, (step, _) in limits.items()})
    command = [sys.executable, "-c", setup + MEASURE, steps]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=280).stdout)


def check(name: str, found: Mapping[str, float], limits: Limits) -> None:
    """Check that a peak lies within its limits.

    It may read less than it is: Linux counts pages in batches, and takes some back that nobody has used for long, those
    of libraries among them.
    """
    low, high = limits[name][1]
    assert 0.75 * low - 1 <= found[name] <= high
