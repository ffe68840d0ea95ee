"""What every benchmark shares: provenance, timing, peak memory and the CSV of results."""

from __future__ import annotations

import argparse
import csv
import ctypes
import datetime
import gc
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from li_plugins.index_diff.environment import processor

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
RESET = Path("/proc/self/clear_refs")
LONG = 60
"""Milliseconds from which on calls are timed one by one, each with its wait."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one call on the device (median, 20th and 80th percentile) and microseconds of the host."""

    median: float
    p20: float
    p80: float
    host_us: float


def parser(description: str, output: str) -> argparse.ArgumentParser:
    """Return the parser of a benchmark that writes ``results/<output>``, with the options that all of them have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a few small workloads")
    made.add_argument("--only", type=re.compile, default=re.compile(""), help="regular expression on the workload")
    made.add_argument("--who", type=re.compile, default=re.compile(""), help="regular expression on the contestant")
    made.add_argument("--output", type=Path, default=RESULTS / output)
    made.add_argument("--commit", help="commit for the rows, where there is no checkout")
    return made


def parsed(made: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line.

    Raises
    ------
    SystemExit
        Also where there is no CUDA device, and none but that was asked for.
    """
    options = made.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device was found; --device cpu runs a few small workloads")
    return options


def provenance(device: str, commit: str | None = None) -> dict[str, str]:
    """Return what a row needs to be believed: date, hardware, versions and commit."""
    if commit is not None and not re.fullmatch("[0-9a-f]{7,40}", commit):
        raise SystemExit(f"--commit takes the hash of a commit; found {commit!r}; see `git log`")
    hardware = torch.cuda.get_device_name() if device == "cuda" else _processor()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "gpu": hardware,
        "torch": torch.__version__,
        "triton": installed("triton"),
        "python": platform.python_version(),
        "commit": commit or head(),
    }


def _processor() -> str:
    """Name the CPU, with its family and model, since that of a virtual machine may be vague, and the threads."""
    said = processor()
    words = (f"{short} {said[word]}" for word, short in (("cpu family", "family"), ("model", "model")) if word in said)
    return f"{' '.join(['cpu', said['model name'], *words])}, {torch.get_num_threads()} threads"


def installed(distribution: str) -> str:
    """Return the version of a distribution, or nothing."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def head() -> str:
    """Return the commit of the checkout, with a + when files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        described = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return described.stdout.strip() or "unknown"


def measure(call: Callable[[], Any], device: str, milliseconds: int = 300) -> Timing:
    """Time a call after warming up; on CUDA with events and a flushed L2 cache.

    Parameters
    ----------
    call
        What to time; its result is dropped.
    device
        ``"cuda"`` or ``"cpu"``.
    milliseconds
        About how long to repeat it.
    """
    call()
    if device == "cpu":
        times: list[float] = []
        end = time.perf_counter() + milliseconds / 1000
        while len(times) < 5 or time.perf_counter() < end:
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1000)
        p20, *_, p80 = quantiles(times, n=5)
        median = sorted(times)[len(times) // 2]
        return Timing(median, p20, p80, median * 1000)

    from triton.testing import do_bench

    once = _synchronized_ms(call)
    if once > LONG:  # its inputs outgrow the cache; one way for all that take so long, whatever ``milliseconds`` are
        times = sorted(_synchronized_ms(call) for _ in range(5))
        return Timing(times[2], times[1], times[3], times[2] * 1000)
    median, p20, p80 = do_bench(call, warmup=50, rep=milliseconds, quantiles=[0.5, 0.2, 0.8])
    torch.cuda.synchronize()
    repeats = max(5, min(30, int(milliseconds / once)))  # far fewer launches than the device's queue holds: none waits
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    host_us = (time.perf_counter() - start) / repeats * 1e6
    torch.cuda.synchronize()
    return Timing(median, p20, p80, host_us)


def in_turns(
    call: Callable[[], Any], sides: Mapping[str, Callable[[], Any]], rounds: int, milliseconds: int = 300
) -> dict[str, list[float]]:
    """Time a call on the CPU with each side switched on in turns, so that what else the machine does meets both.

    Returns each side's milliseconds, one value a round: the median of its calls in about as many ``milliseconds``.
    """
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, switch in sides.items():
            switch()
            found: list[float] = []
            while sum(found) < milliseconds:
                start = time.perf_counter()
                call()
                found.append((time.perf_counter() - start) * 1000)
            times[side].append(median(found))
    return times


def graph_ms(call: Callable[[], Any], milliseconds: int = 150) -> float | None:
    """Return the median of replaying a call as a CUDA graph: what the device takes, however slow the host is.

    ``None`` where the call cannot be captured.
    """
    from triton.testing import do_bench

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:  # it waits for the device, or asks for what a capture does not give
        torch.cuda.synchronize()
        return None
    return float(do_bench(graph.replay, warmup=20, rep=milliseconds, return_mode="median"))


def _synchronized_ms(call: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1000


def peak_mib(call: Callable[[], Any], device: str) -> float:
    """Return the memory that a call needs at its peak, over what was there before, in MiB.

    The device's on CUDA; on the CPU the resident set, where Linux tells its high-water mark, else NaN.
    """
    if device == "cpu":
        return _resident_peak_mib(call)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _resident_peak_mib(call: Callable[[], Any]) -> float:
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # a call cannot hide in what an earlier one left
    try:
        RESET.write_text("5")  # the high-water mark starts anew
    except OSError:
        return float("nan")
    before = _status_mib("VmRSS")
    call()
    return max(0.0, _status_mib("VmHWM") - before)


def _status_mib(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def save(path: Path, rows: Iterable[Mapping[str, Any]], key: tuple[str, ...]) -> None:
    """Write rows to a CSV file; a row that is there already is replaced if it agrees in ``key``."""
    kept: dict[tuple[str, ...], Mapping[str, Any]] = {}
    if path.exists():
        with path.open(newline="") as file:
            kept = {tuple(row[name] for name in key): row for row in csv.DictReader(file)}
    for row in rows:
        kept[tuple(str(row[name]) for name in key)] = row
    if not kept:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(next(reversed(kept.values()))), restval="")
        writer.writeheader()
        writer.writerows(kept.values())
