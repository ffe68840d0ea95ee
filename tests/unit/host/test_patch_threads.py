"""Patches while other threads call, and in processes that are forked and spawned."""

from __future__ import annotations

import functools
import multiprocessing
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from patched_library import ours

from li_plugins.api import Target
from li_plugins.host import patch


def test_threads_that_call_while_others_patch(lib, patched):
    """Each call runs the library's code or ours, whole; none sees a patch half done."""
    target = Target("lib.core:score", "x:y")
    stop, wrong = threading.Event(), []
    allowed = {("library", 1, 2, 1.0), ("ours", 1, 2, 1.0)}

    def call():
        calls = 0
        while not stop.is_set():
            calls += 1
            answer, declined = lib.score(1), lib.score(None)
            if answer not in allowed or declined != ("library", None, 2, 1.0):
                wrong.append((answer, declined))
        return calls

    def flip():
        for _ in range(150):
            record = patch.apply("fake", target, ours, version="1", untested=False, on_decline=lambda *_: None)
            patch.undo(record)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(6) as pool:
            callers = [pool.submit(call) for _ in range(4)]
            flippers = [pool.submit(flip) for _ in range(2)]
            try:
                for flipper in flippers:
                    flipper.result(60)
            finally:
                stop.set()
            assert sum(caller.result(60) for caller in callers) > 100
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    assert lib.score(1)[0] == "library"
    assert patch.record_of(lib.score) is None
    assert not [name for name in vars(lib) if name.startswith("__li_plugins")]


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_inherits_the_patch_and_undoes_its_own(lib, patched):
    record = patched("lib.core:score", ours)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child():
        patched_answer = lib.score(1)[0]
        patch.undo(record)
        sender.send((patched_answer, lib.score(1)[0]))

    process = context.Process(target=child)
    process.start()
    assert receiver.poll(20)
    assert receiver.recv() == ("ours", "library")
    process.join(20)
    assert lib.score(1)[0] == "ours"


def test_a_spawned_child_runs_the_library_until_it_patches(lib, site, patched):
    """What crosses is the name of the function; the environment decides whether the child patches."""
    patched("lib.core:score", ours)
    pickled = pickle.dumps(functools.partial(lib.score, 1))
    done = site.python(f"import pickle; print(pickle.loads({pickled!r})()[0])")
    assert done.stdout == "library\n", done.stderr
