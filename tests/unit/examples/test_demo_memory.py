"""The meters see memory that is taken, also memory that is given back before the end."""

import mmap
import sys

import pytest
from retrieval_demo import memory

MEGABYTE = 2**20


def touch(megabytes):
    """Take that much memory, use it, give it back."""
    with mmap.mmap(-1, megabytes * MEGABYTE) as block:
        block.write(b"x" * (megabytes * MEGABYTE))


def job(megabytes):
    return lambda: touch(megabytes)


@pytest.mark.skipif(memory.method("cpu") != "rss", reason="this system cannot reset a process's high-water mark")
def test_the_peak_is_that_of_the_block_and_not_of_what_came_before():
    touch(200)
    with memory.watch_peak("cpu") as small:
        touch(20)
    with memory.watch_peak("cpu") as large:
        touch(100)
    assert 20 <= small.bytes / MEGABYTE < 60
    assert 100 <= large.bytes / MEGABYTE < 240


def test_without_a_meter_the_peak_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "RESET", tmp_path / "missing" / "clear_refs")
    assert memory.method("cpu") == "process"
    with memory.watch_peak("cpu") as peak:
        touch(1)
    assert peak.bytes is None


@pytest.mark.skipif(sys.platform == "win32", reason="resource is a Unix module")
def test_a_fresh_process_tells_its_growth():
    assert memory.peak_in_fresh_process(job, 150) / MEGABYTE >= 140


def test_available_memory_is_below_a_containers_limit(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text(f"{300 * MEGABYTE}\n")
    (tmp_path / "memory.current").write_text(f"{100 * MEGABYTE}\n")
    assert memory._container_headroom(tmp_path) == 200 * MEGABYTE
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._container_headroom(tmp_path) is None
    monkeypatch.setattr(memory, "_container_headroom", lambda: 5 * MEGABYTE)
    assert memory.available("cpu") == 5 * MEGABYTE
