"""How much memory a piece of work needs at its peak, and how much there is."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RESET, STATUS, MEMINFO = Path("/proc/self/clear_refs"), Path("/proc/self/status"), Path("/proc/meminfo")


class Peak:
    """Highest memory use of a block, in bytes above what was in use when it began; ``None`` where nothing can tell."""

    bytes: int | None = None


def method(device: str) -> str:
    """How ``watch_peak`` measures on this machine: ``"cuda"``, ``"rss"`` or ``"process"`` (it cannot)."""
    if device.startswith("cuda"):
        return "cuda"
    try:
        RESET.write_text("5")
        before = _status_bytes("VmHWM")
    except OSError:
        return "process"
    return "rss" if before else "process"


@contextmanager
def watch_peak(device: str) -> Iterator[Peak]:
    """Measure the peak of a block.

    On CUDA the peak is that of torch's allocator. On Linux it is the resident set's, whose high-water mark is reset
    first; memory that the C library holds back is returned before, so that a block cannot hide in what an earlier one
    left. Elsewhere ``Peak.bytes`` stays ``None``: see ``peak_in_fresh_process``.
    """
    peak, how = Peak(), method(device)
    gc.collect()
    if how == "cuda":
        import torch

        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
    elif how == "rss":
        _trim_heap()
        RESET.write_text("5")
        before = _status_bytes("VmRSS")
        yield peak
        peak.bytes = max(0, _status_bytes("VmHWM") - before)
    else:
        yield peak


def peak_in_fresh_process(job: Callable[..., Callable[[], Any]], *arguments: Any) -> int:
    """Run a job in a new process and say by how many bytes its work raised the process's peak.

    Parameters
    ----------
    job
        A function of a module (it is sent by name) that prepares the work and returns it as a callable.
    arguments
        Handed to ``job``; they must be picklable.
    """
    pool = multiprocessing.get_context("spawn").Pool(1)
    try:
        return pool.apply(_peak_growth, (job, arguments))
    finally:
        pool.close()
        pool.join()


def available(device: str) -> int:
    """Bytes that a computation on this device may take now.

    A container's limit counts; what torch's CUDA allocator holds without using it is free.
    """
    if device.startswith("cuda"):
        import torch

        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    found = [_container_headroom()]
    if MEMINFO.is_file():
        found.append(_kilobytes(MEMINFO.read_text(), "MemAvailable"))
    known = [size for size in found if size]
    return min(known) if known else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _peak_growth(job: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]) -> int:
    """Prepare and do a job; bytes by which the peak of this process grew while it was done."""
    work = job(*arguments)
    before = _peak_of_process()
    work()
    return _peak_of_process() - before


def _peak_of_process() -> int:
    """Highest resident set of this process so far, in bytes.

    The kernel's own figure where there is one: on Linux ``ru_maxrss`` starts from the parent's.
    """
    if STATUS.is_file() and (peak := _status_bytes("VmHWM")):
        return peak
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _trim_heap() -> None:
    """Give free heap pages back to the system where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status_bytes(field: str) -> int:
    """One figure of this process's status, in bytes."""
    return _kilobytes(STATUS.read_text(), field)


def _kilobytes(text: str, field: str) -> int:
    """Read a ``Field:  123 kB`` line in bytes; 0 when there is none."""
    match = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _container_headroom(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes below the memory limit of the control group that this process sees as its root, if there is one."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            return max(1, int((root / limit).read_text()) - int((root / used).read_text()))
        except (OSError, ValueError):  # no such group, or "max": no limit of this kind
            continue
    return None
