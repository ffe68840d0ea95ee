"""Watches and imports of several threads and of a forked process: each is called once, and none meets half a module."""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import sys
import threading
import time
from importlib.machinery import SourceFileLoader

import pytest

WAIT_S = 20


def test_an_import_of_another_thread_that_was_underway_calls_back_at_the_next_import(
    site, watcher, heard, import_something_else
):
    """It passed the finders before ours was there, and is not in ``sys.modules`` yet."""
    site.module("target", "x = 1")
    found, go_on = threading.Event(), threading.Event()

    class SlowLoader(SourceFileLoader):
        def create_module(self, spec):
            found.set()
            go_on.wait(WAIT_S)

    class Finder:
        def find_spec(self, name, path, target=None):
            if name == "target":
                return importlib.util.spec_from_loader(name, SlowLoader(name, str(site.path / "target.py")))
            return None

    finder = Finder()
    sys.meta_path.insert(0, finder)
    try:
        thread = threading.Thread(target=importlib.import_module, args=("target",))
        thread.start()
        assert found.wait(WAIT_S)
        watcher.when_ready("target", heard.append)
        import_something_else()
        assert heard == []
        go_on.set()
        thread.join(WAIT_S)
    finally:
        sys.meta_path.remove(finder)
    with pytest.raises(ModuleNotFoundError):
        import no_such_module  # noqa: F401
    assert heard == [sys.modules["target"]]
    assert watcher._doubtful == ()


def test_callbacks_run_outside_the_lock(site, watcher, heard):
    """Another thread can watch while a callback waits for it."""
    site.module("target", "")
    site.module("replacement", "")

    def callback(module):
        thread = threading.Thread(target=watcher.when_ready, args=("unheard", heard.append))
        thread.start()
        thread.join(WAIT_S)
        assert not thread.is_alive()
        import replacement  # noqa: F401

        watcher.when_ready("target", heard.append)()
        heard.append(module)

    watcher.when_ready("target", callback)
    import target

    assert heard[-1] is target


def test_no_thread_gets_the_module_before_the_callback_is_done(site, watcher):
    site.module("target", "value = 'library'")

    def patch(module):
        time.sleep(0.05)
        module.value = "ours"

    watcher.when_ready("target", patch)
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(importlib.import_module("target").value)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert seen == ["ours"] * 6


def test_watches_that_race_with_the_import_are_all_called_once(site, watcher, door):
    """Threads begin to watch at any moment of an import."""
    door.pause = lambda: time.sleep(0.002)
    for round_number in range(20):
        name = f"target{round_number}"
        site.module(name, "import watch_door\nwatch_door.pause()\nlast = 2")
        importlib.invalidate_caches()
        seen = []
        start = threading.Barrier(4)

        def watch(name=name, seen=seen, start=start):
            start.wait(WAIT_S)
            for _ in range(5):
                watcher.when_ready(name, lambda module: seen.append(module.last))

        def load(name=name, start=start):
            start.wait(WAIT_S)
            importlib.import_module(name)

        threads = [threading.Thread(target=job) for job in (watch, watch, watch, load)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        with pytest.raises(ModuleNotFoundError):
            import no_such_module  # noqa: F401
        assert seen == [2] * 15


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_hears_its_own_imports(site, watcher, heard):
    site.module("target", "")
    watcher.when_ready("target", heard.append)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child():
        importlib.import_module("target")
        sender.send([module.__name__ for module in heard])

    process = context.Process(target=child)
    process.start()
    assert receiver.poll(WAIT_S)
    assert receiver.recv() == ["target"]
    process.join(WAIT_S)
    assert heard == []
