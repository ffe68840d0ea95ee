"""Enable and disable in every order, by one thread or several: the one session, on fake libraries and plugins."""

from __future__ import annotations

import copy
import importlib
import pickle
import sys
import threading

from sessions import rows, scores, states

from li_plugins.host.session import Session

# Orders of import, enable and disable.


def test_patches_what_is_imported_and_what_comes_later(site, session):
    site.adapter("early")
    site.adapter("late")
    held = scores("earlylib").score
    session.enable()
    assert held(1) == ("ours", 1, 1)
    assert states(session, "early") == {"score": "patched", "Scorer.__call__": "patched"}
    assert states(session, "late") == {"score": "armed", "Scorer.__call__": "armed"}
    assert "latelib" not in sys.modules
    assert "late_replacements" not in sys.modules
    assert rows(session.status(), "late")["score"].reason == "its module is not imported yet"
    assert scores("latelib").score(1) == ("ours", 1, 1)
    assert states(session, "late")["score"] == "patched"


def test_patches_at_the_end_of_an_import_under_way(site, session):
    site.adapter()
    file = site.path / "fakelib" / "scores.py"
    file.write_text("import trigger\n" + file.read_text())
    site.module("trigger", "import builtins\nbuiltins.trigger()")
    import builtins

    builtins.trigger = lambda: session.enable(["fake"])
    try:
        assert scores().score(1) == ("ours", 1, 1)
    finally:
        del builtins.trigger


def test_gives_back_the_very_same_functions(site, session):
    site.adapter()
    function, method = scores().score, scores().Scorer.__call__
    codes = function.__code__, method.__code__
    session.enable()
    assert scores().Scorer()(2) == ("ours", 2)
    session.disable()
    assert (scores().score, scores().Scorer.__call__) == (function, method)
    assert (function.__code__, method.__code__) == codes
    assert function(1) == ("library", 1, 1)
    assert states(session) == {"score": "off", "Scorer.__call__": "off"}


def test_what_is_imported_after_disable_stays_as_it_is(site, session):
    site.adapter()
    session.enable()
    session.disable()
    assert scores().score(1) == ("library", 1, 1)


def test_enabling_twice_is_one_patch_and_counts_go_on(site, session):
    site.adapter()
    function = scores().score
    code = function.__code__
    session.enable()
    patched = function.__code__
    function(1)
    session.enable()
    assert function.__code__ is patched
    function(1)
    assert rows(session.status())["score"].calls == 2
    session.disable()
    assert function.__code__ is code
    session.enable()
    function(1)
    assert rows(session.status())["score"].calls == 3


def test_a_reloaded_module_is_patched_again_and_all_is_given_back(site, session):
    site.adapter()
    module = scores()
    old = module.score
    session.enable()
    importlib.reload(module)
    assert module.score is not old
    assert module.score(1) == old(1) == ("ours", 1, 1)
    assert rows(session.status())["score"].calls == 2
    session.disable()
    assert module.score(1) == old(1) == ("library", 1, 1)


def test_enabling_one_adapter_leaves_the_others(site, session):
    site.adapter("one")
    site.adapter("two")
    scores("onelib"), scores("twolib")
    session.enable(["one"])
    assert states(session, "one")["score"] == "patched"
    assert states(session, "two")["score"] == "off"
    session.enable(["two"])
    session.disable(["one"])
    assert scores("onelib").score(1) == ("library", 1, 1)
    assert scores("twolib").score(1) == ("ours", 1, 1)


def test_the_import_hook_is_gone_after_disable(site, session):
    site.adapter()
    before = list(sys.meta_path)
    session.enable()
    session.enable()
    session.disable()
    assert sys.meta_path == before


def test_a_disable_in_the_midst_of_an_enable_wins(site, session):
    site.adapter()
    file = site.path / "fake_replacements.py"
    file.write_text("import sys\nsys.in_the_midst()\n" + file.read_text())
    module = scores()
    before = list(sys.meta_path)
    sys.in_the_midst = session.disable
    try:
        session.enable(["fake"])
    finally:
        del sys.in_the_midst
    assert module.score(1) == ("library", 1, 1)
    assert sys.meta_path == before


def test_patched_objects_pickle_and_copy(site, session):
    site.adapter()
    session.enable()
    function = scores().score
    assert pickle.loads(pickle.dumps(function)) is function
    assert copy.deepcopy(function) is function
    assert copy.deepcopy(scores().Scorer())(3) == ("ours", 3)


# Threads, and a plugin that imports torch.


def test_threads_enable_and_disable_at_will(site, session):
    site.adapter()
    module = scores()
    code = module.score.__code__
    errors = []

    def flip():
        try:
            for _ in range(60):
                session.enable(["fake"])
                assert module.score(1)[0] in ("ours", "library")
                with session.suspended():
                    pass
                session.disable()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=flip) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    session.disable()
    assert module.score.__code__ is code
    session.enable()
    assert module.score(1) == ("ours", 1, 1)


def test_threads_that_enable_together_find_everything_patched(site):
    site.adapter()
    scores()
    session = Session()
    barrier = threading.Barrier(4)
    found = []

    def enable():
        barrier.wait()
        session.enable(["fake"])
        found.append(scores().score(1))

    threads = [threading.Thread(target=enable) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [("ours", 1, 1)] * 4
    session.close()
    assert scores().score(1) == ("library", 1, 1)


def test_a_request_that_comes_while_plugins_load_is_served_afterwards(site, session):
    """A plugin's module may import torch, whose end calls the environment gate while we load that plugin."""
    site.adapter()
    site.plugin("nested", "import sys\nsys.nested_request()")
    sys.nested_request = lambda: session.enable(["fake"])
    try:
        scores()
        session.status()
        assert scores().score(1) == ("ours", 1, 1)
    finally:
        del sys.nested_request
